"""What commands print: on a terminal of 80 columns, in a pipe, as JSON, and when they are interrupted."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from email_ingestion.cli.main import app
from email_ingestion.cli.output import show
from email_ingestion.fleet.status_table import ProcessStatus, SystemStatus, render_table

NARROW = [{"process": "worker", "state": "OPEN"}, {"process": "producer", "state": "CLOSED"}]
WIDE = [{"process": "worker", "message": "no answer " * 9, "last": "2026-01-31T08:00:00Z"}]

PRINT = """
import json, sys
from email_ingestion.cli.output import show
show(json.loads(sys.argv[1]), as_json=False)
"""

WAIT = """
import time
from email_ingestion.cli.exit_codes import run
def wait():
    print("ready", flush=True)
    time.sleep(60)
run(wait)
"""


def at_terminal(records: list[dict[str, Any]]) -> list[str]:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "80"}
    subprocess.run(
        [sys.executable, "-c", PRINT, json.dumps(records)], env=environment, stdout=theirs, check=True, timeout=30
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux's end of a terminal
            break
        shown += part
    os.close(ours)
    return shown.decode().splitlines()


def test_a_table_that_fits_is_a_table() -> None:
    lines = at_terminal(NARROW)
    assert max(map(len, lines)) <= 80
    assert any("worker" in line and "OPEN" in line for line in lines)


def test_a_table_that_is_too_wide_folds_into_one_line_per_value() -> None:
    lines = at_terminal(WIDE * 2)
    assert lines[0].split() == ["process", "worker"]
    assert lines[2].split() == ["last", "2026-01-31T08:00:00Z"]
    assert lines[3] == ""
    assert lines[4:] == lines[:3]


def test_a_table_that_fits_without_its_empty_columns_stays_one() -> None:
    record = {"process": "producer", "name": "redis", "state": "CLOSED", "retry_after_seconds_of_it": None}
    lines = at_terminal([record | {"last_error_of_the_breaker": None, "message": "no answer " * 3}] * 2)
    assert max(map(len, lines)) <= 80
    assert sum("CLOSED" in line and "no answer" in line for line in lines) == 2


def test_a_pipe_gets_a_header_and_tabs_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"name": "a\tb\x1b[2J", "count": None}, {"name": "c", "count": 2}], as_json=False)
    assert capsys.readouterr().out == "name\tcount\na b [2J\t\nc\t2\n"


def test_json_is_a_list_even_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_more_labels_than_a_database_takes_are_a_wrong_use() -> None:
    for option in ("--label", "--tag"):
        done = CliRunner().invoke(app, ["search", *[option, "a"] * 21], standalone_mode=False)
        assert "may be given 20 times" in str(done.exception)


def test_ctrl_c_in_the_middle_of_a_command_is_130_and_a_sentence() -> None:
    command = [sys.executable, "-c", WAIT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip() == "Interrupted: what was done stays done, and the same command does the rest."


def test_a_reader_that_has_enough_is_no_answer_and_no_error() -> None:
    reads, writes = os.pipe()
    os.close(reads)  # as `head -1` leaves it
    command = [sys.executable, "-m", "email_ingestion", "config", "show"]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_watch_in_a_pipe_prints_each_look(more: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "email_ingestion", "status", "--watch", *more]
    place = {"OPS_PORT": "0", "REDIS_PORT": "1", "PATH": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=place) as process:
        assert process.stdout
        assert process.stderr
        first, second = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
    assert first == second
    assert first.startswith(b"[]" if more else b"nothing runs here")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("pause nosuch", "Invalid value for 'component': 'nosuch' is not one of 'producer', 'worker'."),
        ("backfill --since 2026-02-01 --until 2026-01-31", "Invalid value: --until must not be before --since"),
    ],
)
def test_a_wrong_use_is_told_in_words_of_its_own(command: str, said: str) -> None:
    words = [sys.executable, "-m", "email_ingestion", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (64, f"Error: {said}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only where there is a disk that is always full")
@pytest.mark.parametrize(
    ("command", "full", "code"), [("config show", "stdout", 2), ("--help", "stdout", 2), ("nosuch", "stderr", 64)]
)
def test_an_answer_for_which_there_is_no_room_is_a_failure_and_one_sentence(command: str, full: str, code: int) -> None:
    with Path("/dev/full").open("w") as disk:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {full: disk}
        words = [sys.executable, "-m", "email_ingestion", *command.split()]
        done = subprocess.run(words, **streams, text=True, timeout=60, check=False)  # type: ignore[call-overload]
    assert done.returncode == code
    if full == "stdout":
        assert len(done.stderr.splitlines()) == 1
        assert "No space left on device" in done.stderr


def test_the_status_is_read_on_a_terminal_however_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ProcessStatus("worker", "dead", None)
    for columns, is_table in ((80, True), (20, False)):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = render_table(SystemStatus((row,), (), (), None))
        assert ("\u2502 worker" in shown) is is_table
        assert ("State: dead" in shown.splitlines()) is not is_table
