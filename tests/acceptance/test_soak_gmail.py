# ruff: noqa: T201 - the numbers are what such a run is for
"""Long runs against a Gmail that does everything Gmail does: nothing lost, nothing twice, nothing wasted."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.processes import Place, gmail_settings, place, until
from tests.servers.redis import RedisServer

DAY_SECONDS = 180.0
MESSAGES = 5000
CONNECTIONS = 3
MIB = 1024 * 1024
ROWS = "SELECT gm_msgid, processed_at FROM emails"


@contextmanager
def world(folder: Path, redis: RedisServer, settings: SandboxSettings, **more: object) -> Iterator[tuple]:
    with (
        running_sandbox(settings) as sandbox,
        place(folder / "here", redis.url, **gmail_settings(sandbox, folder / "here"), **more) as here,
    ):
        yield sandbox, here


def letter(number: int, rng: random.Random) -> bytes:
    head = b"Subject: letter %d\r\nMessage-ID: <%d@example.org>\r\n\r\n" % (number, number)
    return head + (b"%032x\r\n" % rng.getrandbits(128)) * rng.randrange(60, 1800)


def peak(pid: int) -> float:
    """The most memory a process has had, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


class Weather:
    """What befalls the connections, each thing at its own times."""

    def __init__(self, sandbox: RunningSandbox, rng: random.Random) -> None:
        self._sandbox = sandbox
        self._rng = rng
        now = time.monotonic()
        self._due: dict[Callable[[], None], tuple[float, float]] = {
            self._expire: (5.0, now + 5),
            self._drop: (4.0, now + 3),
            self._throttle: (11.0, now + 7),
            self._relabel: (0.2, now + 1),
        }
        self.seen: Counter[str] = Counter()

    def blow(self) -> None:
        now = time.monotonic()
        for act, (every, due) in list(self._due.items()):
            if now >= due:
                act()
                self.seen[act.__name__] += 1
                self._due[act] = (every, now + every * self._rng.uniform(0.5, 1.5))

    def _expire(self) -> None:
        self._sandbox.arm_fault("session_expiry")

    def _drop(self) -> None:
        self._sandbox.arm_fault("drop_fetch", after_bytes=self._rng.randrange(0, 40_000))

    def _throttle(self) -> None:
        self._sandbox.arm_fault("throttled", count=2, delay_ms=20)

    def _relabel(self) -> None:
        def move(account) -> None:
            if account.messages:
                msgid = self._rng.choice(list(account.messages))
                account.change_labels(msgid, add=[f"label-{self._rng.randrange(9)}"], remove=["\\Inbox"])

        self._sandbox.with_account(move)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_day_in_three_minutes(tmp_path: Path, own_redis: RedisServer):
    rng = random.Random(7)
    settings = SandboxSettings(credentials=Credentials(token_life=3.0, connection_limit=CONNECTIONS))
    with world(tmp_path, own_redis, settings, IMAP_POLL_SECONDS=5) as (sandbox, here):
        here.producer().url()
        here.worker().url()
        weather = Weather(sandbox, rng)
        begun, mail = time.monotonic(), 0
        for number in range(MESSAGES):
            raw = letter(number, rng)
            mail += len(raw)
            sandbox.deliver(raw)
            weather.blow()
            time.sleep(max(0.0, begun + DAY_SECONDS * number / MESSAGES - time.monotonic()))
        sandbox.clear_faults()
        until(lambda: len(here.rows(ROWS)) >= MESSAGES, "all of it", 120)
        rows = here.rows(ROWS)
        arrived = {message.msgid: message.internaldate / 1000 for message in sandbox.messages()}
        stats = sandbox.with_stats(lambda s: (s.connections_max, s.logins, s.bytes_sent))
    waits = sorted(_unix(processed) - arrived[msgid] for msgid, processed in rows)
    p99 = waits[int(0.99 * len(waits))]
    share = stats[2] / mail
    print(
        f"\nday: {len(rows)} of {MESSAGES}, p50 {waits[len(waits) // 2]:.2f} s, p99 {p99:.2f} s, max {waits[-1]:.2f} s"
    )
    print(f"day: {mail / MIB:.0f} MiB of mail, downloaded {share:.3f} of that, {stats[1]} logins, {dict(weather.seen)}")
    print(f"day: at most {stats[0]} connections at once")
    assert Counter(msgid for msgid, _ in rows) == Counter(arrived.keys())
    assert stats[0] <= CONNECTIONS
    assert share <= 1.05
    assert p99 < 3


def _unix(processed: str) -> float:
    return datetime.fromisoformat(processed).replace(tzinfo=UTC).timestamp()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_mailbox_of_two_hundred_thousand(tmp_path: Path, own_redis: RedisServer):
    settings = SandboxSettings(mail="bulk:200000")
    with world(tmp_path, own_redis, settings, IMAP_POLL_SECONDS=5) as (sandbox, here):
        here.worker().url()
        producer = here.producer()
        first = _arrives(sandbox, here)
        until(lambda: here.rows("SELECT 1 FROM emails LIMIT 1 OFFSET 1000"), "some of the old mail")
        beside = max(_arrives(sandbox, here) for _ in range(10))
        print(f"\n200k: {first:.2f} s from the start of the process to the first live delivery; beside the old mail at")
        print(f"200k: most {beside:.2f} s from arrival to delivery, of 10")
        sizes = _walk(producer.process.pid, here, 45)
        producer.kill()
        at = _history(own_redis)
        again = here.producer()
        again.url()
        sizes += _walk(again.process.pid, here, 20)
        resumed = _history(own_redis)
        fetched = sandbox.with_stats(lambda stats: Counter(stats.fetched_messages.values()))
        count = len(here.rows("SELECT 1 FROM emails"))
    print(f"200k: history at {at} when killed, at {resumed} 20 s later; {count} messages delivered")
    print(f"200k: memory {min(sizes):.0f} to {max(sizes):.0f} MiB; downloads per message {dict(fetched)}")
    assert resumed < at < 200_000
    assert max(sizes) - min(sizes) < 40  # ± 20
    assert sum(times * n for times, n in fetched.items()) <= count + 4000  # what was under way when it was killed


def _arrives(sandbox: RunningSandbox, here: Place) -> float:
    """Seconds from the arrival of a message until it is in the database."""
    begun = time.monotonic()
    raw = b"Subject: new\r\nMessage-ID: <%d@example.org>\r\n\r\nnew\r\n" % time.monotonic_ns()
    live = sandbox.deliver(raw).message.msgid
    until(lambda: here.rows(f"SELECT 1 FROM emails WHERE gm_msgid = {live}"), "the new one")
    return time.monotonic() - begun


def _walk(pid: int, here: Place, seconds: float) -> list[float]:
    """Its memory while it walks, once it has begun to."""
    before = len(here.rows("SELECT 1 FROM emails"))
    until(lambda: len(here.rows("SELECT 1 FROM emails")) > before + 3000, "it walks", 120)
    sizes = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sizes.append(resident(pid))
        time.sleep(1)
    return sizes


def _history(redis: RedisServer) -> int:
    with redis.client() as client:
        return int(client.hget("{email_ingestion}:cursor:default/[Gmail]/All Mail", "history"))


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_fifty_megabytes_in_one_message(tmp_path: Path, own_redis: RedisServer):
    raw = b"Subject: big\r\nMessage-ID: <big@example.org>\r\n\r\n" + (b"0123456789abcdef" * 4 + b"\r\n") * (
        50 * MIB // 66
    )
    with world(tmp_path, own_redis, SandboxSettings()) as (sandbox, here):
        sandbox.deliver(raw)
        producer, worker = here.producer(), here.worker()
        until(lambda: here.rows("SELECT 1 FROM emails"), "it arrives", 120)
        found = here.rows("SELECT sha256, size FROM emails")
        peaks = peak(producer.process.pid), peak(worker.process.pid)
    print(f"\n50 MB: peak memory of the producer {peaks[0]:.0f} MiB, of the worker {peaks[1]:.0f} MiB")
    assert found == [(hashlib.sha256(raw).hexdigest(), len(raw))]
    assert peaks[0] < 150
