"""The runbooks' commands in the spelling of Compose and of kubectl: what is typed, and what an engine is asked then."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "docker" / "commands.sh"
KUBECTL = ROOT / "deploy" / "kubernetes" / "commands.sh"
# An engine that says what it was asked, what came in, and has two workers and everything running.
ENGINE = """#!/bin/bash
name=${0##*/} asked=$*
case "$*" in
"ps "*)
    service=${asked##*compose.service=} number=1
    case $asked in *container-number=*) number=${asked##*container-number=} ;; esac
    [ "$number" -gt 2 ] || echo "${service%% *}-$number"
    exit
    ;;
"inspect "*) echo "$4"; exit ;;
"compose config"*) printf 'name: mail\\n'; printf '        published: "%s"\\n' 8070 8080 9090 9690 9693; exit ;;
"compose ps"*|"compose --profile sandbox ps"*) echo 0123456789ab; exit ;;
"get pods -l app=worker -o name") printf 'pod/worker-a\\npod/worker-b\\n'; exit ;;
"config set-context"*) exit ;;
"get deployment/web "*) echo deployment.apps/web; exit ;;
"compose logs"*worker|"logs "*worker*) echo '{"event": "from the worker"}'; exit ;;
"compose logs"*|"logs "*) exit ;;
esac
printf '%s' "$name"; printf ' <%s>' "$@"; echo
case "$*" in *json.tool) printf 'in: '; cat ;; esac
"""


def typed(folder: Path, commands: Path, line: str) -> str:
    """Type a line of a page in a shell with that spelling; returns what was printed."""
    for name in ("docker", "kubectl"):
        (folder / name).write_text(ENGINE)
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-uc", f". {commands.relative_to(ROOT)}; {line}"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "compose", "kubectl"),
    [
        (
            "email-ingestion status",
            "exec> <-i> <producer-1> <email-ingestion> <status>",
            "<-i> <deployment/producer> <-->",
        ),
        ("email-ingestion pause worker --ttl 2h", "<pause> <worker> <--ttl> <2h> <--all>", "<--ttl> <2h> <--all>"),
        ("redis-cli -h $REDIS_HOST ping", "<redis-cli> <-h> <redis> <ping>", "<redis-cli> <-h> <redis> <ping>"),
        ("echo {} | python -m json.tool", "<json.tool>\nin: {}", "<json.tool>\nin: {}"),
        ("python worker.py --instance 4", "<--scale> <worker=4>", "<deployment/worker> <--replicas=4>"),
        ("python producer.py --auth-setup", "<--auth-setup> <--no-browser>", "<--auth-setup> <--no-browser>"),
        ("curl -sf localhost:8082/ready", "<exec> <-i> <worker-2>", "<pod/worker-b>"),
        ("curl -s localhost:9091/metrics", "<http://localhost:9091/metrics>", "<http://localhost:9091/metrics>"),
        ("tail -5 logs/audit.log", "<exec tail -5 logs/audit.log>", "<exec tail -5 logs/audit.log>"),
        ("tail -5 logs/worker*.log", "from the worker", "from the worker"),
        ("ls backups/a-*.tar | tail -1", "<exec ls backups/a-*.tar>", "<exec ls backups/a-*.tar>"),
        ("sed -n '2p' 'backups/a b'", r"<exec sed -n 2p backups/a\ b>", r"<exec sed -n 2p backups/a\ b>"),
        ("cat pids/worker-2.pid", "<worker-2> <bash> <-c> <exec cat pids/worker.pid>", "<pod/worker-b>"),
        ("systemctl restart redis", "<restart> <redis>", "<rollout> <restart> <statefulset/redis>"),
        ("./scripts/start.sh --workers 3", "<worker=3>", "<deployment/worker> <--replicas=3>"),
        (
            "email-ingestion web login-link",
            "<-i> <web-1> <email-ingestion> <web>",
            "<deployment/web> <--> <email-ingestion>",
        ),
        ("email-ingestion start --workers=3", "<--scale> <worker=3>", "<deployment/worker> <--replicas=3>"),
        ("email-ingestion stop", "<stop> <producer>", "<--replicas=0>"),
        (
            "./scripts/stop.sh",
            "<stop> <producer> <worker> <web> <sandbox>",
            "<deployment/producer> <deployment/worker> <deployment.apps/web> <--replicas=0>",
        ),
        ("echo here | grep here", "here", "here"),
    ],
)
def test_what_a_page_types_means_the_containers(tmp_path: Path, line: str, compose: str, kubectl: str) -> None:
    assert compose in typed(tmp_path, COMPOSE, line)
    assert kubectl in typed(tmp_path, KUBECTL, line)


def test_a_worker_that_there_is_not_is_said_to_be_missing(tmp_path: Path) -> None:
    command = "curl -s localhost:8083/ready"
    assert typed(tmp_path, KUBECTL, command).strip() == "there is no pod of a worker 3"
    assert typed(tmp_path, COMPOSE, command).strip() == "there is no container of a worker 3 that runs"


def test_compose_has_what_its_spelling_names() -> None:
    services = yaml.safe_load((ROOT / "deploy/docker/compose.yaml").read_text())["services"]
    text = COMPOSE.read_text() + (COMPOSE.parent / "runbook_commands.sh").read_text()
    pattern = r"_run ([a-z]+)|_logs ([a-z]+)|compose (?:--profile \w+ )?(?:stop|restart) ([\w ]+?)(?:;| \|\|| *$)"
    named = set(re.findall(pattern, text, re.MULTILINE))
    names = {word for group in named for each in group for word in each.split()} - {"redis-server"}
    assert {"producer", "worker", "web", "redis"} <= names <= set(services)
    ports = {re.findall(r":-(\d+)}:", port)[0] for each in services.values() for port in each.get("ports", ())}
    assert {"8070", "8080", "9090", "9690", "9693"} <= ports  # which the pages ask


def test_the_manifests_have_what_the_spelling_of_kubectl_names() -> None:
    manifests: dict[tuple[str, str], dict[str, Any]] = {}
    for path in (ROOT / "deploy/kubernetes").glob("*.yaml"):
        if path.name not in {"kustomization.yaml", "prometheus-rule.yaml"}:
            for each in yaml.safe_load_all(path.read_text()):
                manifests[each["kind"].lower(), each["metadata"]["name"]] = each
    text = KUBECTL.read_text() + (COMPOSE.parent / "runbook_commands.sh").read_text()
    named = set(re.findall(r"\b(deployment|statefulset|cronjob)/(\w+)", text))
    named |= {("deployment", name) for name in re.findall(r"_run ([a-z]+)", text)}
    assert named
    assert named <= set(manifests)
    assert set(re.findall(r"--namespace=(\S+)", text)) == {name for kind, name in manifests if kind == "namespace"}
    labels = {
        each["spec"]["template"]["metadata"]["labels"]["app"]
        for (kind, _), each in manifests.items()
        if kind in {"deployment", "statefulset"}
    }
    assert set(re.findall(r"app=(\w+)", text)) | set(re.findall(r"_logs ([a-z]+)", text)) <= labels
    # What is asked at K of the pages is in each pod at the port of the first.
    ports = {
        port["containerPort"]
        for each in manifests.values()
        if each["kind"] == "Deployment"
        for container in each["spec"]["template"]["spec"]["containers"]
        for port in container["ports"]
    }
    assert {8070, 8080, 8081, 9090, 9091} <= ports
    (claim,) = (each for each in manifests.values() if each["metadata"]["name"] == "secrets")
    assert "REDIS_PASSWORD" in claim["stringData"]  # as REDISCLI_AUTH in the producer's pod
