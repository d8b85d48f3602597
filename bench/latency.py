"""From a server's yes to a row in the database, while mail comes steadily, through real processes."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.mailbox import settings_of
from bench.rounds import Say
from bench.system import installed, wait
from bench.tables import Aim, Section
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.servers.dovecot import running_dovecot
from tests.servers.processes import Place, gmail_settings
from tests.servers.redis import RedisServer, running_redis

RATE = 20.0  # messages a second
WARM = 20  # messages before those that count
LOOK = 0.001  # seconds between two looks into the database


@dataclass(frozen=True, slots=True)
class Waits:
    """Milliseconds, sorted."""

    name: str
    values: list[float]

    def share(self, part: float) -> float:
        """The value that `part` of all do not exceed."""
        return self.values[min(len(self.values) - 1, int(part * len(self.values)))]


def measure(*, count: int, say: Say) -> Section:
    """The sandbox and Dovecot, one after the other."""
    found = []
    for name, world in (("the Gmail sandbox", _sandbox), ("Dovecot, by LMTP", _dovecot)):
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            running_redis(Path(folder) / "redis") as redis,
            world(Path(folder), redis) as (here, deliver),
        ):
            waits = Waits(name, _run(here, deliver, count))
        say(f"  {name}: p50 {waits.share(0.5):.1f} ms, p99 {waits.share(0.99):.1f} ms")
        found.append(waits)
    shares = (0.5, 0.9, 0.99, 1.0)
    rows = [(each.name, *(f"{each.share(part):.1f}" for part in shares)) for each in found]
    gmail = found[0]
    aims = [
        Aim("Delivery → row, 20 messages/s, median", gmail.share(0.5), 25.0, "ms", most=True),
        Aim("Delivery → row, 20 messages/s, 99 of 100", gmail.share(0.99), 150.0, "ms", most=True),
    ]
    return Section(
        "Latency",
        f"{count:,} messages of 4 KB at {RATE:.0f} a second, from the moment the server has taken a message to the "
        "moment another process reads its row. Producer and worker run as ever, and synchronize every commit.",
        ("Mailbox at", "p50 ms", "p90 ms", "p99 ms", "longest ms"),
        rows,
        aims,
        [
            (
                "Dovecot holds back what it tells a waiting client for half a second after a change (its constant "
                "`NOTIFY_DELAY_MSECS`); Gmail and the sandbox do not."
            )
        ],
    )


Deliver = Callable[[bytes], None]


@contextmanager
def _sandbox(folder: Path, redis: RedisServer) -> Iterator[tuple[Place, Deliver]]:
    with (
        running_sandbox(SandboxSettings()) as server,
        installed(folder / "place", redis.url, **gmail_settings(server, folder / "place")) as here,
    ):
        yield here, lambda raw: server.deliver(raw) and None


@contextmanager
def _dovecot(folder: Path, redis: RedisServer) -> Iterator[tuple[Place, Deliver]]:
    with running_dovecot(oauth_port=1) as server, installed(folder / "place", redis.url) as here:
        here.environment |= settings_of(server, redis)
        yield here, lambda raw: server.deliver([raw])


def _run(here: Place, deliver: Deliver, count: int) -> list[float]:
    here.producer().url()
    here.worker().url()
    taken: dict[str, float] = {}
    seen: dict[str, float] = {}
    database = here.folder / "data" / "email_ingestion.db"
    deliver(_letter("first"))
    wait(database.exists, 60, "the database is there")
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(database, seen, stop))
    watch.start()
    try:
        wait(lambda: "first" in seen, 60, "the first message is there")
        started = time.monotonic()
        for number in range(count + WARM):
            time.sleep(max(0.0, started + number / RATE - time.monotonic()))
            deliver(_letter(str(number)))
            taken[str(number)] = time.monotonic()
        wait(lambda: len(seen) == count + WARM + 1, 60, "all messages are there")
    finally:
        stop.set()
        watch.join()
    return sorted(1000 * (seen[str(n)] - taken[str(n)]) for n in range(WARM, count + WARM))


def _watch(path: Path, seen: dict[str, float], stop: threading.Event) -> None:
    """Note when each row can be read."""
    last = 0
    with closing(sqlite3.connect(path, timeout=30)) as database:
        while not stop.wait(LOOK):
            try:
                rows = database.execute("SELECT rowid, subject FROM emails WHERE rowid > ?", (last,)).fetchall()
            except sqlite3.OperationalError:  # the worker is about to make the table
                continue
            now = time.monotonic()
            for row, subject in rows:
                last = max(last, row)
                seen[subject] = now


def _letter(name: str) -> bytes:
    head = f"Subject: {name}\r\nMessage-ID: <{name}@example.org>\r\nFrom: a@example.org\r\n\r\n"
    return head.encode() + b"The quick brown fox jumps over the lazy dog.\r\n" * 85
