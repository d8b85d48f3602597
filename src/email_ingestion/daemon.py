"""A process among others on its machine: PID file, signals, watchdog, systemd. It knows nothing of mail or HTTP."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.events import Observe, StacksDumped, Stalled

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, shared: bool) -> None:
        del shared  # Windows has no such lock
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def allow_descriptors() -> None:
        """Windows has no such limit."""

else:
    import fcntl
    import resource

    def _lock(descriptor: int, *, shared: bool) -> None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def allow_descriptors() -> None:
        """Raise the limit of open files as far as we may: 1,024 by default, and an account needs four or five."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(OSError, ValueError):  # macOS states a limit that it does not grant
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def share_one_heap() -> None:
    """Have all threads allocate from one heap, before there are threads; only glibc gives each its own.

    What one thread frees there no other takes: 4 MB of a producer's 107 when two of them pass mail on.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8  # mallopt(3)
DESCRIPTORS = 65_536  # what the service files allow too
LOCK_TRIES = 10
LOCK_PAUSE = 0.03  # seconds; `pid_alive` holds the lock for an instant, which must not look like a running copy


class PidFile:
    """`pids/<name>.pid`: one decimal PID, for as long as the process lives.

    The lock beside it, not the number in it, says whether somebody runs: the kernel drops it even after kill -9, so a
    stale file never blocks and a recycled PID never misleads. The lock file stays: removing it would let two processes
    lock two files of the same name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Raises OperationFailed when a copy is running, ConfigurationError when the directory cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = _locked(_lock_path(self._path))
            if self._descriptor is None:
                raise OperationFailed(f"{self._path.stem} is already running, PID {_read(self._path) or 'unknown'}")
            self._write()
        except OSError as error:
            self._release()
            raise ConfigurationError(f"cannot write {self._path}: {error.strerror}; set PID_DIR") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _read(self._path) == os.getpid():
            self._path.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self) -> None:
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(f"{os.getpid()}\n")
        draft.replace(self._path)


def pid_alive(path: Path) -> int | None:
    """The PID in `path` if the process that wrote it lives, else None.

    Asks with a shared lock: two that ask at once must not take each other for the process.
    """
    lock_path = _lock_path(path)
    if not lock_path.exists():
        return None
    descriptor = _locked(lock_path, tries=1, shared=True)
    if descriptor is None:
        return _read(path)
    os.close(descriptor)
    return None


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _locked(path: Path, tries: int = LOCK_TRIES, *, shared: bool = False) -> int | None:
    """A descriptor that holds the lock, or None when somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for attempt in range(tries):
        try:
            _lock(descriptor, shared=shared)
        except OSError:
            if attempt + 1 < tries:
                time.sleep(LOCK_PAUSE)
        else:
            return descriptor
    os.close(descriptor)
    return None


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


class StopSignal:
    """Set once a stop was asked for, by SIGTERM, SIGINT or `request`; asking again changes nothing."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reason: str | None = None

    @property
    def reason(self) -> str | None:
        """Why, None as long as nobody asked."""
        return self._reason

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason is kept."""
        if self._reason is None:
            self._reason = reason
        self._event.set()

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep until a stop is asked for or `seconds` have passed; whether it was."""
        return self._event.wait(seconds)


def listen_for_signals(stop: StopSignal, observe: Observe) -> None:
    """SIGTERM and SIGINT ask for a stop, SIGUSR1 for the stacks of all threads. Main thread only.

    A handler in Python runs in the main thread, between two of its steps: where that thread holds the lock of the very
    object to be told, or only once it wakes, when the signal came just before it fell asleep. So nothing is done there:
    the interpreter writes the number to a socket while it takes the signal, in C, and a thread does the rest.
    """
    inbox, outbox = socket.socketpair()
    outbox.settimeout(0)
    signal.set_wakeup_fd(outbox.detach(), warn_on_full_buffer=False)  # which keeps it as long as the process lives
    for name in ("SIGTERM", "SIGINT", "SIGBREAK", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)
    faulthandler.enable()  # a crash in C code leaves its stacks on stderr
    if sys.platform != "win32":
        # Also at once and from C, for the case that no thread of ours gets to run.
        faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)

    def attend() -> None:
        while number := inbox.recv(1):
            name = signal.Signals(number[0]).name
            if name == "SIGUSR1":
                observe(StacksDumped(thread_stacks()))
            else:
                stop.request(name)

    threading.Thread(target=attend, name="signals", daemon=True).start()


def thread_stacks() -> str:
    """The stack of every Python thread, by name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - the documented way to see them
    )


class Watchdog:
    """A thread that announces each loop that falls silent, once and with the stacks, and `beat`s while all turn.

    `stalled` returns the silent loops with their seconds of silence.
    """

    def __init__(
        self,
        stalled: Callable[[], Mapping[str, float]],
        observe: Observe,
        beat: Callable[[], None] = lambda: None,
        every: float = 5.0,
    ) -> None:
        self._stalled = stalled
        self._observe = observe
        self._beat = beat
        self._every = every
        self._announced: frozenset[str] = frozenset()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(self._every)

    def look(self) -> None:
        """One look at the loops."""
        stalled = self._stalled()
        for loop in stalled.keys() - self._announced:
            self._observe(Stalled(loop, stalled[loop]))
        if stalled.keys() - self._announced:
            self._observe(StacksDumped(thread_stacks()))
        self._announced = frozenset(stalled)
        if not stalled:
            self._beat()

    def _watch(self) -> None:
        while not self._closed.wait(self._every):
            self.look()


def notify(socket_path: str | None, state: str) -> None:
    """Tell systemd `READY=1`, `STOPPING=1` or `WATCHDOG=1` (sd_notify(3)); nothing without a socket or a listener."""
    if not socket_path or sys.platform == "win32":
        return
    address = "\0" + socket_path[1:] if socket_path.startswith("@") else socket_path  # abstract namespace
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        speaker.sendto(state.encode(), address)
