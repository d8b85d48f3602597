"""Faults of the servers around us, of networks, disks and folders. Each begins when its context is entered."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress

import redis

from bench.fault_schedules.process_faults import Case, lasting
from bench.fault_schedules.servers import DOWN, FROZEN, FaultyDovecot, FaultyPostgres, FaultyRedis
from bench.fault_schedules.stack import Stack
from gmail_sandbox.faults import Option

PAUSE_SECONDS = 2.0  # of Redis, again and again

# -- Redis


@contextmanager
def redis_killed(case: Case) -> Iterator[None]:
    """SIGKILL; its data is there afterwards, or none, or all but the last of it."""
    with lasting(case.stack.redis, DOWN):
        if case.manner == "emptied":
            case.stack.redis.server.forget()
        elif case.manner == "power_cut":
            size = case.stack.redis.server.aof_bytes()
            case.stack.redis.server.cut_aof(case.rng.randint(int(size * 0.9), size))
        yield


@contextmanager
def redis_frozen(case: Case) -> Iterator[None]:
    """It takes connections and answers nothing."""
    with lasting(case.stack.redis, FROZEN):
        yield


@contextmanager
def redis_paused(case: Case) -> Iterator[None]:
    """It answers no command, or none that writes, for two seconds, again and again."""
    ended = threading.Event()

    def pause() -> None:
        while not ended.wait(PAUSE_SECONDS / 2):
            with suppress(redis.RedisError), case.stack.redis.client() as client:
                client.client_pause(int(PAUSE_SECONDS * 1000), all=case.manner == "all")

    thread = threading.Thread(target=pause, daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()


@contextmanager
def redis_flushed(case: Case) -> Iterator[None]:
    """FLUSHALL by somebody else."""
    with suppress(redis.RedisError), case.stack.redis.client() as client:
        client.flushall()
    yield


@contextmanager
def redis_restored(case: Case) -> Iterator[None]:
    """What it held at the beginning comes back."""
    copy = case.stack.folder / f"redis-copy-{time.monotonic_ns()}"
    shutil.copytree(case.stack.redis.server.directory, copy)
    yield
    case.stack.redis.replace_data(lambda: case.stack.redis.server.restore_from(copy))


@contextmanager
def redis_refuses(case: Case) -> Iterator[None]:
    """A command is not allowed, or no write is."""
    with lasting(
        case.stack.redis,
        case.manner if case.manner in (FaultyRedis.READONLY, FaultyRedis.OUT_OF_MEMORY) else f"no {case.manner}",
    ):
        yield


# -- networks


def network(name: str) -> Callable[[Case], AbstractContextManager[None]]:
    """Return the fault of a bad network on the way to a server."""

    @contextmanager
    def bad(case: Case) -> Iterator[None]:
        begun = time.monotonic()
        case.stack.networks[name].begin(case.manner)
        try:
            with case.stack.unwritable() if name == "postgres" else nullcontext():
                yield
        finally:
            case.stack.networks[name].end(case.manner)
            if name == "webhook":  # the answer did not come back, though the receiver had taken it
                case.stack.doubt(begun - 1, time.monotonic() + 1)

    return bad


# -- mailbox


@contextmanager
def gmail(case: Case) -> Iterator[None]:
    """One of the faults of the sandbox."""
    fault, options = GMAIL[case.manner]
    case.stack.sandbox.arm_fault(fault, count=None if case.manner in LASTING_AT_GMAIL else "default", **options)
    if case.manner in ("token_503", "token_hang"):
        case.stack.sandbox.arm_fault("stale_token", until_refresh=True)
        case.stack.sandbox.arm_fault("session_expiry")
    yield
    case.stack.sandbox.clear_faults(fault)


GMAIL: Mapping[str, tuple[str, dict[str, Option]]] = {
    "session_expiry": ("session_expiry", {}),
    "drop_mid_literal": ("drop_mid_literal", {"after_bytes": 1500}),
    "uidvalidity_reset": ("uidvalidity_reset", {}),
    "trash_and_back": ("trash_and_back", {}),
    "partial_fetch": ("partial_fetch", {"missing": 2}),
    "refused": ("refuse_connections", {"drop_sessions": True}),
    "greeting_bye": ("greeting_bye", {}),
    "throttled": ("throttled", {"delay_ms": 300}),
    "unavailable": ("unavailable", {}),
    "trickle": ("trickle", {"bytes": 500, "interval_ms": 20}),
    "token_503": ("token_503", {}),
    "token_hang": ("token_hang", {}),
}
LASTING_AT_GMAIL = {"refused", "greeting_bye", "throttled", "unavailable", "trickle", "token_503", "token_hang"}


@contextmanager
def dovecot_killed(case: Case) -> Iterator[None]:
    """SIGKILL of all its processes."""
    with lasting(_dovecot(case.stack), DOWN):
        yield


@contextmanager
def dovecot_frozen(case: Case) -> Iterator[None]:
    """SIGSTOP of all its processes."""
    with lasting(_dovecot(case.stack), FROZEN):
        yield


@contextmanager
def dovecot_restored(case: Case) -> Iterator[None]:
    """The mailbox of some moments ago comes back: its UIDs are given out again under the same UIDVALIDITY."""
    copy = case.stack.folder / f"mailbox-copy-{time.monotonic_ns()}"
    _dovecot(case.stack).copy_to(copy)
    yield
    _dovecot(case.stack).restore_from(copy)


def _dovecot(stack: Stack) -> FaultyDovecot:
    assert stack.dovecot  # noqa: S101 - else it is not drawn
    return stack.dovecot


# -- database and disk


@contextmanager
def postgres_killed(case: Case) -> Iterator[None]:
    """SIGKILL of all its processes."""
    with case.stack.unwritable(), lasting(_postgres(case.stack), DOWN):
        yield


@contextmanager
def postgres_frozen(case: Case) -> Iterator[None]:
    """SIGSTOP of all its processes."""
    with case.stack.unwritable(), lasting(_postgres(case.stack), FROZEN):
        yield


@contextmanager
def postgres_readonly(case: Case) -> Iterator[None]:
    """As a standby, or a full disk at some hosters."""
    with case.stack.unwritable(), lasting(_postgres(case.stack), FaultyPostgres.READONLY):
        yield


@contextmanager
def postgres_restored(case: Case) -> Iterator[None]:
    """A failover that lost commits: the database is what it was some moments ago."""
    begun = time.monotonic()
    copy = case.stack.folder / f"database-copy-{time.monotonic_ns()}"
    _postgres(case.stack).copy_to(copy)
    yield
    _postgres(case.stack).restore_from(copy)
    case.stack.doubt(begun - 5, time.monotonic() + 1)  # what was lost is handed over again


def _postgres(stack: Stack) -> FaultyPostgres:
    assert stack.postgres  # noqa: S101 - else it is not drawn
    return stack.postgres


@contextmanager
def sqlite_locked(case: Case) -> Iterator[None]:
    """A foreign process holds the write lock."""
    address = f"file:{case.stack.data}/email_ingestion.db?mode=rw"
    try:
        connected = sqlite3.connect(address, uri=True, timeout=1, isolation_level=None)
    except sqlite3.OperationalError:  # it has just been removed
        yield
        return
    with closing(connected) as foreign, case.stack.unwritable():
        with suppress(sqlite3.OperationalError):
            foreign.execute("BEGIN IMMEDIATE")
        yield
        with suppress(sqlite3.OperationalError):
            foreign.execute("ROLLBACK")


@contextmanager
def sqlite_removed(case: Case) -> Iterator[None]:
    """Its -wal is left."""
    (case.stack.data / "email_ingestion.db").unlink(missing_ok=True)
    case.stack.doubt(0.0, time.monotonic() + 5)  # nobody knows any more what was handed over
    yield


@contextmanager
def disk_full(case: Case) -> Iterator[None]:
    """A worker's files cannot grow, or nobody's."""
    limited = list(case.stack.processes.values()) if case.manner == "everybody" else case.stack.workers
    was = {}
    for process in limited:
        with suppress(OSError):
            was[process.pid] = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, was[process.pid][1]))
    with case.stack.unwritable():
        yield
    for pid, limits in was.items():
        with suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def blobs_away(case: Case) -> Iterator[None]:
    """Their disk is not mounted, with or without a folder in its place."""
    blobs, aside = case.stack.data / "blobs", case.stack.data / "blobs-aside"
    if not blobs.is_dir():
        yield
        return
    blobs.rename(aside)
    if case.manner == "empty":
        blobs.mkdir()
    yield
    if blobs.is_dir():  # what was written meanwhile comes to the others, as an operator would do it
        for path in sorted(blobs.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                target = aside / path.relative_to(blobs)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        blobs.rename(case.stack.data / f"blobs-{time.monotonic_ns()}")
    aside.rename(blobs)


@contextmanager
def folder_removed(case: Case) -> Iterator[None]:
    """`logs` or `pids` are removed while everything runs."""
    shutil.rmtree(case.stack.here / case.manner, ignore_errors=True)
    yield
