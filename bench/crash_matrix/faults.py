"""Faults of our processes, Redis, mailbox, SQLite and time. A fault ends with the surroundings as they were before it.

Every `strike` gets the world and the round's own random numbers. Mail arrives in portions; before each blow the next
portion is delivered and a random part of the time passes in which it flows.
"""

from __future__ import annotations

import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random

from bench.crash_matrix.clock import SettableClock
from bench.crash_matrix.world import CREW, LEASE, Unwell, World

BLOWS = 3
LOCK_WAIT = 10.0  # seconds SQLite waits for another process's transaction in the product
REDIS_WAIT = 6.0  # seconds the product waits for an answer of Redis
SHRINK_TRIES = 100
OUTAGE_LONG = 60.0
EVERYSEC = 1.0  # seconds of writes an AOF with `appendfsync everysec` may lose


def blows(world: World, rng: Random, most: int = BLOWS) -> Iterator[None]:
    """Come back for each blow, at a random instant after more mail has arrived."""
    for _ in range(most):
        if world.more():
            world.instant(rng)
        yield


# -- our own processes


def producer_killed(world: World, rng: Random) -> None:
    """SIGKILL, and a supervisor's restart."""
    for _ in blows(world, rng):
        world.restart("producer")


def signals(world: World, rng: Random) -> None:
    """Signals that ask for nothing, or to open the logs again, must end nothing."""
    for _ in blows(world, rng):
        for name in CREW:
            world.signal(name, rng.choice([signal.SIGHUP, signal.SIGUSR2, signal.SIGALRM, signal.SIGPROF]))


def worker_killed(world: World, rng: Random) -> None:
    """As producer_killed."""
    for _ in blows(world, rng):
        world.restart("worker")


def producer_frozen(world: World, rng: Random) -> None:
    """SIGSTOP, mail goes on arriving, SIGCONT."""
    for _ in blows(world, rng, 2):
        _freeze(world, "producer", rng.uniform(0.2, 2))


def worker_frozen(world: World, rng: Random) -> None:
    """One of two workers is stopped for longer than its lease: the other takes over, then both believe it is theirs."""
    _freeze_after_mail(world, rng, rng.choice(["worker", "worker-2"]), rng.uniform(LEASE + 0.5, LEASE + 2))


def _freeze_after_mail(world: World, rng: Random, name: str, seconds: float) -> None:
    for _ in blows(world, rng, 1):
        _freeze(world, name, seconds)


def _freeze(world: World, name: str, seconds: float) -> None:
    world.signal(name, signal.SIGSTOP)
    time.sleep(seconds)
    world.signal(name, signal.SIGCONT)


def two_producers(world: World, rng: Random) -> None:
    """Both read the same mailbox; one of them, either, is killed in the middle of it."""
    for number, _ in enumerate(blows(world, rng)):
        if number == 1:
            world.restart(rng.choice(["producer", "rival"]))


def two_workers(world: World, rng: Random) -> None:
    """One of two dies and stays away until its lease has run out."""
    victim = rng.choice(["worker", "worker-2"])
    for number, _ in enumerate(blows(world, rng)):
        if number == 0:
            world.kill(victim)
        time.sleep(LEASE / 2)
    world.start(victim)
    world.up(victim)


# -- Redis


def redis_killed(world: World, rng: Random) -> None:
    """SIGKILL and restart with its data."""
    for _ in blows(world, rng):
        world.redis.kill()
        time.sleep(rng.uniform(0, 0.5))
        world.redis.start()


def redis_power_cut(world: World, rng: Random) -> None:
    """SIGKILL, and what was written in the last second is not on the disk: the AOF ends at a random byte of it."""
    for _ in blows(world, rng, 2):
        synced = world.redis.aof_bytes()
        world.more()
        time.sleep(rng.uniform(0, EVERYSEC))
        world.redis.kill()
        world.redis.cut_aof(rng.randint(synced, world.redis.aof_bytes()))
        world.redis.start()
        # Redis 7.0.15 drops a transaction that was cut but leaves its whole commands, without EXEC, in the file: they
        # come back to life with the next restart. A new AOF ends that.
        world.redis.rewrite_aof()


def redis_frozen(world: World, rng: Random) -> None:
    """SIGSTOP: it takes connections and answers nothing."""
    for _ in blows(world, rng, 1):
        world.redis.freeze()
        time.sleep(REDIS_WAIT + 2 if world.long else rng.uniform(0.2, 3))
        world.redis.thaw()


def redis_flushed(world: World, rng: Random) -> None:
    """FLUSHALL: stream, group, pending list and cursors are gone."""
    for _ in blows(world, rng):
        with world.redis.client() as client:
            client.flushall()


def redis_emptied(world: World, rng: Random) -> None:
    """SIGKILL, and a restart without any data."""
    for _ in blows(world, rng, 2):
        world.redis.kill()
        world.redis.forget()
        world.redis.start()


def backup_restored(world: World, rng: Random) -> None:
    """The data of some moments ago comes back, cursor and acknowledged mail included, under running processes."""
    backup = world.here.folder / "backup"
    for number, _ in enumerate(blows(world, rng)):
        if number == 0:
            world.redis.save_to(backup)
    world.redis.kill()
    world.redis.restore_from(backup)
    world.redis.start()


# -- mailbox and tokens


def imap_drop(world: World, rng: Random) -> None:
    """The connection ends inside a body."""
    for _ in range(BLOWS):
        world.sandbox.arm_fault("drop_mid_literal", after_bytes=rng.randint(1, 3_000))
        world.more()
        world.instant(rng)


def session_expiry(world: World, rng: Random) -> None:
    """BYE Session expired: between commands, or after some messages of a FETCH."""
    for _ in blows(world, rng):
        when = rng.choice(["now", "fetch"])
        world.sandbox.arm_fault("session_expiry", when=when, after_messages=rng.randint(1, 50))


def token_expiry(world: World, rng: Random) -> None:
    """Every token issued so far is stale, and the session that used it ends.

    A token that gets stale between its issue and its login is a refusal of the credentials: that is another fault, with
    a quarter of an hour until the next login.
    """
    ended: set[object] = set()
    for _ in blows(world, rng):
        ended |= world.await_login(besides=ended)
        world.sandbox.arm_fault("stale_token", until_refresh=True)
        world.sandbox.arm_fault("session_expiry")


def imap_outage(world: World, rng: Random) -> None:
    """The port of the mail server is closed, or it ends each connection as soon as it is made; mail arrives."""
    fault = rng.choice(["refuse_connections", "greeting_bye"])
    _outage(world, rng, fault, {"drop_sessions": True} if fault == "refuse_connections" else {})


def token_outage(world: World, rng: Random) -> None:
    """The session ended and its token is stale; the token endpoint answers 503, or not at all; mail arrives."""
    world.sandbox.arm_fault("stale_token", until_refresh=True)
    _outage(world, rng, rng.choice(["token_503", "token_hang"]), {})


def _outage(world: World, rng: Random, fault: str, options: dict[str, bool]) -> None:
    for _ in blows(world, rng, 1):
        world.sandbox.arm_fault(fault, count=None, **options)
        world.sandbox.arm_fault("session_expiry")
        while world.more():
            pass
        time.sleep(OUTAGE_LONG if world.long else rng.uniform(2, 5))
        world.sandbox.clear_faults()


def uidvalidity_reset(world: World, rng: Random) -> None:
    """The mailbox gets a new UIDVALIDITY and new UIDs."""
    for _ in blows(world, rng, 2):
        world.sandbox.arm_fault("uidvalidity_reset")


# -- database and disk


def contents_lost(world: World, rng: Random) -> None:
    """Some stored contents are removed, or one of their bits flips; a scrub fetches them again."""
    for _ in blows(world, rng, 2):
        stored = sorted(each for each in (world.data / "blobs").glob("??/??/*") if not each.name.startswith("."))
        for path in rng.sample(stored, min(len(stored), 3)):
            data = bytearray(path.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            if rng.getrandbits(1):
                path.unlink()
            else:
                path.write_bytes(data)
        done = world.here.run("-m", "email_ingestion", "blobs", "verify", "--max-rate", "0")
        if done.returncode:
            raise Unwell(f"the scrub ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}")


def database_locked(world: World, rng: Random) -> None:
    """A foreign process holds the write lock of the database."""
    for _ in blows(world, rng, 1):
        with closing(sqlite3.connect(world.data / "email_ingestion.db", timeout=30, isolation_level=None)) as foreign:
            foreign.execute("BEGIN IMMEDIATE")
            time.sleep(LOCK_WAIT + 2 if world.long else rng.uniform(0.5, 3))
            foreign.execute("ROLLBACK")


def disk_full(world: World, rng: Random) -> None:
    """Database and blobs find no room, or a little."""
    for _ in blows(world, rng, 2):
        with _no_room(world, rng.choice([0, 4_096, 200_000])):
            world.more()
            time.sleep(rng.uniform(0.5, 2))


@contextmanager
def _no_room(world: World, left: int) -> Iterator[None]:
    if world.data.is_mount():
        with closing(sqlite3.connect(world.data / "email_ingestion.db", timeout=30)) as foreign:
            foreign.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else it writes on into room it already has
        total = shutil.disk_usage(world.data).total
        fill_up(world.data, left)
        try:
            yield
        finally:
            _resize(world.data, total)
    else:
        pid = world.running["worker"].process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (4_096 + left, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def small_disk(world: World) -> Iterator[None]:
    """Lay the data on a file system of its own where mounting is allowed; else the worker's file sizes are limited."""
    world.data.mkdir(exist_ok=True)
    mounted = _mount("-t", "tmpfs", "-o", "size=2g", "tmpfs", str(world.data))
    try:
        yield
    finally:
        world.muster(())
        if mounted:
            subprocess.run(["umount", "--lazy", str(world.data)], check=True)  # noqa: S607 - wherever it is


def fill_up(folder: Path, left: int) -> None:
    """Leave so much room; the worker may write between looking and shrinking, which then is refused."""
    for _ in range(SHRINK_TRIES):
        with suppress(OSError):
            return _resize(folder, shutil.disk_usage(folder).used + left)
    raise OSError(f"the file system of {folder} cannot be made smaller")


def _resize(folder: Path, size: int) -> None:
    if not _mount("-o", f"remount,size={max(size, 4_096)}", str(folder)):
        raise OSError(f"the file system of {folder} cannot be resized")


def _mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0  # noqa: S607


# -- time


def clock_step(world: World, rng: Random) -> None:
    """The wall clock of Redis and our processes jumps by up to an hour, forward or back, and returns."""
    for _ in blows(world, rng, 2):
        _set_clock(world, rng.choice([-1, 1]) * rng.randint(60, 3600))
        world.more()
        time.sleep(rng.uniform(0.5, 1.5))
    _set_clock(world, 0)


@contextmanager
def settable_clock(world: World) -> Iterator[None]:
    """Give Redis and our processes a wall clock that can be set."""
    clock = SettableClock(world.here.folder)
    world.redis.kill()
    world.redis.environment |= clock.environment
    world.here.environment |= clock.environment
    world.redis.start()
    yield


def _set_clock(world: World, seconds: int) -> None:
    SettableClock(world.here.folder).set(seconds)
