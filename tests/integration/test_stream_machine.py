"""The stream as a state machine: whatever producers and workers do and in whatever order, no message is lost."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from email_ingestion.backoff import backoff
from email_ingestion.errors import StaleCursor
from email_ingestion.records import Cursor
from email_ingestion.stream import GROUP, Appender, Consumer, Delivery, Keys, RedisLink
from email_ingestion.stream.dead_letters import DeadLetterQueue
from tests.servers.links import link, message
from tests.servers.redis import RedisServer, running_redis

# A machine that stands still for a while must not make anything due: a hundred times the usual seconds. The pauses lie
# where no jitter decides: before every back-off, between two of them, behind the lease, and behind all.
SLOWER = 100
LEASE = 60.0 * SLOWER
PAUSES = tuple(seconds * SLOWER for seconds in (0.5, 5.5, 90.0, 1000.0))
ACCOUNT, MAILBOX = "default", "INBOX"
WORKERS = ("here-worker-1", "there-worker-1")
PRODUCERS = st.sampled_from([0, 1])
CONSUMERS = st.sampled_from(WORKERS)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with (
        tempfile.TemporaryDirectory(prefix="machine-") as folder,
        running_redis(Path(folder) / "redis", appendonly=False) as running,
    ):
        yield running


def holding(machine: StreamMachine) -> bool:
    return any(machine.held.values())


class StreamMachine(RuleBasedStateMachine):
    """Two producers, two workers, one stream; each example has keys of its own."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        plain = link(self.server.url)
        self.link = RedisLink(plain.client, Keys(f"machine:{uuid.uuid4().hex}"), plain.breaker)
        self.redis, self.keys = self.link.client, self.link.keys
        self.appenders = [Appender(self.link), Appender(self.link)]
        self.consumers = {name: Consumer(self.link, name, LEASE) for name in WORKERS}
        self.dead_letters = DeadLetterQueue(self.link)
        self.letters: list[str] = []  # dead letters, also those that are none any more
        self.held: dict[str, dict[str, Delivery]] = {name: {} for name in WORKERS}  # what each believes it has
        self.owner: dict[str, str] = {}  # who was given an entry last, by its id
        self.counts: dict[str, int] = {}  # deliveries, by id
        self.uidvalidity = 1
        self.believed = [Cursor(1, 0), Cursor(1, 0)]  # of each producer
        self.highest = Cursor(1, 0)
        self.appended: list[int] = []  # UIDs, over all UIDVALIDITYs: message numbers never repeat
        self.completed: list[int] = []
        self.last_call: tuple[Cursor, int, list[int]] | None = None

    @initialize()
    def open(self) -> None:
        for queue in self.consumers.values():
            queue.ensure_group()
        self.appenders[0].restart_cursor(ACCOUNT, MAILBOX, Cursor(1, 0))
        self.append(0, 4)
        self.take_fresh(WORKERS[0], 3)

    # -- producers

    @rule(producer=PRODUCERS)
    def read_cursor(self, producer: int) -> None:
        found = self.appenders[producer].cursor(ACCOUNT, MAILBOX)
        assert found
        self.believed[producer] = found

    @rule(producer=PRODUCERS, limit=st.integers(1, 4))
    def append(self, producer: int, limit: int) -> None:
        """From where this producer believes the cursor to be; the other may have been there before."""
        since = self.believed[producer]
        self._append(producer, since, list(range(since.uid + 1, since.uid + limit + 1)))

    @precondition(lambda self: self.last_call)
    @rule(producer=PRODUCERS)
    def resend(self, producer: int) -> None:
        assert self.last_call
        since, _, uids = self.last_call
        self._append(producer, since, uids)

    def _append(self, producer: int, since: Cursor, uids: list[int]) -> None:
        before = self.appenders[producer].cursor(ACCOUNT, MAILBOX)
        assert before
        batch = [message(uid, uidvalidity=since.uidvalidity, raw=b"%d" % uid * (uid % 40 + 1)) for uid in uids]
        try:
            added, moved = self.appenders[producer].append(ACCOUNT, MAILBOX, since, uids[-1], batch)
        except StaleCursor:
            assert (before.uidvalidity, before.uid) != (since.uidvalidity, since.uid)
            return
        self.last_call = (since, uids[-1], uids)
        self.believed[producer] = moved
        new = [uid for uid in uids if uid > before.uid]
        assert added == len(new)
        self.appended += new

    @rule()
    def uidvalidity_changes(self) -> None:
        """The cursor is put back; message numbers go on, so that each message stays one."""
        self.uidvalidity += 1
        self.highest = Cursor(self.uidvalidity, 0)
        at = Cursor(self.uidvalidity, max(self.appended, default=0))
        self.believed[0] = self.appenders[0].restart_cursor(ACCOUNT, MAILBOX, at)
        assert self.believed[0] == at

    @rule(producer=PRODUCERS)
    def restarting_a_valid_cursor_changes_nothing(self, producer: int) -> None:
        before = self.appenders[producer].cursor(ACCOUNT, MAILBOX)
        assert self.appenders[producer].restart_cursor(ACCOUNT, MAILBOX, Cursor(self.uidvalidity, 0)) == before

    # -- workers

    @rule(name=CONSUMERS, limit=st.integers(1, 4))
    def take_fresh(self, name: str, limit: int) -> None:
        self._taken(name, self.consumers[name].read_new(limit, block=False))

    @rule(name=CONSUMERS, limit=st.integers(1, 4))
    def take_overdue(self, name: str, limit: int) -> None:
        pending = self._pending()
        taken = self.consumers[name].claim_due(limit)
        for each in taken:
            consumer, idle, count = pending[each.id]
            assert idle >= LEASE * 1000 or consumer == name, "taken from its owner within the lease"
            assert each.foreign == (consumer != name)
            assert count == 0 or len(taken) == 1, "a suspect was not taken alone"
        self._taken(name, taken)

    @precondition(holding)
    @rule(data=st.data(), suspects=st.integers(1, 3))
    def take_over(self, data: st.DataObject, suspects: int) -> None:
        """A worker is silent for too long, and goes on believing that it has what it had."""
        silent = data.draw(st.sampled_from([name for name in WORKERS if self.held[name]]))
        (other,) = set(WORKERS) - {silent}
        self.time_passes(silent, PAUSES[-1])
        for _ in range(suspects):
            self.take_overdue(other, 4)

    def _taken(self, name: str, deliveries: list[Delivery]) -> None:
        for each in deliveries:
            assert each.message
            assert each.attempt == self.counts.get(each.id, 0) + 1
            self.counts[each.id] = each.attempt
            self.held[name][each.id] = each
            self.owner[each.id] = name

    @rule(name=CONSUMERS)
    def crash(self, name: str) -> None:
        self.held[name].clear()

    @precondition(holding)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        name, chosen = self._chosen(data)
        rejected = {each.id for each in self.consumers[name].ack(chosen)}
        for each in chosen:
            assert (each.id in rejected) == (self.owner.get(each.id) != name)
            if each.id not in rejected:
                self._gone(each)
                self.completed.append(_number(each))

    @precondition(holding)
    @rule(data=st.data())
    def dead_letter(self, data: st.DataObject) -> None:
        name, chosen = self._chosen(data)
        for each in chosen[:1]:
            mine = self.owner.get(each.id) == name
            assert self.consumers[name].dead_letter(each, {"dead_reason": "operator"}) == mine
            if mine:
                self._gone(each)

    @precondition(lambda self: self.redis.xlen(self.keys.dlq) or self.letters)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Also letters that were replayed before: somebody asks twice."""
        letters = [each.decode() for each, _ in self.redis.xrange(self.keys.dlq)]
        self.letters += [each for each in letters if each not in self.letters]
        chosen = data.draw(st.lists(st.sampled_from(self.letters), min_size=1, unique=True))
        assert sum(self.dead_letters.replay(chosen)) == len(set(chosen) & set(letters))

    @precondition(holding)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        name, chosen = self._chosen(data)
        ids = [each.id for each in chosen]
        kept = self.consumers[name].extend(ids)
        assert kept == {each for each in ids if self.owner.get(each) == name}
        assert all(self._pending()[each][1] < LEASE * 1000 for each in kept)

    @precondition(holding)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        name, chosen = self._chosen(data)
        for each in self.consumers[name].extend([each.id for each in chosen], give_back=True):
            self.counts[each] -= 1
        self._drop(name, chosen)

    @precondition(holding)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name, chosen = self._chosen(data)
        mine = [each.id for each in chosen if self.owner.get(each.id) == name]
        assert self.consumers[name].release([each.id for each in chosen]) == len(mine)
        for each in mine:
            self.counts[each] -= 1
        self._drop(name, chosen)

    @rule(name=CONSUMERS, seconds=st.sampled_from(PAUSES))
    def time_passes(self, name: str, seconds: float) -> None:
        """Everything pending under a name was left alone for so long."""
        for each, (consumer, _, count) in self._pending().items():
            if consumer == name:
                how = ("IDLE", int(seconds * 1000), "RETRYCOUNT", count, "JUSTID")
                self.redis.execute_command("XCLAIM", self.keys.stream, GROUP, name, 0, each, *how, parse_justid=True)

    @rule(name=CONSUMERS)
    def leave(self, name: str) -> None:
        """A worker that stops never takes pending entries along."""
        self.consumers[name].unregister()

    def _chosen(self, data: st.DataObject) -> tuple[str, list[Delivery]]:
        """A worker that believes it holds something, and some of that."""
        name = data.draw(st.sampled_from([name for name in WORKERS if self.held[name]]))
        held = st.sampled_from(list(self.held[name].values()))
        return name, data.draw(st.lists(held, min_size=1, max_size=3, unique_by=lambda each: each.id))

    def _drop(self, name: str, chosen: list[Delivery]) -> None:
        for each in chosen:
            self.held[name].pop(each.id, None)

    def _gone(self, each: Delivery) -> None:
        """It left the stream; the other worker may go on believing that it has it, and must be told otherwise."""
        name = self.owner.pop(each.id)
        self.counts.pop(each.id)
        self.held[name].pop(each.id)

    def _pending(self) -> dict[str, tuple[str, int, int]]:
        entries = self.redis.xpending_range(self.keys.stream, GROUP, "-", "+", 10_000)
        return {
            entry["message_id"].decode(): (
                entry["consumer"].decode(),
                entry["time_since_delivered"],
                entry["times_delivered"],
            )
            for entry in entries
        }

    # -- what always holds

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        stream, dead = (
            [int(fields[b"uid"]) for _, fields in self.redis.xrange(key)] for key in (self.keys.stream, self.keys.dlq)
        )
        assert sorted(stream + dead + self.completed) == sorted(self.appended)

    @invariant()
    def the_volume_is_that_of_the_entries(self) -> None:
        entries = self.redis.xrange(self.keys.stream)
        size = sum(len(name) + len(value) for _, fields in entries for name, value in fields.items())
        assert int(self.redis.get(self.keys.volume) or 0) == size

    @invariant()
    def the_cursor_never_goes_back(self) -> None:
        now = self.appenders[0].cursor(ACCOUNT, MAILBOX)
        if now:
            assert (now.uidvalidity, now.uid) >= (self.highest.uidvalidity, self.highest.uid)
            self.highest = now

    @invariant()
    def deliveries_are_counted_and_never_forgotten(self) -> None:
        pending = self._pending()
        for each, (consumer, _, count) in pending.items():
            assert self.owner[each] == consumer
            assert count == self.counts[each]
        assert self.counts.keys() == pending.keys(), "an entry left the pending list unfinished"

    def teardown(self) -> None:
        self.redis.delete(*self.redis.keys(f"{{{self.keys.tag}}}:*") or ["none"])
        self.redis.close()


def _number(each: Delivery) -> int:
    assert each.message
    return each.message.envelope.uid


def test_a_long_backlog_is_kept_whole(server: RedisServer):
    plain = link(server.url)
    appender = Appender(RedisLink(plain.client, Keys("backlog"), plain.breaker))
    cursor = appender.restart_cursor(ACCOUNT, MAILBOX, Cursor(1, 0))
    for first in range(1, 10_001, 500):
        batch = [message(uid) for uid in range(first, first + 500)]
        _, cursor = appender.append(ACCOUNT, MAILBOX, cursor, first + 499, batch)
    assert appender.backlog().depth == 10_000


def test_the_stream_keeps_every_message_in_one_place(server: RedisServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("email_ingestion.stream.consumer.backoff", lambda attempt: SLOWER * backoff(attempt))

    class OnThisServer(StreamMachine):
        pass

    OnThisServer.server = server
    run_state_machine_as_test(
        OnThisServer,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # shrinking asks Redis for minutes, and forty steps can be read
            suppress_health_check=list(HealthCheck),
        ),
    )
