"""While one batch is recorded the next is parsed, and neither pays for what befalls the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.blobs import DiskBlobStore
from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import SinkUnavailable
from email_ingestion.events import Delivered, Event, SlowMessageFound
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import Cursor, SinkMessage
from email_ingestion.routing import Router
from email_ingestion.stream import GROUP, Appender, Consumer, Keys, SyntheticMessages
from email_ingestion.worker import Worker
from email_ingestion.worker.processor import BatchProcessor
from tests.servers.links import link, message
from tests.servers.poison import poisoned_python
from tests.servers.processes import until
from tests.servers.redis import RedisServer

PATIENCE = 30.0
MESSAGES = 6
BATCH = 3


class Watched(IsolatedParser):
    """Notes when it has been given the second batch."""

    def __init__(self) -> None:
        super().__init__(PATIENCE)
        self.given = 0
        self.second = threading.Event()

    def parse_within(self, seconds, batch):
        self.given += 1
        if self.given == 2:
            self.second.set()
        return super().parse_within(seconds, batch)


class Shelf:
    """A sink that lets go of the first batch when the second is with the parser; `away` is its weather."""

    name = "shelf"

    def __init__(self, parser: Watched) -> None:
        self._parser = parser
        self.away = False
        self.got: list[int] = []
        self.overlapped = False

    def deliver(self, batch: Sequence[SinkMessage]) -> set[str]:
        if not self.got:
            self.overlapped = self._parser.second.wait(PATIENCE)
        if self.away:
            raise SinkUnavailable("gone")
        self.got += [message.email.envelope.uid for message in batch]
        return set()

    def ping(self) -> None:
        """Be there."""


@pytest.fixture
def parser() -> Iterator[Watched]:
    with closing(Watched()) as watched:
        yield watched


def _worker(
    redis: RedisServer,
    folder: Path,
    parser: Watched,
    shelf: Shelf,
    observe=lambda event: None,
    *,
    suspects: threading.Lock | None = None,
    **options: Any,
) -> Worker:
    appender = Appender(link(redis.url))
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    appender.append("default", "INBOX", Cursor(1, 0), MESSAGES, [message(uid) for uid in range(1, MESSAGES + 1)])
    consumer = Consumer(link(redis.url), "here-worker-1", 60)
    settlement = BatchProcessor(
        consumer,
        shelf,
        Breaker("shelf", BreakerPolicy(fail_max=1000), (SinkUnavailable,), observe),
        DiskBlobStore(folder / "blobs"),
        parser,
        synthetic=SyntheticMessages(link(redis.url)),
        further_sinks=(),
        router=Router((), ()),
        on_recorded=lambda: None,
        max_retries=5,
        instance="here",
        observe=observe,
        **options,
    )
    return Worker(
        consumer,
        settlement,
        batch=lambda: BATCH,
        lease=60,
        paused=lambda: False,
        suspects=suspects or threading.Lock(),
        min_priority=lambda: 0,
        observe=observe,
    )


def test_the_next_batch_is_parsed_while_the_last_is_recorded(
    redis_server: RedisServer, tmp_path: Path, parser: Watched
):
    shelf = Shelf(parser)
    _worker(redis_server, tmp_path, parser, shelf).drain()
    assert (shelf.overlapped, shelf.got) == (True, list(range(1, MESSAGES + 1)))


def test_a_sink_that_goes_away_costs_no_batch_an_attempt(redis_server: RedisServer, tmp_path: Path, parser: Watched):
    shelf = Shelf(parser)
    shelf.away = True
    worker = _worker(redis_server, tmp_path, parser, shelf)
    for _ in range(3):
        try:
            worker._run_once()
        except SinkUnavailable:
            break
    with redis_server.client() as client:
        pending = client.xpending_range(Keys().stream, GROUP, "-", "+", 100)
    assert [each["times_delivered"] for each in pending] == [0] * MESSAGES
    assert worker._in_flight == ()


def test_a_crash_over_a_message_in_a_sink_counts_against_no_entry_of_the_stream(
    redis_server: RedisServer, tmp_path: Path, parser: Watched
):
    suspects = threading.Lock()
    worker = _worker(redis_server, tmp_path, parser, Shelf(parser), suspects=suspects)
    with redis_server.client() as client:
        worker._consumer.read_new(1, block=False)  # by a life that was killed

        def deliveries() -> list[int]:
            return [each["times_delivered"] for each in client.xpending_range(Keys().stream, GROUP, "-", "+", 99)]

        running = threading.Thread(target=worker.drain)
        with suspects:  # a dispatcher has the message in hand that may kill us again
            running.start()
            until(lambda: client.xlen(Keys().stream) == 1, "all other mail is delivered")
            assert deliveries() == [1]
        running.join(60)
        assert (running.is_alive(), client.xlen(Keys().stream)) == (False, 0)


def test_a_drain_waits_for_no_mail_behind_the_last(
    redis_server: RedisServer, tmp_path: Path, parser: Watched, monkeypatch: pytest.MonkeyPatch
):
    waited_at = []
    read_new = Consumer.read_new

    def watched_read(self: Consumer, limit: int, *, block: bool = True):
        if block:
            waited_at.append(self.depth())
        return read_new(self, limit, block=block)

    monkeypatch.setattr(Consumer, "read_new", watched_read)
    monkeypatch.setattr("email_ingestion.worker.loop.CLAIM_SECONDS", 0.0)  # what is in hand is finished each turn
    parser.second.set()
    _worker(redis_server, tmp_path, parser, Shelf(parser)).drain()
    assert waited_at == [MESSAGES, MESSAGES - BATCH]


LOOP = """
import email_ingestion.parsing as parsing
harmless = parsing.parse
def parse(envelope, raw):
    while envelope.uid == 1 and envelope.account != "probe":
        pass
    return harmless(envelope, raw)
parsing.parse = parse
"""


def test_a_message_is_revoked_whose_parser_in_the_slow_lane_is_not_there_yet(
    redis_server: RedisServer, tmp_path: Path, parser: Watched, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path / "site", LOOP))
    found_at: list[float] = []

    def revoke(event: Event) -> None:
        if isinstance(event, SlowMessageFound):
            found_at.append(time.monotonic())
            assert worker._processor.revoke(event.email_id)

    shelf = Shelf(parser)
    parser.second.set()
    worker = _worker(redis_server, tmp_path, parser, shelf, revoke)
    worker.drain()
    assert time.monotonic() - found_at[0] < PATIENCE / 2
    assert sorted(shelf.got) == list(range(2, MESSAGES + 1))
    with redis_server.client() as client:
        assert [letter[b"dead_reason"] for _, letter in client.xrange(Keys().dlq)] == [b"operator"]
    assert len(found_at) == 1


def test_what_finds_the_slow_lane_full_waits_aside_and_is_not_parsed_in_the_flow_again(
    redis_server: RedisServer, tmp_path: Path, parser: Watched, monkeypatch: pytest.MonkeyPatch
):
    endless = LOOP.replace("envelope.uid == 1 and", "envelope.uid <= 3 and")
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path / "site", endless))
    monkeypatch.setattr("email_ingestion.worker.slow_lane.MAX_WAITING", 1)
    parser.second.set()
    shelf = Shelf(parser)
    worker = _worker(redis_server, tmp_path, parser, shelf)

    def turned() -> bool:
        worker._run_once()
        return True

    def aside() -> list[tuple[bytes, int]]:
        pending = client.xpending_range(Keys().stream, GROUP, "-", "+", 100)
        return [(each["message_id"], each["times_delivered"]) for each in pending if each["consumer"] == b"slow-mail"]

    with redis_server.client() as client:
        until(lambda: turned() and sorted(shelf.got) == [4, 5, 6] and len(aside()) == 1, "the rest flows")
        given = parser.given
        for _ in range(5):
            worker._run_once()
        assert [count for _, count in aside()] == [0]
        client.xclaim(Keys().stream, GROUP, "slow-mail", 0, [aside()[0][0]], idle=61_000, retrycount=0, justid=True)
        until(lambda: turned() and len(aside()) == 1, "it came again and waits again")
        assert parser.given == given
    worker._processor.leave_slow_lane()


def test_what_took_long_to_parse_is_told_with_its_own_time(
    redis_server: RedisServer, tmp_path: Path, parser: Watched, monkeypatch: pytest.MonkeyPatch
):
    slow = LOOP.replace("        pass\n", "        import time; time.sleep(1.2); break\n")
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path / "site", slow))
    delivered: dict[str, Delivered] = {}

    def note(event: Event) -> None:
        if isinstance(event, Delivered):
            delivered[event.email_id] = event

    parser.second.set()
    _worker(redis_server, tmp_path, parser, Shelf(parser), note).drain()
    assert len(delivered) == MESSAGES
    assert delivered[message(1).envelope.email_id].duration > 1.0
    assert {(each.priority, each.tags) for each in delivered.values()} == {(5, ())}
