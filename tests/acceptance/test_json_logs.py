"""Every line of a process's log is JSON, whatever wrote it and however the process ended: `jq` never breaks on one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers.commands import told, typed
from tests.servers.processes import ROOT, Place, Running, until


def records(here: Place, stem: str = "worker") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (here.folder / "logs" / f"{stem}.log").read_text().splitlines()]


def events(here: Place, stem: str = "worker") -> dict[str, dict[str, Any]]:
    return {record["event"]: record for record in records(here, stem)}


def up(running: Running) -> Running:
    until(lambda: running.get("/health")[0] == 200, f"{running.stem} lives")
    return running


def test_stacks_crashes_and_the_output_of_libraries_are_records(here: Place):
    worker = up(here.worker())
    worker.process.send_signal(signal.SIGUSR1)
    until(lambda: "stacks_dumped" in events(here), "the stacks are in the log")
    with Path(f"/proc/{worker.process.pid}/fd/2").open("ab") as stderr:  # as a C library writes
        stderr.write(b"*** libfoo: assertion failed\n")
    until(lambda: "stderr_output" in events(here), "what a library wrote is in the log")
    assert events(here)["stderr_output"]["output"] == "*** libfoo: assertion failed"
    worker.process.send_signal(signal.SIGSEGV)
    assert worker.ended() == -signal.SIGSEGV
    up(here.worker())
    crashed = events(here)["process_crashed"]
    assert crashed["level"] == "CRITICAL"
    assert "Segmentation fault" in crashed["stacks"]
    assert "runner.py" in crashed["stacks"]
    assert [record["event"] for record in records(here)].count("stacks_dumped") == 1
    assert "process_crashed" in {row["event"] for row in told(here, "errors", ends=1)}
    shown = typed(here, "logs", "--level", "CRITICAL").stdout
    assert "process_crashed" in shown
    assert "runner.py" in shown


def _remove_logs(here: Place) -> None:
    """Remove the folder whole, though its worker may make a file anew at any moment."""
    shutil.rmtree((here.folder / "logs").rename(here.folder / "removed"))


def test_logs_that_were_removed_come_back_and_sighup_reads_the_level_again(here: Place):
    worker = up(here.worker())
    _remove_logs(here)
    (here.folder / ".env").write_text("LOG_LEVEL=DEBUG\nCB_FAIL_MAX=9\n")
    worker.process.send_signal(signal.SIGHUP)
    until(lambda: (here.folder / "logs" / "worker.log").exists() and "signal_received" in events(here), "it is logged")
    effect = events(here)["signal_received"]["effect"]
    assert "LOG_LEVEL is DEBUG" in effect
    assert "needs a restart: CB_FAIL_MAX" in effect
    until(lambda: any(record["level"] == "DEBUG" for record in records(here)), "it logs more")
    worker.process.send_signal(signal.SIGUSR2)
    until(lambda: events(here)["signal_received"]["signal"] == "SIGUSR2", "the other one is logged")
    _remove_logs(here)
    with Path(f"/proc/{worker.process.pid}/fd/2").open("ab") as stderr:  # it has no name any more
        stderr.write(b"*** libfoo: assertion failed\n")
    until((here.folder / "logs" / "worker.crash").exists, "the file for crashes is there again")
    until(lambda: "stderr_output" in events(here), "what a library wrote is in the log")
    worker.process.send_signal(signal.SIGSEGV)
    assert worker.ended() == -signal.SIGSEGV
    up(here.worker())
    assert "Segmentation fault" in events(here)["process_crashed"]["stacks"]


@pytest.mark.parametrize(
    ("settings", "code", "reason"),
    [
        ({"REDIS_PORT": "abc"}, 78, "REDIS_PORT"),
        ({"SINKS": "database,python:nothere:handle"}, 78, "nothere"),
        ({"LOG_LEVEL": "LOUD", "LOG_DIR": "elsewhere"}, 78, "LOG_LEVEL"),
    ],
    ids=["settings", "sink", "other-directory"],
)
@pytest.mark.parametrize("redirected", [True, False], ids=["redirected", "captured"])
def test_a_failed_start_is_a_record_and_a_sentence(
    here: Place, settings: dict[str, str], code: int, reason: str, redirected: bool
):
    here.set(**settings)
    directory = here.folder / settings.get("LOG_DIR", "logs")
    directory.mkdir()
    log = directory / "worker-2.log"
    with log.open("ab") as file:
        done = subprocess.run(
            [sys.executable, str(ROOT / "worker.py"), "--instance", "2"],
            cwd=here.folder,
            env=here.environment,
            stdout=file if redirected else subprocess.PIPE,
            stderr=file if redirected else subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == code
    (failed,) = [each for each in map(json.loads, log.read_text().splitlines()) if each["event"] == "process_failed"]
    assert (failed["level"], failed["exit_code"], failed["error_type"]) == ("CRITICAL", code, "ConfigurationError")
    assert reason in failed["reason"]
    sentence = log.with_suffix(".stderr").read_text() if redirected else done.stderr.decode()
    assert reason in sentence.splitlines()[-1]
    assert "Traceback" not in sentence


def test_a_second_copy_and_a_wrong_option_leave_json_too(here: Place):
    worker = up(here.worker())
    assert here.worker().ended() == 2
    assert here.start("worker.py", "--nonsense", stem="worker").ended() == 64
    assert [record["exit_code"] for record in records(here) if record["event"] == "process_failed"] == [2, 64]
    assert str(worker.process.pid) in events(here)["process_failed"].get("reason", "") + str(records(here))
    assert worker.alive


def test_an_exception_before_the_log_is_open_is_a_record(here: Place, tmp_path: Path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zstandard.py").write_text("raise OSError('no such library')\n")
    here.set(PYTHONPATH=f"{tmp_path / 'broken'}{os.pathsep}{here.environment.get('PYTHONPATH', '')}")
    assert here.worker().ended() == 1
    crashed = events(here)["process_crashed"]
    assert "no such library" in crashed["exception"]


@pytest.mark.parametrize("redirected", [True, False], ids=["redirected", "captured"])
def test_an_installation_that_cannot_be_imported_is_a_record_and_a_sentence(
    here: Place, tmp_path: Path, redirected: bool
):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "structlog.py").write_text("import no_such_module\n")
    here.set(PYTHONPATH=f"{tmp_path / 'broken'}{os.pathsep}{here.environment.get('PYTHONPATH', '')}")
    if redirected:
        assert here.worker(2).ended() == 2
    else:
        (here.folder / "logs").mkdir()
        done = here.run("worker.py", "--instance", "2")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "ModuleNotFoundError: No module named 'no_such_module'" in done.stderr
    (failed,) = records(here, "worker-2")
    assert (failed["event"], failed["exit_code"], failed["error_type"]) == ("process_failed", 2, "ModuleNotFoundError")
    assert "No module named 'no_such_module'; `rm -r .venv` and ./scripts/start.sh" in failed["reason"]
    assert "structlog.py" in failed["exception"]
    assert "no_such_module" in typed(here, "logs", "--level", "CRITICAL").stdout
