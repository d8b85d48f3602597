"""Compose as docs/install.md has it: a trial from nothing, killed and stopped, and an older image replaced amid mail.

Docker and Compose are Debian's. Redis, Prometheus and Alertmanager are Debian's programs in images with the users and
folders of the official ones; the image is built by podman, which has the network of this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.acceptance.documented import commands
from tests.acceptance.test_rollback import VERSION_0_1_0, code_of
from tests.deploy.machines import APP_IMAGE, DebianRoot, Namespaces, Podman, come_in, docker_daemon, until
from tests.deploy.typed_runbooks import type_all
from tests.servers.processes import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1500)]
PAGE = ROOT / "docs" / "install.md"
FOLDER = "/srv/email-ingestion/deploy/docker"
PREVIOUS = "docker.io/library/email-ingestion:0.1.0"
# The version before, with what its code needs beside what today's needs, and started as it was.
PREVIOUS_IMAGE = """
    USER root
    RUN .venv/bin/pip install --no-cache-dir --disable-pip-version-check inscriptis lxml fast-mail-parser
    RUN rm -rf src producer.py worker.py
    COPY src ./src
    COPY producer.py worker.py ./
    RUN .venv/bin/python -m compileall -q src
    USER 10001:10001"""
PREVIOUS_COMPOSE = """
services:
  producer:
    image: "email-ingestion:0.1.0"
    command: [sh, -c, "until test -s data/token.json; do sleep 1; done; exec python producer.py"]
    read_only: false
  worker: {image: "email-ingestion:0.1.0", read_only: false}
"""
# As people add their own: how soon a container is looked at that starts (the image cannot say it to older builders).
OVERRIDE = """
services:
  producer: &looked_at {healthcheck: {start_interval: 3s}}
  worker: *looked_at
  web: *looked_at
  sandbox: *looked_at
  redis: *looked_at
"""
COUNT = (
    "import sqlite3; print(*sqlite3.connect('data/email_ingestion.db').execute("
    "'SELECT count(*), count(DISTINCT email_id) FROM emails').fetchone())"
)
DELIVER = """
import json, urllib.request
for number in range({first}, {first} + {count}):
    raw = f"Subject: letter {{number}}\\r\\nMessage-ID: <{{number}}@example.org>\\r\\n\\r\\nHello\\r\\n".encode()
    mail = urllib.request.Request("http://127.0.0.1:1181/deliver", raw, {{"Content-Type": "message/rfc822"}})
    urllib.request.urlopen(mail, timeout=20).close()
"""
TRIAL = 300  # messages of the sandbox


@pytest.fixture(scope="module")
def docker(
    folder: Path, roots: dict[str, DebianRoot], podman: Podman, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Namespaces]:
    """Docker with all images, and the project as a user has it."""
    names = [APP_IMAGE, *podman.build_stand_ins()]
    with suppress(pytest.skip.Exception):  # the history of the repository need not be there
        old = code_of(VERSION_0_1_0, tmp_path_factory.mktemp("old"))
        parts = {name: old / name for name in ("src", "producer.py", "worker.py")}
        podman.build_from(PREVIOUS, PREVIOUS_IMAGE, parts, base=APP_IMAGE)
        names.append(PREVIOUS)
    (checkout / "deploy/docker/previous.yaml").write_text(PREVIOUS_COMPOSE)
    (checkout / "deploy/docker/compose.override.yaml").write_text(OVERRIDE)
    root = roots["docker"].made()
    with docker_daemon(root, checkout, folder / "dockerd.log") as space:
        with subprocess.Popen(
            ["podman", "save", "--quiet", "--format=docker-archive", "--multi-image-archive", *names],
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **podman.environment},
            stdout=subprocess.PIPE,
        ) as save:
            load = subprocess.run(
                space.words("docker", "load", "--quiet"), stdin=save.stdout, capture_output=True, text=True, check=False
            )
        assert (save.wait(), load.returncode) == (0, 0), load.stderr
        yield space


def typed(docker: Namespaces, command: str, seconds: float = 600) -> str:
    return docker.done_by("bash", "-euc", command, folder=FOLDER, seconds=seconds)


def stored(docker: Namespaces) -> tuple[int, int]:
    """How many rows the database has, and how many identities."""
    done = docker.call("docker", "compose", "exec", "-T", "producer", "python", "-c", COUNT, folder=FOLDER)
    rows, identities = done.stdout.split() if done.returncode == 0 else (0, 0)
    return int(rows), int(identities)


def deliver(docker: Namespaces, first: int, count: int) -> None:
    script = DELIVER.format(first=first, count=count)
    docker.done_by("docker", "compose", "exec", "-T", "producer", "python", "-c", script, folder=FOLDER)


def status(docker: Namespaces) -> dict:
    return json.loads(docker.get("http://127.0.0.1:8080/status"))


def logs(docker: Namespaces) -> str:
    return docker.call("docker", "compose", "logs", "--no-color", "--tail=40", folder=FOLDER).stdout[-8000:]


def page() -> list[str]:
    """The lines of the page's block, from `cd` to the end of the trial."""
    found = [each for each in commands(PAGE) if each.startswith(("docker compose ", "cp sandbox.env"))]
    return found[: found.index("docker compose --profile sandbox down --volumes") + 1]


def test_the_trial_of_the_page_carries_its_mail_survives_and_ends(docker: Namespaces, checkout: Path):
    steps = [step for step in page() if step != "docker compose build"]  # podman did that
    assert steps[1] == "docker compose --profile sandbox up -d --wait"
    for step in steps[:2]:
        done = docker.call("bash", "-euc", step, folder=FOLDER)
        assert done.returncode == 0, done.stderr[-2000:] + logs(docker)
    until(lambda: stored(docker) == (TRIAL, TRIAL), "the mail of the trial is in the database")
    for step in steps[2:-1]:
        typed(docker, step)
    _operators_commands(docker)
    _restricted(docker)
    _of_a_user_without_a_name(docker)
    _runbooks(docker, checkout)
    _watched(docker)
    link = typed(docker, "docker compose exec -T web email-ingestion web login-link").splitlines()[-1]
    assert link.startswith("http://127.0.0.1:8070/login/")  # where its port is published
    come_in(link, docker.beside)

    # kill -9 of a worker, then of the producer, amid mail.
    deliver(docker, 1, 40)
    typed(docker, "docker compose kill -s KILL worker")
    deliver(docker, 41, 40)
    typed(docker, "docker compose up -d --wait worker")
    until(lambda: stored(docker) == (TRIAL + 80, TRIAL + 80), "a killed worker loses and doubles nothing")
    deliver(docker, 81, 20)
    typed(docker, "docker compose kill -s KILL producer && docker compose up -d --wait producer")
    typed(docker, "docker compose --profile sandbox restart sandbox")
    until(lambda: stored(docker) == (TRIAL + 100, TRIAL + 100), "a killed producer loses and doubles nothing")

    started = time.monotonic()
    typed(docker, "docker compose stop producer worker")
    is_busy = os.getloadavg()[0] > (os.cpu_count() or 1)  # with other work than this: then only the end counts
    assert time.monotonic() - started < (45 if is_busy else 10)
    exits = typed(docker, "docker compose ps -a --format '{{.Service}} {{.ExitCode}}'")
    assert {"producer 0", "worker 0"} <= set(exits.splitlines())
    typed(docker, steps[-1])
    assert typed(docker, "docker ps -aq; docker volume ls -q --filter name=email-ingestion") == ""


def _operators_commands(docker: Namespaces) -> None:
    """What operators type works where nothing but the volumes can be written, and its record stays."""
    for command in ("doctor", "incident open trial --severity P3", "check queue", "config show", "dlq stats"):
        done = docker.call(
            "docker", "compose", "exec", "-T", "producer", "email-ingestion", *command.split(), folder=FOLDER
        )
        assert done.returncode in {0, 1}, f"{command}: {done.stdout}{done.stderr}"
        assert "Read-only" not in done.stdout + done.stderr, f"{command}: {done.stdout}{done.stderr}"
    typed(docker, "docker compose exec -T producer email-ingestion pause producer --ttl 5s")
    told = typed(docker, "docker compose exec -T worker email-ingestion audit list")
    assert "incident open" in told
    assert "pause" in told
    done = docker.call("docker", "compose", "exec", "-T", "producer", "email-ingestion", "errors", folder=FOLDER)
    assert "docker compose logs" in done.stderr
    assert "no error was logged" not in done.stdout + done.stderr
    typed(
        docker,
        "docker compose exec -T producer redis-cli --version && docker compose exec -T producer pg_dump --version",
    )


def _restricted(docker: Namespaces) -> None:
    ours = ("producer", "worker", "web")
    for service, user in (("redis", 999), *((each, 10001) for each in ours), ("prometheus", 65534)):
        assert typed(docker, f"docker compose exec -T {service} id -u").strip() == str(user)
    for service in ours:
        done = docker.call("docker", "compose", "exec", "-T", service, "touch", "/app/src/x", folder=FOLDER)
        assert "Read-only file system" in done.stderr
    found = json.loads(typed(docker, "docker image inspect email-ingestion"))[0]["Config"]
    assert "Healthcheck" in found
    assert found["Labels"]["org.opencontainers.image.licenses"] == "MIT"


def _of_a_user_without_a_name(docker: Namespaces) -> None:
    """As OpenShift runs a container: any user, the group 0, a read-only root; neither a home nor a language is set."""
    odd = "docker run --rm --network none --read-only --tmpfs /tmp --user 1000650000:0 --hostname We_ird.host-"
    odd += " -e HOME= -e TZ=Mars/Olympus -e LC_ALL=C email-ingestion"
    typed(docker, f"{odd} email-ingestion incident open trial --severity P3")
    assert "no token" in docker.call("bash", "-c", f"{odd} python -m src.auth.oauth2_gmail --info").stdout
    done = docker.call("bash", "-c", f"{odd} env PATH= /app/.venv/bin/email-ingestion doctor")
    assert (done.returncode, "blobs: it takes a write" in done.stdout) == (2, True), done.stdout + done.stderr


def _runbooks(docker: Namespaces, checkout: Path) -> None:
    """What the runbooks' blocks type does there what they say, and all works afterwards."""
    folder = checkout / "typed"
    folder.mkdir(exist_ok=True)

    def settled() -> None:
        until(lambda: status(docker)["status"] == "ready", f"ready: {docker.get('http://127.0.0.1:8080/ready')}")
        found = status(docker)["control"]
        assert (found["paused"], found["level"]) == (False, "NORMAL"), found

    wrong = type_all(lambda script: typed(docker, script), folder, "/srv/email-ingestion/typed", settled)
    assert not wrong, "\n".join(wrong)


def _watched(docker: Namespaces) -> None:
    def up() -> bool:
        found = json.loads(docker.get("http://127.0.0.1:9690/api/v1/targets"))
        health = [each["health"] for each in found["data"]["activeTargets"]]
        return len(health) >= 3 and set(health) == {"up"}

    until(up, "Prometheus reads the producer and two workers")
    rules = json.loads(docker.get("http://127.0.0.1:9690/api/v1/rules"))
    assert rules["data"]["groups"]
    assert docker.get("http://127.0.0.1:9693/-/ready").strip() == "OK"


def test_a_newer_image_takes_over_amid_mail(docker: Namespaces):
    if PREVIOUS.rpartition("/")[2] not in docker.done_by("docker", "images", "--format={{.Repository}}:{{.Tag}}"):
        pytest.skip("not tried: the history of this repository is not here (git fetch --unshallow)")
    both = "docker compose -f compose.yaml -f previous.yaml --profile sandbox"
    typed(docker, "cp sandbox.env .env && docker compose --profile sandbox down --volumes")
    docker.call("bash", "-euc", f"{both} up -d redis producer worker sandbox", folder=FOLDER)
    try:
        until(lambda: stored(docker)[0] > 0, "the version before delivers")
    except AssertionError as error:
        raise AssertionError(logs(docker)) from error
    typed(docker, f"{both} stop worker")
    deliver(docker, 1, 50)
    until(lambda: (status(docker)["stream"]["depth"] or 0) > 0, "mail waits in the stream")
    typed(docker, "docker compose --profile sandbox up -d --wait")
    typed(docker, "docker compose --profile sandbox restart sandbox")  # it was in the network of the old container
    until(lambda: stored(docker) == (TRIAL + 50, TRIAL + 50), "the new version has it all")
    versions = typed(docker, "docker compose exec -T producer email-ingestion --version")
    assert status(docker)["version"] == versions.strip()
    typed(docker, "docker compose --profile sandbox down --volumes")
