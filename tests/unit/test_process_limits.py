"""What is said of the limits of processes, and how a process that is given no thread waits, tells, and ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from email_ingestion import background
from email_ingestion.background import BackgroundThread, PeriodicThread, start_now, start_thread
from email_ingestion.child_process import ChildProcess
from email_ingestion.cli.exit_codes import leave
from email_ingestion.errors import ThreadUnavailable, is_shortage, is_thread_shortage, is_unforeseen
from email_ingestion.events import LoopFailed
from email_ingestion.ops.process_state import ProcessState
from email_ingestion.process_limits import control_groups, describe_thread_limits
from email_ingestion.web.jobs import Jobs
from email_ingestion.web.readings import Source

PATIENCE = 60.0


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python start no thread, as where a limit of processes is reached."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    name = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
    monkeypatch.setattr(threading, name, refuse)


def test_the_limits_of_a_unit_or_container_are_named_with_what_is_used(tmp_path: Path):
    process, groups = tmp_path / "self", tmp_path / "groups"
    process.mkdir()
    for lines, version_2 in (("0::/app/unit\n", True), ("9:memory:/x\n4:cpu,pids:/app/unit\n", False)):
        (process / "cgroup").write_text(lines)
        root = groups if version_2 else groups / "pids"
        for folder, most, used in ((root / "app" / "unit", "max", "3"), (root / "app", "12", "11")):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "pids.max").write_text(f"{most}\n")
            (folder / "pids.current").write_text(f"{used}\n")
        expected = [(root / "app" / "unit", version_2), (root / "app", version_2), (root, version_2)]
        assert list(control_groups("pids", process, groups)) == expected
        assert f"pids.max of {root / 'app'} is 12, and 11 are there" in describe_thread_limits(process, groups)
    assert list(control_groups("pids", tmp_path / "no-linux", groups)) == []


@pytest.mark.usefixtures("no_thread")
def test_no_thread_is_a_fault_of_the_surroundings_which_names_the_limit():
    with pytest.raises(ThreadUnavailable, match=r"no thread can be started \(.+\)") as caught:
        start_now(threading.Thread())
    for error in (caught.value, caught.value.__cause__):
        assert error is not None
        assert is_shortage(error)
        assert not is_unforeseen(error)
    assert is_unforeseen(RuntimeError("something else"))
    assert not is_thread_shortage(RuntimeError("something else"))


@pytest.mark.usefixtures("no_thread")
def test_a_loop_without_a_thread_is_told_as_what_it_is_wherever_it_was_raised():
    state = ProcessState.__new__(ProcessState)
    state._ticks, state.loop_failures = (lambda: 0.0), {}
    try:
        threading.Thread().start()
    except RuntimeError as error:
        state.loop_failed(LoopFailed("alerts", error))
    reason = state.loop_failures["alerts"].reason
    assert "no thread can be started" in reason
    assert "nobody foresaw" not in reason


@pytest.mark.usefixtures("no_thread")
def test_a_process_that_ends_waits_for_no_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(background, "_process_ends", threading.Event())
    errors: list[Exception] = []

    def fail(error: Exception) -> None:
        errors.append(error)
        background.stop_waiting_for_threads()

    assert start_thread(threading.Thread, fail, lambda: False).ident is None
    periodic = PeriodicThread("periodic-of-the-test", 1.0, lambda: None, immediate=True, on_error=errors.append)
    periodic.start()
    periodic.close(None)
    assert [type(error) for error in errors] == [ThreadUnavailable]


def test_a_job_that_was_refused_for_want_of_a_thread_never_runs(monkeypatch: pytest.MonkeyPatch):
    jobs, ran = BackgroundThread("jobs-of-the-test", idle=0.0), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _refuse)
        with pytest.raises(ThreadUnavailable):
            jobs.submit(partial(ran.append, "refused"))
    jobs.submit(partial(ran.append, "taken")).result(PATIENCE)
    assert ran == ["taken"]


def test_jobs_run_at_once_as_far_as_there_are_threads(monkeypatch: pytest.MonkeyPatch):
    jobs, all_here = BackgroundThread("jobs-of-the-test", parallel=3), threading.Barrier(3)
    for future in [jobs.submit(partial(all_here.wait, PATIENCE)) for _ in range(3)]:
        future.result(PATIENCE)
    few = BackgroundThread("jobs-of-the-test", parallel=3)
    hold = threading.Event()
    first = few.submit(partial(hold.wait, PATIENCE))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _refuse)
        second = few.submit(lambda: "after the first")
    hold.set()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) == "after the first"


@pytest.mark.usefixtures("no_thread")
def test_a_page_and_an_order_of_the_web_are_tried_again():
    source = Source("of the test", lambda: 1, max_age=0.0)
    for _ in range(2):  # a look that could not begin is not under way for ever
        assert "no thread can be started" in source.get().problem
    jobs = Jobs()
    for _ in range(2):
        with pytest.raises(ThreadUnavailable):
            jobs.start("of the test", "somebody", "/", lambda _: "done")


@pytest.mark.usefixtures("no_thread")
def test_a_child_whose_output_nobody_can_read_is_one_that_cannot_be_started():
    child = ChildProcess("email_ingestion.sinks.python_process", "os", "getpid", answer=str, on_output=print)
    try:
        with pytest.raises(OSError, match="no thread can be started"):
            child.start([], PATIENCE, 1_000_000)
    finally:
        child.kill()
        child.close()


def test_a_command_says_what_is_lacking(capsys: pytest.CaptureFixture[str]):
    class Command:
        def main(self, **_: object) -> int:
            raise RuntimeError("can't start new thread")

    with pytest.raises(SystemExit):
        leave(Command())
    said = capsys.readouterr().err
    assert "no thread can be started" in said
    assert "nobody foresaw" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_signal_to_stop_is_obeyed_before_there_is_a_thread_for_signals():
    program = """
import os, signal, threading
from email_ingestion import background
from email_ingestion.daemon import StopSignal, handle_signals

def refuse(self):
    raise RuntimeError("can't start new thread")

def observe(event):
    print(type(event.error).__name__)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread.start = refuse
stop = StopSignal(background.stop_waiting_for_threads)
handle_signals(stop, observe)
print(stop.reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stdout.split() == ["ThreadUnavailable", "SIGTERM"], done.stderr


def _refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
