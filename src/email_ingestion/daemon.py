"""What every daemon needs: PID file, signals, watchdog, systemd. It knows nothing of mail or HTTP."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from filelock import FileLock, Timeout

from email_ingestion.atomic_files import unreadable, unwritable
from email_ingestion.background import PeriodicThread, start_thread
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.events import Event, LoopFailed, Observe, SignalReceived, StacksDumped, Stalled

if sys.platform == "win32":

    def _is_locked(path: Path) -> bool:
        try:
            with FileLock(path, blocking=False):
                return False
        except Timeout:
            return True

    def raise_descriptor_limit() -> None:
        """Do nothing: Windows has no such limit."""

else:
    import fcntl
    import resource

    def _is_locked(path: Path) -> bool:
        # A shared lock, which filelock does not offer: two processes that ask at the same time must not take each other
        # for the owner.
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def raise_descriptor_limit() -> None:
        """Raise the limit of open files as far as permitted; by default 1,024, and an account needs four or five.

        Raises ConfigurationError when it is too low even so.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(OSError, ValueError):  # macOS states a limit that it does not grant
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if allowed != resource.RLIM_INFINITY and allowed < LEAST_DESCRIPTORS:
            raise ConfigurationError(
                f"this process may open {allowed} files, and needs {LEAST_DESCRIPTORS}: raise the limit where it is "
                "started (`ulimit -n`; LimitNOFILE= of a systemd unit)"
            )


def use_one_malloc_arena() -> None:
    """Make all threads allocate from one heap; call it before there are threads. Only glibc gives each its own.

    A thread cannot reuse memory that was freed in the heap of another: 4 MB of a producer's 107 MB.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8  # mallopt(3)
DESCRIPTORS = 65_536  # what the service files allow too
LEAST_DESCRIPTORS = 64  # a process without accounts has about 30 files open
LOCK_SECONDS = 0.27  # `running_pid` holds the lock for an instant, which must not look like a running copy
LOCK_POLL_SECONDS = 0.03


class PidFile:
    """`pids/<name>.pid`: one decimal PID, for as long as the process lives.

    The lock file beside it, not the number in it, says whether the process runs: the kernel releases the lock even
    after kill -9, so a stale file never blocks and a recycled PID never misleads. The lock file stays: removing it
    would let two processes lock two files of the same name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(_lock_path(path), mode=0o644, thread_local=False)

    def __enter__(self) -> Self:
        """Raises OperationFailed when a copy is running, ConfigurationError when the directory cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_SECONDS, poll_interval=LOCK_POLL_SECONDS)
            self._write()
        except Timeout as error:
            owner = read_pid(self._path) or "unknown"
            raise OperationFailed(f"{self._path.stem} is already running, PID {owner}") from error
        except OSError as error:
            self._lock.release()
            raise unwritable(self._path, error, "set PID_DIR") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if read_pid(self._path) == os.getpid():
            self._path.unlink(missing_ok=True)
        self._lock.release()

    def _write(self) -> None:
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(f"{os.getpid()}\n")
        draft.replace(self._path)


def running_pid(path: Path) -> int | None:
    """Return the PID in `path` if the process that wrote it lives, else None.

    Raises OperationFailed when its lock may not be looked at.
    """
    lock_path = _lock_path(path)
    try:
        return read_pid(path) if lock_path.exists() and _is_locked(lock_path) else None
    except PermissionError as error:
        raise unreadable(lock_path, error) from error


def read_pid(path: Path) -> int | None:
    """Return the number in a PID file, whether or not the process lives; None without one."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


class StopSignal:
    """Set once a stop is requested, by SIGTERM, SIGINT or `request`; further requests change nothing."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self._event = threading.Event()
        self._reason: str | None = None
        self._on_request = on_request

    @property
    def reason(self) -> str | None:
        """The reason of the first request; None as long as there is none."""
        return self._reason

    def request(self, reason: str) -> None:
        """Request a stop; the first reason is kept."""
        if self._reason is None:
            self._reason = reason
        self._event.set()
        self._on_request()

    def is_set(self) -> bool:
        """Return whether a stop was requested."""
        return self._event.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep until a stop is requested or `seconds` have passed; return whether it is requested."""
        return self._event.wait(seconds)


# What asks a process to end: by a person, by a host that loses its power, by a limit of CPU time.
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGBREAK", "SIGQUIT", "SIGPWR", "SIGXCPU")
# What would end a process without a word, and means nothing to this program. Those of a crash are faulthandler's.
IGNORED_SIGNALS = ("SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGTRAP", "SIGSTKFLT", "SIGEMT", "SIGRTMIN")


def handle_signals(
    stop: StopSignal,
    observe: Observe,
    crash_file: Callable[[], IO[bytes] | None] = lambda: None,
    reload: Callable[[], str] = lambda: "nothing to reload",
) -> None:
    """Let signals do what operators expect. Call it in the main thread.

    SIGTERM, SIGINT and their like request a stop, SIGUSR1 dumps the stacks of all threads, SIGHUP calls `reload`, which
    returns what it did. Every other that would end the process is announced and does nothing. A crash in C code leaves
    its stacks in the file that `crash_file` returns, by default on stderr.

    A Python handler runs in the main thread between two of its steps: perhaps while that thread holds the lock that the
    handler needs, or, if the signal came just before the thread fell asleep, not before it wakes. So the handlers do
    nothing: the interpreter writes the signal's number to a socket, in C, and a thread of ours does the rest. As long
    as no such thread can be started, the main thread reads the socket itself.
    """
    inbox, outbox = socket.socketpair()
    outbox.settimeout(0)
    signal.set_wakeup_fd(outbox.detach(), warn_on_full_buffer=False)  # which keeps it as long as the process lives
    for name in ("SIGUSR1", "SIGHUP", *STOP_SIGNALS, *IGNORED_SIGNALS):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)
    write_crashes_to(crash_file())

    def react(number: int) -> None:
        name = signal.Signals(number).name
        try:
            if name in STOP_SIGNALS:
                stop.request(name)
            else:
                observe(_answer(name, reload))
                if name == "SIGUSR1" and (file := crash_file()):
                    file.truncate(0)  # the same stacks, for the case that this thread does not run
        except Exception as error:  # noqa: BLE001 - without this thread the process could not be stopped
            observe(LoopFailed("signals", error))

    def stop_is_requested() -> bool:
        _read_signals(inbox, react, wait=False)
        return stop.is_set()

    make = partial(threading.Thread, target=_read_signals, args=(inbox, react), name="signals", daemon=True)
    start_thread(make, lambda error: observe(LoopFailed("signals", error)), stop_is_requested)


def _read_signals(inbox: socket.socket, react: Callable[[int], None], *, wait: bool = True) -> None:
    """React to the signals whose numbers come in, those that are there or for ever."""
    while (wait or select.select([inbox], [], [], 0)[0]) and (number := inbox.recv(1)):
        react(number[0])


def _answer(name: str, reload: Callable[[], str]) -> Event:
    """Do what a signal that asks for no stop asks for; return what is to be announced."""
    if name == "SIGUSR1":
        return StacksDumped(thread_stacks())
    return SignalReceived(name, reload() if name == "SIGHUP" else "nothing: it means nothing here")


def write_crashes_to(crash_file: IO[bytes] | None) -> None:
    """Let a crash in C code, and SIGUSR1, write the stacks of all threads into a file, by default to stderr."""
    faulthandler.enable(crash_file or sys.stderr)
    if sys.platform != "win32":
        # From C as well, for the case that no thread of ours gets to run.
        faulthandler.register(signal.SIGUSR1, crash_file or sys.stderr, all_threads=True, chain=True)


def thread_stacks() -> str:
    """Return the stack of every Python thread, with the thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - the documented way to see them
    )


class Watchdog:
    """A thread that announces every stalled loop once, with the stacks, and sends heartbeats while no loop is stalled.

    `stalled` maps the names of the stalled loops to their seconds of silence.
    """

    def __init__(
        self,
        stalled: Callable[[], Mapping[str, float]],
        observe: Observe,
        heartbeat: Callable[[], None] = lambda: None,
        seconds: float = 5.0,
    ) -> None:
        self._stalled = stalled
        self._observe = observe
        self._heartbeat = heartbeat
        self._seconds = seconds
        self._announced: frozenset[str] = frozenset()
        self._thread = PeriodicThread("watchdog", seconds, self.check, immediate=False, on_error=self._failed)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._thread.close(self._seconds)

    def _failed(self, error: Exception) -> None:
        self._observe(LoopFailed("watchdog", error, self._seconds))

    def check(self) -> None:
        """Check the loops once."""
        stalled = self._stalled()
        for loop in stalled.keys() - self._announced:
            self._observe(Stalled(loop, stalled[loop]))
        if stalled.keys() - self._announced:
            self._observe(StacksDumped(thread_stacks()))
        self._announced = frozenset(stalled)
        if not stalled:
            self._heartbeat()


def notify_systemd(socket_path: str | None, state: str) -> None:
    """Send systemd `READY=1`, `STOPPING=1` or `WATCHDOG=1` (sd_notify(3)); do nothing without a socket or listener."""
    if not socket_path or sys.platform == "win32":
        return
    address = "\0" + socket_path[1:] if socket_path.startswith("@") else socket_path  # abstract namespace
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        speaker.sendto(state.encode(), address)
