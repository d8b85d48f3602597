"""A Ctrl-C is a sentence and 130, whenever it comes; what must not end half waits for its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from email_ingestion.fleet import restart
from email_ingestion.interrupts import hold_interrupts
from email_ingestion.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
# Interrupts itself when it begins to load a library, which is where most of the time of a short command goes.
INTERRUPTED = """
import os, runpy, signal, sys
from importlib.abc import MetaPathFinder
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interruption(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pydantic" or name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interruption())
sys.path.insert(0, os.getcwd())
entry, sys.argv = sys.argv[1], sys.argv[1:]
(runpy.run_path if entry.endswith(".py") else runpy.run_module)(entry, run_name="__main__")
"""


@pytest.fixture(autouse=True)
def _pythons_own_handler() -> Iterator[None]:
    """Whoever has imported a command's entry in this process has made a Ctrl-C its end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("entry", ["email_ingestion", "src.auth.oauth2_gmail", "scripts/backup.py", "producer.py"])
def test_ctrl_c_while_a_command_loads_is_130_and_a_sentence(entry: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, entry, "--help"],
        cwd=ROOT,
        env={"LOG_DIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130
    assert done.stderr == "Interrupted: what was done stays done, and the same command does the rest.\n"


def test_an_interrupt_of_what_must_not_end_half_comes_after_it() -> None:
    done = []

    def work() -> None:
        with hold_interrupts("Interrupted: this first."):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_ignores_interrupts_goes_on_to_ignore_them() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hold_interrupts("Interrupted: this first."):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_that_takes_no_signals_holds_none() -> None:
    done = threading.Event()

    def work() -> None:
        with hold_interrupts("Interrupted: this first."):
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done.is_set()


def test_a_restart_that_is_interrupted_starts_again_what_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Sequence[str]] = []

    def interrupted(_processes: Sequence[psutil.Process], _seconds: float) -> list[psutil.Process]:
        signal.raise_signal(signal.SIGINT)
        return []

    monkeypatch.setattr(restart, "terminate", interrupted)
    monkeypatch.setattr(restart, "DetachedProcess", lambda command, *_: started.append(command))
    found = [restart._Started("worker", psutil.Process(), ("python", "worker.py"), {})]
    with pytest.raises(KeyboardInterrupt):
        restart._stop_and_start(Settings(log_dir=tmp_path), found, lambda _text: None)
    assert started == [("python", "worker.py")]
