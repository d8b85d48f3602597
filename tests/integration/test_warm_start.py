"""A process that is forked off a warm Python is what a shell would have started: or other tests prove too little."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from email_ingestion.fleet.managed_processes import is_entry_point
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender
from tests.servers.links import link, message
from tests.servers.processes import ROOT, Place, place, until
from tests.servers.redis import RedisServer
from tests.servers.warm_start import WarmProcess


@pytest.fixture
def here(tmp_path: Path, redis_server: RedisServer):
    with place(tmp_path / "a folder", redis_server.url, LOG_DIR="logs") as made:
        yield made


def test_a_worker_has_all_that_it_would_have(here: Place):
    shown = []
    for each in (here, replace(here, fresh=True, started=[])):
        worker = each.worker(2)
        worker.url()
        process = psutil.Process(worker.process.pid)
        facts = (process.ppid(), process.cwd(), process.cmdline(), process.environ(), os.getpgid(process.pid))
        shown.append((*facts, [Path(f"/proc/{process.pid}/fd/{number}").readlink() for number in range(3)]))
        assert isinstance(worker.process, WarmProcess) is not each.fresh
        assert is_entry_point(process.cmdline())
        worker.kill()
        assert worker.process.returncode == -signal.SIGKILL
    assert shown[0] == shown[1]
    assert shown[0][0] == os.getpid()
    assert {name: value for name, value in shown[0][3].items() if name != "LC_CTYPE"} == here.environment


def test_a_worker_has_the_parser_that_it_would_have_and_another_after_its_end(here: Place, redis_server: RedisServer):
    shown = []
    for number, each in enumerate((here, replace(here, fresh=True, started=[]))):
        worker = each.worker()
        _queue(redis_server, number * 2 + 1)
        until(lambda count=number * 2 + 1: len(here.rows()) == count, "the message is parsed")
        (parser,) = psutil.Process(worker.process.pid).children(recursive=True)
        facts = (parser.ppid() - worker.process.pid, parser.cwd(), parser.cmdline()[:3], parser.environ())
        files = [Path(f"/proc/{parser.pid}/fd/{descriptor}").readlink() for descriptor in range(3)]
        shown.append((*facts, files, Path(f"/proc/{parser.pid}/fd/{parser.cmdline()[3]}").readlink().name[:6]))
        parser.kill()
        _queue(redis_server, number * 2 + 2)
        until(lambda count=number * 2 + 2: len(here.rows()) == count, "another parser parses the next")
        (parser,) = psutil.Process(worker.process.pid).children(recursive=True)
        assert worker.terminate() == 0
        assert not parser.is_running()
    assert shown[0] == shown[1]


def _queue(server: RedisServer, uid: int) -> None:
    intake = Appender(link(server.url))
    cursor = intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    intake.append("default", "INBOX", cursor, uid, [message(uid)])


@pytest.mark.parametrize(
    "words", [["dlq", "list"], ["config", "show", "--json"], ["no-such-command"], ["search", "invoice", "--json"]]
)
def test_a_command_answers_the_same(here: Place, words: list[str]):
    fresh = replace(here, fresh=True).run("-m", "email_ingestion", *words)
    warm = here.run("-m", "email_ingestion", *words)
    assert (warm.returncode, warm.stdout, warm.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert warm.stdout + warm.stderr


def test_a_process_that_refuses_to_start_says_so_in_its_log_and_by_its_code(here: Place):
    here.set(REDIS_PARTITIONS="many")
    worker = here.worker()
    assert worker.ended() == 78
    assert "REDIS_PARTITIONS" in worker.log()


def test_what_changes_the_interpreter_gets_one_of_its_own(here: Place):
    here.set(PYTHONPATH=ROOT / "src")
    assert not isinstance(here.worker().process, WarmProcess)
    here.environment.pop("PYTHONPATH")
    here.set(TZ="Asia/Tokyo")
    worker = here.worker(2)
    worker.url()
    assert psutil.Process(worker.process.pid).environ()["TZ"] == "Asia/Tokyo"
