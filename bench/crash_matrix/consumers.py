"""Faults of what goes on after delivery: a resend, telling of changes, a comparison that sends again; all killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from bench.crash_matrix.faults import blows
from bench.crash_matrix.sinks import UNMARKED, slowly
from bench.crash_matrix.world import PATIENCE, Unwell, World
from email_ingestion.ledger.model import Marks
from email_ingestion.ledger.store import open_ledger
from email_ingestion.stream import Keys
from tests.servers.webhook import SECRET, Receiver, receiving

KILLS = 2
COMMAND_SECONDS = 1.5  # within which a command is killed: its start takes most of that
PART = 100  # changes that a killed worker may tell again
REPEATS = UNMARKED + PART  # of one kill
CHANGES = 20  # messages that get another label at a time
LINES = "lines.ndjson"


def resend_killed(world: World, rng: Random) -> None:
    """A resend of everything and the worker are killed at random, and the resend is given once more."""
    receiver = _receiver(world)
    world.more()
    _await(lambda: bool(_delivered(world, "webhook")), "some mail is delivered")
    owed = _delivered(world, "webhook")
    before = {each: receiver.taken[each] for each in owed}
    for _ in blows(world, rng, KILLS):
        _kill_command(world, rng, "resend", "--sink", "webhook", "--all")
        world.restart("worker")
    _run(world, "resend", "--sink", "webhook", "--all")
    _await(lambda: all(receiver.taken[each] > count for each, count in before.items()), "all of it was posted again")


def feed_killed(world: World, rng: Random) -> None:
    """The worker is killed while it tells three sinks of changes: none may miss one, or get two in another order."""
    world.more()
    _await(lambda: len(_delivered(world, LINES)) >= CHANGES, "some mail is delivered")
    written: dict[str, list[str]] = {}
    for number, _ in enumerate(blows(world, rng, 4)):
        chosen = rng.sample(sorted(_delivered(world, LINES)), CHANGES)
        label = f"{datetime.now(UTC).timestamp()} {number}"
        with closing(open_ledger(world.database.url)) as ledger:
            ledger.server_state.update_marks("[Gmail]/All Mail", dict.fromkeys(chosen, Marks((label,))))
        for each in chosen:
            written.setdefault(each, []).append(label)
        if number == 1:
            world.instant(rng)
            world.restart("worker")
    sinks: tuple[tuple[str, Callable[[World], Iterable[bytes]]], ...] = (
        ("webhook", _posted),
        ("stream", _entries),
        ("ndjson", _lines),
    )
    for name, read in sinks:
        _await(lambda read=read: _missing(written, _labels(read(world))) == 0, f"{name} was told of all changes")  # type: ignore[misc]
        found = _labels(read(world))
        if wrong := [each for each, labels in written.items() if found[each][-len(labels) :] != labels]:
            raise Unwell(f"{name} was told in another order of {len(wrong)} messages, such as {wrong[0]}")


def reconcile_killed(world: World, rng: Random) -> None:
    """Files of a sink vanish; comparisons that send them again are killed at random, and so is the worker."""
    world.more()
    _await(lambda: bool(list(_mail_files(world))), "some mail is delivered")
    lost: set[Path] = set()
    for _ in blows(world, rng, KILLS):
        there = sorted(_mail_files(world))
        gone = rng.sample(there, min(len(there), 10))
        for path in gone:
            path.unlink()
        lost |= set(gone)
        _age(world)
        _kill_command(world, rng, "reconcile", "--sink", "files", "--resend")
        world.restart("worker")
    while world.more():
        pass
    world.settle()

    def repaired() -> bool:
        _age(world)  # what was delivered within the last minute counts as on its way
        _run(world, "reconcile", "--sink", "files", "--resend")
        return all(path.exists() for path in lost)

    _await(repaired, "all lost files are there again")


@contextmanager
def resent(world: World) -> Iterator[None]:
    """Have every message posted to a receiver."""
    with receiving(Receiver(refuse=400)) as receiver:
        world.here.set(SINKS="webhook", WEBHOOK_URL=receiver.url, WEBHOOK_SECRET=SECRET)
        receiver.answer = slowly  # so that a kill comes in the middle
        world.receiver = receiver
        yield
        world.muster(())


@contextmanager
def followed(world: World) -> Iterator[None]:
    """Have three sinks told of what happens to their mail."""
    with resent(world):
        events = dict.fromkeys(("WEBHOOK_EVENTS", "STREAM_EVENTS", "NDJSON_EVENTS"), "all")
        world.here.set(SINKS=f"webhook,stream,ndjson:{LINES}", **events)
        yield


@contextmanager
def filed(world: World) -> Iterator[None]:
    """Have every message written into files."""
    world.here.set(SINKS="files:out")
    yield
    world.muster(())


def _kill_command(world: World, rng: Random, *words: str) -> None:
    command = world.here.start("-m", "email_ingestion", *words, stem="command")
    time.sleep(rng.uniform(0.2, COMMAND_SECONDS))
    command.process.send_signal(signal.SIGKILL)
    command.process.wait()


def _run(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    done = world.here.run("-m", "email_ingestion", *words)
    if done.returncode not in {0, 1}:
        raise Unwell(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")
    return done


def _await(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise Unwell(f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(0.1)


def _receiver(world: World) -> Receiver:
    assert world.receiver  # noqa: S101 - the surroundings opened it
    return world.receiver


def _delivered(world: World, sink: str) -> set[str]:
    query = f"SELECT email_id FROM deliveries WHERE state = 'delivered' AND sink LIKE '%{sink}'"  # noqa: S608 - ours
    return {row[0] for row in world.database.rows(query)}


def _age(world: World) -> None:
    """Let all that was delivered have been so an hour ago."""
    with closing(open_ledger(world.database.url)) as ledger, ledger.outbox._database.begin() as connection:  # noqa: SLF001
        at = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        connection.exec_driver_sql(f"UPDATE deliveries SET changed_at = '{at}' WHERE state = 'delivered'")  # noqa: S608


def _mail_files(world: World) -> Iterator[Path]:
    return (world.here.folder / "out").rglob("*.eml")


def _posted(world: World) -> Iterator[bytes]:
    for name, body in list(_receiver(world).bodies.items()):
        if name.startswith("change:"):
            yield json.dumps(body["data"]).encode()


def _entries(world: World) -> Iterator[bytes]:
    with world.redis.client() as client:
        yield from (fields[b"json"] for _, fields in client.xrange(Keys().sink_stream))


def _lines(world: World) -> Iterator[bytes]:
    yield from (world.here.folder / LINES).read_bytes().splitlines()


def _labels(records: Iterable[bytes]) -> dict[str, list[str]]:
    """The labels that a sink was told of, by message and in the order told; repetitions, which have one seq, once."""
    found: dict[str, dict[int, str]] = {}
    for each in map(json.loads, records):
        if each.get("kind") == "relabelled":
            found.setdefault(each["email_id"], {}).setdefault(each["seq"], each["details"]["labels"][0])
    return {email_id: list(labels.values()) for email_id, labels in found.items()}


def _missing(written: dict[str, list[str]], found: dict[str, list[str]]) -> int:
    return sum(len(set(labels) - set(found.get(each, ()))) for each, labels in written.items())
