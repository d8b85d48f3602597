"""Entries that Redis took for handed out and forgot to whom are delivered even by a worker that never rests."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from email_ingestion.events import Event, LoopFailed
from email_ingestion.records import Cursor
from email_ingestion.stream import GROUP, Appender, Consumer, Delivery, Keys
from email_ingestion.worker import loop
from email_ingestion.worker.loop import Worker
from email_ingestion.worker.processor import InProgress
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

PHANTOM = 1
UNREST = 2000  # messages after which the phantom is given up


class Unrest:
    """Completes what it gets, and appends a message for every one it was given until the phantom came."""

    def __init__(self, consumer: Consumer, appender: Appender, upto: int) -> None:
        self._consumer = consumer
        self._appender = appender
        self._upto = upto
        self.settled: list[int] = []
        self.slow_entries: frozenset[str] = frozenset()

    def attend_slow_lane(self) -> None:
        pass

    def leave_slow_lane(self) -> None:
        pass

    def ready(self) -> bool:
        return True

    def retry_after(self) -> float:
        return 0.0

    def submit(self, batch: Sequence[Delivery]) -> InProgress:
        return InProgress(batch, [], Future(), 0.0)

    def finish(self, work: InProgress) -> None:
        assert self._consumer.ack(work.batch) == []
        self.settled += [each.message.envelope.uid for each in work.batch if each.message]
        if PHANTOM not in self.settled and self._upto < UNREST:
            self._upto += 1
            self._appender.append("default", "INBOX", Cursor(1, self._upto - 1), self._upto, [message(self._upto)])


def raise_failure(event: Event) -> None:
    """End the test at once: the loop would go on for ever."""
    if isinstance(event, LoopFailed):
        raise event.error


def test_a_worker_that_is_never_idle_delivers_what_nobody_was_given(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "ORPHAN_SECONDS", 0.05)
    appender = Appender(link(redis_server.url))
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    appender.append("default", "INBOX", Cursor(1, 0), 2, [message(1), message(2)])
    consumer = Consumer(link(redis_server.url), "here-worker-1", 60)
    settlement = Unrest(consumer, appender, 2)
    worker = Worker(
        consumer,
        settlement,  # type: ignore[arg-type]
        batch=lambda: 1,
        lease=60,
        paused=lambda: False,
        suspects=threading.Lock(),
        min_priority=lambda: 0,
        observe=raise_failure,
    )
    consumer.recover_orphans()
    (phantom,) = consumer.read_new(1)
    with redis_server.client() as client:
        client.xack(Keys().stream, GROUP, phantom.id)
    worker.drain()
    assert settlement.settled.count(PHANTOM) == 1
    assert len(settlement.settled) < UNREST, "only when there was nothing else left"
    assert sorted(settlement.settled) == list(range(1, len(settlement.settled) + 1))
