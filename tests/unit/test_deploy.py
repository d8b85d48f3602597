"""The files under deploy/ and config/, as far as they can be judged without the engines they are for."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from email_ingestion.ops import status_json
from email_ingestion.ops.sockets import METRICS_PORT, OPS_PORT
from email_ingestion.settings import Settings
from email_ingestion.settings.names import refuse_unknown
from tests.servers.missing import program

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
SYSTEMD = ROOT / "deploy" / "systemd"
DOCKER = ROOT / "deploy" / "docker"
KUBERNETES = ROOT / "deploy" / "kubernetes"
SERVICES = sorted(path.name for path in SYSTEMD.glob("*.service"))
BY_HAND = {"secret.example.yaml", "prometheus-rule.yaml"}
OPTIONAL = {"keda.yaml", "monitoring.yaml"}  # need what not every cluster has
INSTANCES = 500  # the most that `worker.py --instance` takes
EXPOSURE = 20  # tenths of what `systemd-analyze security` calls the exposure level; "OK" begins at 4.9


def known(names: Any) -> None:
    """Each is a setting; the one check that our processes make of their environment."""
    refuse_unknown(dict.fromkeys(names, "deploy"), {name.upper() for name in Settings.model_fields})


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as if the project lay where it is in this test."""
    python = tmp_path / "opt" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "units").mkdir()
    for path in SYSTEMD.iterdir():
        text = path.read_text().replace("/opt/email-ingestion", str(tmp_path / "opt"))
        (tmp_path / "units" / path.name).write_text(text)
    return tmp_path / "units"


def test_systemd_takes_the_units(units: Path):
    names = [path.name.replace("@.", "@2.") for path in sorted(units.iterdir())]
    shutil.copy(units / "email-ingestion-worker@.service", units / "email-ingestion-worker@2.service")
    command = [program("systemd-analyze", "systemd"), "verify", "--man=no", *(str(units / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_likes_the_hardening(units: Path, name: str):
    command = [program("systemd-analyze", "systemd"), "security", "--offline=true", f"--threshold={EXPOSURE}"]
    done = subprocess.run([*command, str(units / name)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_units_start_what_there_is():
    for name in SERVICES:
        (words,) = re.findall(r"^ExecStart=(.*)$", (SYSTEMD / name).read_text(), re.MULTILINE)
        called = words.split()[1:]
        assert called[:2] == ["-m", "email_ingestion"] or (ROOT / called[0]).exists(), words
    target = (SYSTEMD / "email-ingestion.target").read_text()
    for wanted in re.findall(r"email-ingestion-\S+", target):
        assert (SYSTEMD / re.sub(r"@\d+", "@", wanted)).exists()


def test_the_image_copies_what_there_is_and_nothing_secret():
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[0] == "*"
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                ways = (source, *map(str, Path(source).parents))
                assert any(fnmatch.fnmatch(way, pattern) for way in ways for pattern in let_in), source
    assert not any(pattern in {"data", "logs", ".env", "backups"} for pattern in let_in)


def test_whatever_user_a_platform_chooses_may_write_the_folders_of_the_image():
    text = (DOCKER / "Dockerfile").read_text()
    volumes = re.findall(r'"/app/(\w+)"', text.partition("\nVOLUME")[2].partition("\n")[0])
    (made,) = re.findall(r"chown email-ingestion:root (.*) && chmod 0770 (.*)\n", text)
    assert made[0] == made[1]
    assert set(volumes) <= set(made[0].split())


def test_the_image_is_built_with_all_that_the_package_holds():
    text = (DOCKER / "Dockerfile").read_text().partition("--editable")[0]
    copied = {source for line in text.splitlines() if line.startswith("COPY ") for source in line.split()[1:-1]}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source in (*wheel["force-include"], *wheel["packages"]):
        assert copied & {source, *map(str, Path(source).parents)}, f"the build of the image does not find {source}"


def test_the_image_has_the_locked_packages():
    def pinned(path: Path) -> set[str]:
        return set(re.findall(r"^(\S+==\S+)", path.read_text(), re.MULTILINE))

    image = pinned(DOCKER / "requirements.lock")
    assert pinned(ROOT / "requirements.lock") <= image <= pinned(ROOT / "requirements-dev.lock")
    assert any(each.startswith("psycopg==") for each in image)


def test_compose_holds_together():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = compose["services"]
    assert {"redis", "producer", "worker", "web", "prometheus", "alertmanager", "grafana", "postgres"} <= set(services)
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in compose["volumes"], volume
        assert name == "postgres" or service["security_opt"] == ["no-new-privileges:true"]
        assert set(service.get("depends_on", {})) <= set(services)
        for other, how in dict(service["depends_on"]).items() if isinstance(service.get("depends_on"), dict) else ():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} would be open to the network"
    for name in ("producer", "worker", "backup", "web"):
        known(services[name]["environment"])
        called = services[name]["command"][1:]
        assert called[:2] == ["-m", "email_ingestion"] or (ROOT / called[0]).exists()


def test_prometheus_in_compose_takes_its_file(tmp_path: Path):
    shutil.copy(DOCKER / "prometheus.yml", tmp_path / "prometheus.yml")
    shutil.copy(ROOT / "config" / "alerts.yml", tmp_path / "alerts.yml")
    command = [program("promtool", "prometheus"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name not in {"kustomization.yaml", "prometheus-rule.yaml"}:
            yield from yaml.safe_load_all(path.read_text())


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for each in manifests():
        spec = each.get("spec", {})
        template = each if each["kind"] == "Pod" else spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield each["metadata"]["name"], template


def test_every_file_for_kubernetes_is_applied_or_said_not_to_be():
    text = (KUBERNETES / "kustomization.yaml").read_text()
    left = {path.name for path in KUBERNETES.glob("*.yaml")} - BY_HAND - {"kustomization.yaml"}
    assert all(name in text for name in left | BY_HAND)
    assert set(yaml.safe_load(text)["resources"]) == left - OPTIONAL


def test_pods_are_fit_for_kubernetes():
    seen = set()
    for name, template in pods():
        seen.add(name)
        spec = template["spec"]
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in spec.get("volumes", ())} | ({"data"} if name == "redis" else set())
        for container in spec["containers"]:
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.get(probe, {}).get("httpGet") or container.get(probe, {}).get("tcpSocket")
                assert not asked or asked["port"] in ports
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert "limits" in container["resources"]
        if name in {"producer", "worker", "web"}:
            assert {"livenessProbe", "readinessProbe", "startupProbe"} <= set(spec["containers"][0])
            assert spec["terminationGracePeriodSeconds"] > Settings().stop_seconds
    assert seen == {"producer", "worker", "web", "redis", "backup", "reconcile"}


def test_the_pods_of_ours_may_write_what_operators_commands_write():
    for name, template in pods():
        if name in {"producer", "worker", "web"}:
            (container,) = template["spec"]["containers"]
            paths = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/app/data", "/app/pids", "/app/backups", "/tmp", "/app/config/settings.toml"} == paths


def test_the_alerts_of_the_operator_are_those_of_the_file():
    lines = [line for line in (KUBERNETES / "monitoring.yaml").read_text().splitlines() if "config/alerts.yml" in line]
    command = lines[-1].removeprefix("#").strip().partition(" | kubectl ")[0]
    made = subprocess.run(["bash", "-euc", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    rule = yaml.safe_load(made.stdout)
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == yaml.safe_load((CONFIG / "alerts.yml").read_text())


def test_what_scrapes_finds_the_pods_and_policies_let_it_in():
    by_kind = {(each["kind"], each["metadata"]["name"]): each for each in manifests()}
    monitor, service = by_kind["ServiceMonitor", "email-ingestion"]["spec"], by_kind["Service", "metrics"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert {each["port"] for each in monitor["endpoints"]} == {each["name"] for each in service["spec"]["ports"]}
    labels = {name: template["metadata"]["labels"] for name, template in pods()}
    for name in ("producer", "worker"):
        assert service["spec"]["selector"].items() <= labels[name].items()
    names = {
        each["metadata"]["name"]: each["spec"]["podSelector"] for each in manifests() if each["kind"] == "NetworkPolicy"
    }
    assert set(names) == {"redis", "processes", "jobs", "web"}
    (rule,) = by_kind["NetworkPolicy", "redis"]["spec"]["ingress"]
    (expression,) = rule["from"][0]["podSelector"]["matchExpressions"]
    assert set(expression["values"]) == {labels[name]["app"] for name in labels} - {"redis"}


def test_kubernetes_selects_what_it_means():
    labels = {name: template["metadata"].get("labels") for name, template in pods()}
    by_kind = {(each["kind"], each["metadata"]["name"]): each for each in manifests()}
    disrupted = by_kind["PodDisruptionBudget", "worker"]["spec"]["selector"]["matchLabels"]
    assert disrupted.items() <= labels["worker"].items()
    for kind, name in (*(("Deployment", each) for each in ("producer", "worker", "web")), ("StatefulSet", "redis")):
        assert by_kind[kind, name]["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
    known(by_kind["ConfigMap", "settings"]["data"])
    known(by_kind["Secret", "secrets"]["stringData"])
    assert by_kind["CronJob", "reconcile"]


def test_kubernetes_scales_workers_by_what_they_say_of_the_whole_backlog():
    by_kind = {(each["kind"], each["metadata"]["name"]): each for each in manifests()}
    scaled = by_kind["ScaledObject", "worker"]["spec"]
    (trigger,) = scaled["triggers"]
    asked = urlsplit(trigger["metadata"]["url"])
    service = by_kind["Service", asked.hostname.partition(".")[0]]["spec"]
    (port,) = service["ports"]
    deployment = by_kind["Deployment", scaled["scaleTargetRef"]["name"]]["spec"]
    assert service["selector"] == deployment["selector"]["matchLabels"]
    (container,) = deployment["template"]["spec"]["containers"]
    assert {"name": port["targetPort"], "containerPort": asked.port} in container["ports"]
    assert (asked.path, port["port"]) == ("/status", asked.port)
    part, name = trigger["metadata"]["valueLocation"].split(".")
    assert (part, name in status_json.stream(None, None, None, 0.0)) == ("stream", True)


def test_nobody_else_is_given_a_port_of_ours():
    ours = {first + number for first in (OPS_PORT, METRICS_PORT) for number in range(INSTANCES + 1)}
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        for port in service.get("ports", ()):
            (usual,) = re.findall(r":\$\{PORT_[A-Z]+:-(\d+)\}:", port)
            assert (int(usual) in ours) is (name == "producer"), f"{name}: {port}"
    text = "".join(path.read_text() for path in (CONFIG / "prometheus.yml", CONFIG / "alertmanager.yml"))
    elsewhere = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text)}
    assert len(elsewhere) >= 2
    assert not elsewhere & ours


def test_redis_in_kubernetes_has_the_same_configuration():
    (config,) = (each for each in manifests() if each["metadata"]["name"] == "redis-config")
    assert config["data"]["redis.conf"] == (ROOT / "config" / "redis.conf").read_text()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_it():
    command = ["kubectl", "kustomize", str(KUBERNETES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("@sha256:") == 5
    kinds = [each["kind"] for each in yaml.safe_load_all(done.stdout)]
    assert {"Deployment", "StatefulSet", "CronJob", "PodDisruptionBudget", "ConfigMap"} <= set(kinds)


def test_logrotate_rotates_by_rename(tmp_path: Path):
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o755)
    (logs / "worker.log").write_text("one\n")
    before = (logs / "worker.log").stat().st_ino
    text = (ROOT / "config" / "logrotate.conf").read_text().replace("/opt/email-ingestion/logs", str(logs))
    text = re.sub(r"^ *su .*\n", "", text, flags=re.MULTILINE)
    assert "copytruncate" not in re.sub(r"#.*", "", text)
    config = tmp_path / "logrotate.conf"
    config.write_text(text)
    config.chmod(0o644)
    command = [program("logrotate", "logrotate"), "--force", "--state", str(tmp_path / "state"), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (rotated,) = logs.glob("worker.log-*")
    assert rotated.stat().st_ino == before
    assert rotated.read_text() == "one\n"
    assert os.stat(logs / "worker.log").st_size == 0
