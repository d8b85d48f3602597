"""What the README promises of its first command: mail in the database, a second start is harmless, a clean stop."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis
from redis.exceptions import NoPermissionError

from email_ingestion.fleet.managed_processes import get_json
from email_ingestion.fleet.subprocesses import is_alive
from tests.servers.processes import ROOT, Place, place, until

COMMAND = ("-m", "email_ingestion")


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Place]:
    """A folder with nothing but the entry points; everything else comes from the installed package."""
    with place(tmp_path / "demo", "unused") as made:
        for name in ("producer.py", "worker.py", "src/_venv.py"):
            target = made.folder / name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, target)
        del made.environment["REDIS_URL"]
        try:
            yield made
        finally:
            made.run(*COMMAND, "stop", seconds=120)


def _pids(demo: Place) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in (demo.folder / "pids").glob("*.pid")}


def _profile(demo: Place) -> dict[str, str]:
    lines = (demo.folder / "data" / "sandbox.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_one_command_carries_the_sample_mail_and_one_ends_it_all(demo: Place):
    first = demo.run(*COMMAND, "start", "--sandbox", seconds=120)
    assert first.returncode == 0, first.stderr
    assert "300 messages travelled" in first.stdout
    assert "stop.sh" in first.stdout
    assert len(demo.rows()) == 300
    pids = _pids(demo)
    assert pids.keys() == {"producer", "worker", "web", "sandbox", "redis"}
    web = json.loads((demo.folder / "pids" / "web.json").read_text())["web_url"]
    assert web in first.stdout
    until(lambda: web in demo.run(*COMMAND, "status").stdout, "the pages answer")
    with urllib.request.urlopen(f"{web}/healthz", timeout=10) as answer:
        assert answer.read() == b"alive\n"

    made = [
        path for name in ("data", "logs", "pids") for path in (demo.folder / name, *(demo.folder / name).rglob("*"))
    ]
    assert len(made) > 20
    assert [path for path in made if path.lstat().st_mode & 0o077 and not path.is_symlink()] == []

    again = demo.run(*COMMAND, "start", "--sandbox")
    assert again.returncode == 0, again.stderr
    assert f"producer is already running, PID {pids['producer']}" in again.stdout
    assert _pids(demo) == pids

    _check_strangers_can_only_look_whether_redis_lives(demo)
    status = demo.run(*COMMAND, "status", "--json")
    assert status.returncode == 0
    assert [each["status"] for each in json.loads(status.stdout)] == ["ready", "ready"]

    found = demo.run(*COMMAND, "search", "receipt")
    assert (found.returncode, "receipt" in found.stdout) == (0, True)
    assert demo.run(*COMMAND, "search", "nosuchwordanywhere").returncode == 1

    processes = [psutil.Process(pid) for pid in pids.values()]
    ports = {int(_profile(demo)["REDIS_PORT"]), int(_profile(demo)["IMAP_PORT"])}
    ports |= {urlsplit(each["ops_url"]).port for each in _addresses(demo)}
    stopped = demo.run(*COMMAND, "stop", seconds=120)
    assert stopped.returncode == 0, stopped.stderr
    assert "killed" not in stopped.stdout
    assert not any(is_alive(process) for process in processes)
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=2)
    assert not (demo.folder / "data" / "sandbox.env").exists()
    assert demo.run(*COMMAND, "stop").returncode == 0


def _check_strangers_can_only_look_whether_redis_lives(demo: Place) -> None:
    port = int(_profile(demo)["REDIS_PORT"])
    with redis.Redis(port=port) as stranger:
        assert stranger.ping()
        assert stranger.dbsize() > 0
        assert stranger.info()["redis_mode"] == "standalone"
        look = ("XLEN {email_ingestion}:stream", "GET {email_ingestion}:x", "KEYS *", "SCAN 0", "ACL LIST", "MONITOR")
        harm = (
            "SET x 1",
            "FLUSHALL",
            "CONFIG GET dir",
            "SHUTDOWN NOSAVE",
            "CLIENT KILL ID 1",
            "EVAL x 0",
            "REPLICAOF a 1",
        )
        for words in (*look, *harm):
            with pytest.raises(NoPermissionError):
                stranger.execute_command(*words.split())
    known = demo.run(*COMMAND, "redis-cli", "XLEN", "{email_ingestion}:stream")
    assert (known.returncode, known.stdout.strip()) == (0, "0")
    secret = urlsplit(_profile(demo)["REDIS_URL"]).password
    assert secret
    shown = demo.run(*COMMAND, "config", "show", "--json").stdout
    files = [path.read_text(errors="replace") for path in (demo.folder / "logs").iterdir()]
    assert not [each for each in (shown, *files) if secret in each]


def _addresses(demo: Place) -> list[dict[str, str]]:
    found = [json.loads(path.read_text()) for path in (demo.folder / "pids").glob("*.json")]
    return [each for each in found if "ops_url" in each]


def test_the_start_waits_for_a_worker_that_is_late(demo: Place):
    with ThreadPoolExecutor() as pool:
        first = pool.submit(demo.run, *COMMAND, "start", "--sandbox", "--workers", "0", seconds=120)
        other = pool.submit(demo.run, *COMMAND, "start", "--sandbox", "--workers", "0", seconds=120)  # by a colleague
        until(lambda: _produced(demo) == 300, "all mail is in the stream")
        second = demo.run(*COMMAND, "start", "--sandbox", seconds=120)
        for each in (first.result(), other.result(), second):
            assert each.returncode == 0, each.stderr
            assert "300 messages travelled" in each.stdout


def _produced(demo: Place) -> int:
    """How many messages the only process, a producer, has put into the stream."""
    bodies = [get_json(f"{address['ops_url']}/status") for address in _addresses(demo)]
    return sum(body["statistics"]["produced"] for body in bodies if body)


def test_a_killed_worker_is_seen_and_replaced_by_the_next_start(demo: Place):
    demo.set(CB_RECOVERY_TIMEOUT="1")  # who outlives the sandbox comes back to it that soon
    assert demo.run(*COMMAND, "start", "--sandbox", seconds=120).returncode == 0
    psutil.Process(_pids(demo)["worker"]).kill()
    producer = next(each["ops_url"] for each in _addresses(demo) if each["pid"] == _pids(demo)["producer"])

    def dead() -> bool:
        with urllib.request.urlopen(f"{producer}/status", timeout=10) as answer:
            return [peer["alive"] for peer in json.load(answer)["peers"]] == [False]

    until(dead, "the producer's status shows the dead worker")
    ready = until(lambda: _degraded(producer), "the producer's readiness tells of it")
    assert [reason for reason in ready["reasons"] if "worker-1" in reason and "is dead" in reason]
    status = demo.run(*COMMAND, "status")
    assert (status.returncode, "dead" in status.stdout) == (1, True)
    assert "is dead, seen last" in status.stdout
    (consumer,) = json.loads(demo.run(*COMMAND, "consumers", "list", "--json").stdout)
    assert (consumer["name"].endswith("worker-1"), consumer["alive"]) == (True, False)
    doctor = demo.run(*COMMAND, "doctor")
    assert (doctor.returncode, "is dead, seen last" in doctor.stdout) == (1, True), doctor.stdout
    psutil.Process(_pids(demo)["web"]).kill()
    demo.set(WEB_PORT=producer.rpartition(":")[2])  # a port that is taken: in a trial the next free one serves
    again = demo.run(*COMMAND, "start", seconds=120)  # while the sandbox runs it needs no option
    assert again.returncode == 0, again.stderr
    well = demo.run(*COMMAND, "status")
    assert (well.returncode, "web: http://" in well.stdout) == (0, True), well.stdout
    psutil.Process(_pids(demo)["web"]).kill()
    alone = demo.run(*COMMAND, "status")
    assert (alone.returncode, "is dead: ./scripts/start.sh" in alone.stdout) == (1, True), alone.stdout
    _what_dies_of_the_sandbox_is_told_and_comes_back_where_it_was(demo)
    _a_start_in_vain_leaves_what_runs(demo)


def _what_dies_of_the_sandbox_is_told_and_comes_back_where_it_was(demo: Place) -> None:
    before, pids = _profile(demo), _pids(demo)
    for stem in ("sandbox", "redis"):
        psutil.Process(pids[stem]).kill()
        told = demo.run(*COMMAND, "status")
        assert (told.returncode, f"{stem} (PID {pids[stem]}) is dead: " in told.stdout) == (1, True), told.stdout
        assert f"process {stem}: " in demo.run(*COMMAND, "doctor").stdout
        again = demo.run(*COMMAND, "start", seconds=180)  # which waits until those who ran work again
        assert (again.returncode, again.stderr) == (0, ""), again.stdout + again.stderr
    assert _profile(demo) == before
    assert _pids(demo)["producer"] == pids["producer"]


def _a_start_in_vain_leaves_what_runs(demo: Place) -> None:
    before = _pids(demo)
    demo.set(SINKS="database,python:nothere:handle")
    failed = demo.run(*COMMAND, "start", "--workers", "2", seconds=120)
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1), failed.stderr
    assert failed.stderr.startswith("worker-2 did not start: SINKS: the module 'nothere' cannot be imported")
    assert _pids(demo) == before


def test_a_start_in_vain_tells_every_reason_and_leaves_nothing(demo: Place):
    demo.set(SINKS="database,python:nothere:handle")
    failed = demo.run(*COMMAND, "start", "--sandbox", "--workers", "2", seconds=120)
    assert failed.returncode == 1
    reasons = dict(line.split(" did not start: ") for line in failed.stderr.splitlines())
    assert reasons.keys() == {"worker", "worker-2"}
    assert all("'nothere' cannot be imported" in reason for reason in reasons.values())
    assert _pids(demo) == {}
    assert not (demo.folder / "data" / "sandbox.env").exists()
    assert demo.run(*COMMAND, "stop").stdout.strip() == "nothing was running"


def test_what_runs_is_found_and_stopped_though_its_pid_files_are_gone(demo: Place):
    assert demo.run(*COMMAND, "start", "--sandbox", seconds=120).returncode == 0
    processes = [psutil.Process(pid) for pid in _pids(demo).values()]
    assert len(processes) == 5
    for folder in ("pids", "logs"):
        shutil.rmtree(demo.folder / folder)
    status = demo.run(*COMMAND, "status", "--json")
    assert [each["component"] for each in json.loads(status.stdout)] == ["producer", "worker"]
    assert status.returncode == 0, status.stdout
    doctor = demo.run(*COMMAND, "doctor")
    assert (doctor.returncode, "ok: nothing is wrong" in doctor.stdout) == (0, True), doctor.stdout
    for option in ("--sandbox", "--workers=1"):  # nothing runs twice, Redis on its files least of all
        again = demo.run(*COMMAND, "start", option, seconds=120)
        assert again.returncode == 0, again.stderr
        assert "producer is already running" in again.stdout
    assert all(map(is_alive, processes))
    assert not _pids(demo)
    reads, writes = os.pipe()
    os.close(reads)  # as `stop.sh | head -1` leaves it: all is stopped whoever reads
    stopped = subprocess.run(
        [demo.python, *COMMAND, "stop"],
        cwd=demo.folder,
        env=demo.environment,
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writes)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert not any(is_alive(process) for process in processes)
    gone = demo.run(*COMMAND, "status")
    assert (gone.returncode, "nothing runs here" in gone.stdout) == (1, True)


def _degraded(ops_url: str) -> dict[str, Any] | None:
    body = get_json(f"{ops_url}/ready")
    return body if body and body["status"] == "degraded" else None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "IMAP_USER"),
        ({"IMAP_USER": "someone@example.com"}, "--auth-setup"),
        (
            {"IMAP_USER": "someone@example.com", "IMAP_AUTH": "password", "IMAP_PASSWORD": "x", "REDIS_PORT": "1"},
            "REDIS_HOST",
        ),
    ],
)
def test_a_start_without_what_it_needs_names_it(demo: Place, settings: dict[str, str], words: str):
    demo.set(**settings)
    refused = demo.run(*COMMAND, "start")
    assert refused.returncode in {2, 78}
    assert words in refused.stderr
    assert "email-ingestion doctor" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list((demo.folder / "pids").glob("*.pid"))


def test_the_scripts_of_both_platforms_hand_their_options_on():
    for verb in ("start", "stop"):
        assert f'email_ingestion {verb} "$@"' in (ROOT / "scripts" / f"{verb}.sh").read_text()
        assert f"email_ingestion {verb} @args" in (ROOT / "scripts" / f"{verb}.ps1").read_text()
