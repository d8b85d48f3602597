"""`logs`, `errors` and `check errors` where there is no log to read: they say where it is, never that all is well."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.servers.commands import typed
from tests.servers.processes import Place, place
from tests.servers.redis import RedisServer

RECORD = {"timestamp": "", "level": "ERROR", "event": "redis_failed", "component": "worker", "message": "gone"}


@pytest.fixture
def here(tmp_path: Path, redis_server: RedisServer) -> Iterator[Place]:
    with place(tmp_path / "here", redis_server.url) as made:
        yield made


def written(**changes: str) -> str:
    return json.dumps(RECORD | {"timestamp": datetime.now(UTC).isoformat()} | changes) + "\n"


def test_in_a_container_the_log_is_standard_error(here: Place):
    logs = here.folder / "logs"
    logs.mkdir(exist_ok=True)
    for stem in ("producer", "worker"):
        (logs / f"{stem}.log").symlink_to("/dev/null")
    for command in (("errors",), ("logs",), ("errors", "--json"), ("check", "errors")):
        done = typed(here, *command)
        assert done.returncode == (3 if command[0] == "check" else 2), done.stderr
        text = done.stdout + done.stderr
        for spelling in ("docker compose logs producer", "kubectl logs"):
            assert spelling in text
        assert "nothing" not in text


@pytest.mark.parametrize("state", ["absent", "empty", "damaged", "a file"])
def test_what_cannot_be_read_is_named(here: Place, state: str):
    logs = here.folder / "logs"
    if state == "a file":
        logs.write_text("")
    elif state != "absent":
        logs.mkdir(exist_ok=True)
    if state == "damaged":
        (logs / "worker.log").write_text("")
        (logs / "worker.log-20260101.gz").write_bytes(gzip.compress(written(event="x" * 400).encode())[:60])
        os.truncate(logs / "worker.log-20260101.gz", 40)
    for command in ("errors", "logs"):
        done = typed(here, command)
        assert done.returncode == 2, done.stderr
        assert "nothing" not in done.stderr.replace("perhaps nothing ran here yet", "")
        assert "worker.log-20260101.gz" in done.stderr if state == "damaged" else "LOG_DIR" in done.stderr


def test_what_was_found_is_shown_beside_what_could_not_be_read(here: Place):
    logs = here.folder / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "worker.log").write_text(written())
    (logs / "producer.log").symlink_to("/dev/null")
    done = typed(here, "errors")
    assert (done.returncode, "redis_failed" in done.stdout, "docker compose logs producer" in done.stderr) == (
        1,
        True,
        True,
    )


NOTHING = "no error was logged, and there is no dead letter; whether all runs, says email-ingestion status"


def test_a_log_without_errors_says_so(here: Place):
    logs = here.folder / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "worker.log").write_text(written(level="INFO"))
    done = typed(here, "errors")
    assert (done.returncode, done.stderr.strip()) == (0, NOTHING)
    here.set(REDIS_URL="redis://127.0.0.1:1/0")
    done = typed(here, "errors")
    assert (done.returncode, "is not known" in done.stderr) == (2, True)
