"""Whether a reader of the change feed sees every change once and in order beside writers that are killed, and its cost.

The law: after the last kill the reader has seen each number from the first to the last once and ascending, one birth
for each message in the database, and nothing of a message before its birth.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from bench.corpus import letters
from email_ingestion.blobs import reference
from email_ingestion.errors import SinkUnavailable
from email_ingestion.ledger import store
from email_ingestion.ledger.model import Content, Marks, StoredEmail
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.parsing import parse
from email_ingestion.records import Envelope

WRITERS = 8
BATCH = 100
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
GIVE_UP = 120.0  # seconds without a new change after which a soak ends
EXAMPLES = """examples:
  python -m bench.change_feed                          100,000 changes in SQLite
  python -m bench.change_feed --changes 1000000 --url postgresql+psycopg://…   an empty database of one's own
  python -m bench.change_feed --cost                   what it costs the worker, old and new in turns
"""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["email_ingestion.ledger.store", "email_ingestion.parsing"])


@dataclass
class Sighting:
    """What the reader saw, and what it should have seen."""

    changes: int = 0
    kills: int = 0
    skipped: int = 0  # numbers that it never saw
    repeated: int = 0  # or out of order
    unborn: int = 0  # messages of the database without a birth, births without a message, and changes before a birth
    relabelled: int = 0
    seconds: float = 0.0
    last: int = 0
    _born: set[str] = field(default_factory=set)

    @property
    def perfect(self) -> bool:
        """Whether the law holds."""
        return not (self.skipped or self.repeated or self.unborn)

    def see(self, seq: int, kind: str, email_id: str) -> None:
        """Judge the next change."""
        self.changes += 1
        if seq <= self.last:
            self.repeated += 1
        self.skipped += max(0, seq - self.last - 1)
        self.last = max(seq, self.last)
        if kind == "born":
            self.unborn += email_id in self._born
            self._born.add(email_id)
        else:
            self.relabelled += 1
            self.unborn += email_id not in self._born

    def end(self, last: int, messages: int) -> None:
        """Compare with the feed's last number, and with the messages that were delivered."""
        self.skipped += last - self.last
        self.unborn += abs(messages - len(self._born))


def soak(url: str, *, changes: int, kill_every: float, kills: int, batch: int = BATCH) -> Sighting:
    """Read the feed while eight processes write, until there are `changes`, with at least so many of them killed."""
    seen = Sighting()
    stopped = threading.Event()
    started = time.monotonic()
    with closing(open_ledger(url)) as ledger:
        reader = threading.Thread(target=_read, args=(ledger, seen, stopped))
        reader.start()
        try:
            with _writers(url, batch) as kill_one:
                last, last_at = 0, time.monotonic()
                while (seen.changes < changes or seen.kills < kills) and time.monotonic() - last_at < GIVE_UP:
                    time.sleep(kill_every)
                    if seen.changes > last:
                        last, last_at = seen.changes, time.monotonic()
                        kill_one()
                        seen.kills += 1
        finally:
            stopped.set()
            reader.join()
        while _read_page(ledger, seen):  # the server may still have been at work for one that was killed
            pass
        ledger.changes.number_all()
        seen.end(ledger.changes.last(), ledger.count())
    seen.seconds = time.monotonic() - started
    return seen


def _read(ledger: Ledger, seen: Sighting, stopped: threading.Event) -> None:
    while _read_page(ledger, seen) or not stopped.wait(0.01):
        pass


def _read_page(ledger: Ledger, seen: Sighting) -> int:
    ledger.changes.number()
    page = ledger.changes.read(seen.last)
    for each in page.changes:
        seen.see(each.seq, each.kind.value, each.email_id)
    return len(page.changes)


def write(url: str, writer: int, first: int, batch: int) -> None:
    """Deliver batches for ever; every second message gets another label."""
    number = first
    with closing(_open(url)) as ledger:
        while True:
            made = [_message(f"a{writer}", each) for each in range(number, number + batch)]
            marks = {each.email.email_id: Marks((f"round {number}",)) for each in made[::2]}
            try:
                ledger.record(made)
                ledger.server_state.update_marks("INBOX", marks)
            except SinkUnavailable:  # SQLite lets one of eight starve now and then: a worker tries again too
                continue
            number += batch


def _open(url: str) -> Ledger:
    """Open the database; beside seven others that write, SQLite may let one starve here too."""
    while True:
        try:
            return open_ledger(url)
        except SinkUnavailable:
            continue


@contextmanager
def _writers(url: str, batch: int) -> Iterator[Callable[[], None]]:
    """Run eight processes; the call kills one of them, whatever it is doing, and starts another in its place."""
    chance = random.Random(1)  # noqa: S311 - which is killed is no secret
    starts = 0

    def start(writer: int) -> Any:
        nonlocal starts
        starts += 1
        process = _processes.Process(target=write, args=(url, writer, starts * 10_000_000, batch), daemon=True)
        process.start()
        return process

    running = [start(writer) for writer in range(WRITERS)]

    def kill_one() -> None:
        writer = chance.randrange(WRITERS)
        running[writer].kill()
        running[writer].join()
        running[writer] = start(writer)

    try:
        yield kill_one
    finally:
        for process in running:
            process.kill()
            process.join()


@dataclass
class Rates:
    """Messages per second that `record` takes, and the processor seconds of a thousand of them."""

    rate: float
    cpu: float


def cost(url: str, *, rounds: int = 150) -> tuple[Rates, Rates]:
    """Return what `record` takes without the feed and with it, in random turns on the same database.

    In a pattern of turns SQLite's checkpoints, which come every few batches, would mostly meet one of the two.
    """
    chance = random.Random(1)  # noqa: S311 - the order is no secret
    raws = list(islice(letters(BATCH), BATCH))
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    original = store.note_changes
    try:
        with closing(open_ledger(url)) as ledger:
            for turn in range(-4, 2 * rounds):
                feed = chance.random() < 0.5  # noqa: PLR2004 - a coin
                store.note_changes = original if feed else lambda *_: None  # type: ignore[attr-defined,assignment]
                batch = [_stored(raw, "default", (turn + 10) * BATCH + number) for number, raw in enumerate(raws)]
                began, used = time.perf_counter(), time.process_time()
                ledger.record(batch)
                if turn >= 0:  # the first few warm up
                    times[feed].append((time.perf_counter() - began, time.process_time() - used))
    finally:
        store.note_changes = original  # type: ignore[attr-defined]
    without, with_feed = (
        Rates(
            BATCH / statistics.fmean(wall for wall, _ in times[each]),
            statistics.fmean(used for _, used in times[each]) / BATCH * 1000,
        )
        for each in (False, True)
    )
    return without, with_feed


def _message(account: str, number: int) -> StoredEmail:
    raw = f"Subject: letter {number}\r\n\r\nHello".encode()
    return _stored(raw, account, number)


def _stored(raw: bytes, account: str, number: int) -> StoredEmail:
    sha256 = hashlib.sha256(raw).hexdigest()
    envelope = Envelope(account, "INBOX", 7, number, number, number, ("\\Inbox",), (), WHEN, len(raw), sha256)
    email = parse(envelope, raw)
    parts = tuple(Content(part.sha256, part.content) for part in email.attachments)
    return StoredEmail(email, reference(sha256), (Content(sha256, raw), *parts))


def main() -> int:
    """Run what was asked for; return 1 when the reader missed something."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.change_feed",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--changes", type=int, default=100_000, metavar="N", help="changes to see")
    parser.add_argument("--url", metavar="URL", help="an empty database; default a new SQLite file")
    parser.add_argument("--cost", action="store_true", help="measure the cost alone")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        url = chosen.url or f"sqlite:///{Path(name)}/ledger.db"
        if chosen.cost:
            without, with_feed = cost(url)
            sys.stdout.write(
                f"record: {without.rate:,.0f} messages/s without the feed, {with_feed.rate:,.0f} with it "
                f"({with_feed.rate / without.rate:.3f}); processor: {without.cpu:.3f} and {with_feed.cpu:.3f} s for a "
                f"thousand ({with_feed.cpu / without.cpu:.3f}); "
                f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n"
            )
            return 0
        seen = soak(url, changes=chosen.changes, kill_every=1.0, kills=8)
    sys.stdout.write(
        f"{seen.changes:,} changes in {seen.seconds:,.0f} s, {seen.kills} writers killed: {seen.skipped} skipped, "
        f"{seen.repeated} repeated or out of order, {seen.unborn} without a birth\n"
    )
    return 0 if seen.perfect else 1


if __name__ == "__main__":
    raise SystemExit(main())
