"""One process among others: who runs, how it stops, what it says when it hangs."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.app.runner import _announce_dead_threads
from email_ingestion.daemon import PidFile, StopSignal, Watchdog, notify_systemd, raise_descriptor_limit, running_pid
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.events import Event, LoopFailed, StacksDumped, Stalled

ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import sys
from pathlib import Path
from email_ingestion.daemon import PidFile
with PidFile(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

SERVE = """
import sys
from pathlib import Path
from email_ingestion.ops.logs import configure_logs
from email_ingestion.ops.event_log import EventLogger
from email_ingestion.ops.status_records import Identity
from email_ingestion.daemon import StopSignal, handle_signals
configure_logs(Identity("worker", "worker-1", "1"), Path(sys.argv[1]), "INFO", "json")
stop = StopSignal()
log_event = EventLogger()
def observe(event):
    log_event(event)
    print(type(event).__name__, flush=True)
handle_signals(stop, observe)
def waiting_for_mail():
    print("ready", flush=True)
    stop.wait()
waiting_for_mail()
print(stop.reason, flush=True)
sys.stdin.read()
print("drained", flush=True)
"""

BUSY_IN_C = """
import hashlib, os, threading
from email_ingestion.daemon import StopSignal, handle_signals
stop = StopSignal()
handle_signals(stop, lambda event: None)
def tell():
    print("ready", flush=True)
    stop.wait()
    print(stop.reason, flush=True)
    os._exit(0)
threading.Thread(target=tell).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""

Child = subprocess.Popen[str]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pids" / "worker.pid"


def child(code: str, argument: Path) -> Child:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(argument)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(process: Child) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.fixture
def holder(path: Path) -> Iterator[Child]:
    with child(HOLD, path) as process:
        assert line(process) == "held"
        yield process
        process.kill()


def test_the_file_holds_one_decimal_pid_for_as_long_as_the_process_lives(path: Path) -> None:
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert running_pid(path) == os.getpid()
    assert not path.exists()
    assert running_pid(path) is None


def test_a_second_copy_is_refused_and_leaves_the_first_alone(path: Path, holder: Child) -> None:
    with pytest.raises(OperationFailed, match=rf"^worker is already running, PID {holder.pid}$"), PidFile(path):
        pass
    assert path.read_text() == f"{holder.pid}\n"
    assert running_pid(path) == holder.pid


def test_after_kill_9_the_file_stays_readable_and_blocks_nobody(path: Path, holder: Child) -> None:
    holder.kill()
    holder.wait()
    assert path.read_text() == f"{holder.pid}\n"
    assert running_pid(path) is None
    with PidFile(path):
        assert running_pid(path) == os.getpid()


def test_a_clean_end_removes_the_file(path: Path, holder: Child) -> None:
    holder.communicate("")
    assert holder.returncode == 0
    assert not path.exists()


def test_a_file_that_is_not_ours_any_more_is_left_alone(path: Path) -> None:
    with PidFile(path):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_a_recycled_pid_in_a_stale_file_misleads_nobody(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(f"{os.getpid()}\n")
    assert running_pid(path) is None


def test_two_that_ask_at_once_do_not_take_each_other_for_the_process(path: Path, holder: Child) -> None:
    holder.kill()
    holder.wait()
    with path.with_suffix(".lock").open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert running_pid(path) is None


def test_a_directory_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="set PID_DIR"), PidFile(tmp_path / "file" / "worker.pid"):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop_and_a_second_one_is_harmless(tmp_path: Path, number: signal.Signals) -> None:
    with child(SERVE, tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(number)
        assert line(process) == number.name
        process.send_signal(number)
        out, err = process.communicate("", timeout=10)
    assert (process.returncode, out, err) == (0, "drained\n", "")


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGHUP])
def test_a_signal_that_asks_for_nothing_is_logged_and_ends_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with child(SERVE, tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(number)
        assert line(process) == "SignalReceived"
        process.send_signal(signal.SIGTERM)
        assert process.communicate("", timeout=10)[0] == "SIGTERM\ndrained\n"
    (record,) = [json.loads(text) for text in (tmp_path / "worker.log").read_text().splitlines()]
    assert (record["event"], record["signal"]) == ("signal_received", number.name)


def test_a_signal_is_heard_while_the_main_thread_runs_no_python(tmp_path: Path) -> None:
    with child(BUSY_IN_C, tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.communicate(timeout=10) == ("SIGTERM\n", "")
        finally:
            process.kill()


def test_sigusr1_writes_the_stacks_of_all_threads_to_the_log(tmp_path: Path) -> None:
    with child(SERVE, tmp_path) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        assert line(process) == "StacksDumped"
        process.send_signal(signal.SIGTERM)
        process.communicate("", timeout=10)
    (record,) = [json.loads(text) for text in (tmp_path / "worker.log").read_text().splitlines()]
    assert record["event"] == "stacks_dumped"
    assert "thread MainThread:" in record["stacks"]
    assert "waiting_for_mail" in record["stacks"]
    assert "thread signals:" in record["stacks"]


def test_the_first_reason_for_a_stop_is_kept() -> None:
    stop = StopSignal()
    assert (stop.is_set(), stop.reason, stop.wait(0)) == (False, None, False)
    stop.request("drained")
    stop.request("SIGTERM")
    assert (stop.is_set(), stop.reason, stop.wait(0)) == (True, "drained", True)


def test_the_watchdog_announces_a_stall_once_and_beats_only_while_all_loops_turn() -> None:
    seen: list[Event] = []
    beats: list[int] = []
    stalled: dict[str, float] = {}
    dog = Watchdog(lambda: dict(stalled), seen.append, lambda: beats.append(1))
    dog.check()
    stalled["consume"] = 31.0
    dog.check()
    dog.check()
    assert [type(event) for event in seen] == [Stalled, StacksDumped]
    assert seen[0] == Stalled("consume", 31.0)
    assert len(beats) == 1
    stalled.clear()
    dog.check()
    stalled["consume"] = 40.0
    dog.check()
    assert seen[2] == Stalled("consume", 40.0)
    assert len(beats) == 2


def test_the_watchdog_looks_by_itself() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        name = f"email-ingestion-test-{os.getpid()}"
        systemd.bind("\0" + name)
        systemd.settimeout(5)
        dog = Watchdog(dict, lambda _event: None, lambda: notify_systemd("@" + name, "WATCHDOG=1"), seconds=0.01)
        dog.start()
        assert systemd.recv(100) == b"WATCHDOG=1"
        dog.close()


def test_systemd_is_told_through_its_socket_and_nobody_minds_its_absence(tmp_path: Path) -> None:
    notify_systemd(None, "READY=1")
    notify_systemd(str(tmp_path / "nobody"), "READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        notify_systemd(str(tmp_path / "notify"), "READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_the_limit_of_open_files_is_raised_as_far_as_allowed_and_never_lowered():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        raise_descriptor_limit()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert raised == (65_536 if before[1] == resource.RLIM_INFINITY else min(65_536, before[1]), before[1])


def test_a_thread_that_ends_with_an_error_is_announced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    seen: list[Event] = []
    _announce_dead_threads(seen.append)
    thread = threading.Thread(target=lambda: {}["Dear customer"], name="keep-0")
    thread.start()
    thread.join()
    (failure,) = seen
    assert isinstance(failure, LoopFailed)
    assert (failure.loop, type(failure.error), failure.retry_in) == ("keep-0", KeyError, None)


@pytest.mark.parametrize("main", ["producer.py", "worker.py"])
def test_a_start_that_may_open_hardly_a_file_is_refused_with_what_to_raise(tmp_path: Path, main: str):
    limited = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    account = {"IMAP_USER": "me@example.com", "IMAP_AUTH": "password", "IMAP_PASSWORD": "x"}
    done = subprocess.run(
        [sys.executable, "-c", limited, sys.executable, str(ROOT / main)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **account},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 78, said
    assert "may open 16 files" in said
    assert "LimitNOFILE" in said
    assert "Traceback" not in said
