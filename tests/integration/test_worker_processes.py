"""Several workers under one command; here with a script in the worker's place."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from email_ingestion.daemon import StopSignal
from email_ingestion.fleet.managed_processes import WorkerProcesses
from email_ingestion.records import Cursor
from email_ingestion.settings import load_settings
from email_ingestion.stream import Appender, Keys
from tests.servers.links import link, message
from tests.servers.processes import place, until
from tests.servers.redis import RedisServer

SCRIPT = """\
import pathlib, signal, sys, time
number = sys.argv[2]
if number == {refusing!r}:
    sys.exit(78)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
import os
pathlib.Path("draft-" + number).write_text(str(os.getpid()))
os.replace("draft-" + number, "pid-" + number)
time.sleep(120)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    return tmp_path


def _crew(folder: Path, refusing: str = "") -> tuple[StopSignal, threading.Thread, list[int]]:
    (folder / "script.py").write_text(SCRIPT.format(refusing=refusing))
    stop, codes = StopSignal(), []
    crew = WorkerProcesses(load_settings(), 3, 2, (), stop)
    thread = threading.Thread(target=lambda: codes.append(crew.run()))
    return stop, thread, codes


def _pid(folder: Path, number: int) -> int:
    path = folder / f"pid-{number}"
    until(path.exists, f"number {number} runs")
    return int(path.read_text())


def test_a_crashed_one_is_started_again_and_a_stop_ends_all(folder: Path):
    stop, thread, codes = _crew(folder)
    thread.start()
    first = _pid(folder, 3)
    _pid(folder, 4)
    os.kill(first, signal.SIGKILL)
    until(lambda: _pid(folder, 3) != first, "it runs again")
    stop.request("the test is over")
    thread.join(60)
    assert codes == [0]


def test_one_that_refuses_to_start_ends_all(folder: Path):
    _, thread, codes = _crew(folder, refusing="4")
    thread.start()
    thread.join(60)
    assert codes == [78]


def test_two_workers_of_one_command_drain_the_stream(own_redis: RedisServer, tmp_path: Path):
    intake = Appender(link(own_redis.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    intake.append("default", "INBOX", Cursor(1, 0), 20, [message(uid) for uid in range(1, 21)])
    with place(tmp_path / "here", own_redis.url) as here:
        ended = here.run("worker.py", "--processes", "2", "--drain", seconds=200)
        rows = here.rows()
        logs = {path.name for path in (here.folder / "logs").iterdir()}
    with own_redis.client() as client:
        left = client.xlen(Keys().stream)
    assert (ended.returncode, len(rows), left) == (0, 20, 0)
    assert {"worker.log", "worker-2.log"} <= logs
