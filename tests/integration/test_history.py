"""New mail first, what was there before beside it: newest first, within the budget, and nothing lost by a crash."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from email_ingestion.app.account import log_in
from email_ingestion.blobs import DiskBlobStore
from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import StaleCursor
from email_ingestion.events import BytesSpent, Event, FetchPaused, HistoryWalked, Reconciled, Synced
from email_ingestion.ops.metric_factory import MetricFactory
from email_ingestion.ops.status_records import Names
from email_ingestion.ops.worker_metrics import WorkerMetrics
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.producer import DownloadBudget, fetcher, portion_size, sync
from email_ingestion.producer.selection import batches, batches_descending
from email_ingestion.reconcile import ReconcileReport
from email_ingestion.records import Cursor, SinkMessage
from email_ingestion.routing import Router
from email_ingestion.stream import (
    Appender,
    Consumer,
    DownloadQuota,
    EntryScanner,
    Keys,
    StreamBacklog,
    SyntheticMessages,
)
from email_ingestion.stream.account_limits import QuotaUse
from email_ingestion.worker import Worker
from email_ingestion.worker.processor import BatchProcessor
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.links import Heard, history_uids, link, message
from tests.servers.redis import RedisServer
from tests.servers.watching import Watched, letter

ALL_MAIL = "[Gmail]/All Mail"


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings()) as running:
        for number in range(40):
            running.deliver(letter(number, 1000))
        yield running


@pytest.fixture
def watched(
    sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Watched:
    """Batches of four messages, from chunks of ten."""
    monkeypatch.setattr(sync, "BATCH_BYTES", 4500)
    monkeypatch.setattr(sync, "MAX_FETCH_UIDS", 10)
    monkeypatch.setattr(portion_size, "FIRST_SHARE", 1.0)
    monkeypatch.setattr(portion_size, "SLOW_SECONDS", math.inf)
    return Watched(sandbox, redis_server, tmp_path)


def _goes_on(_seconds: float) -> bool:
    return True


def uids_in_order(watched: Watched) -> list[int]:
    """Of what is in the stream, in the order it came."""
    return [
        entry.uid for page in EntryScanner(link(watched.redis.url), Keys()).stream_pages() for entry in page.entries
    ]


def cursor(watched: Watched) -> Cursor:
    found = Appender(link(watched.redis.url)).cursor("default", ALL_MAIL)
    assert found
    return found


def reconcile(watched: Watched) -> ReconcileReport:
    with closing(log_in(watched.account, 5.0)) as connection:
        return watched.source().reconciler(connection, connection.examine(connection.find_mailbox("auto")), None).run()


def test_new_mail_comes_before_old_and_old_mail_newest_first(watched: Watched):
    with closing(log_in(watched.account, 5.0)) as connection:
        source, mailbox = watched.source(), connection.examine(connection.find_mailbox("auto"))
        new_mail = partial(source.new_mail(connection, mailbox).run, lambda _size, _in_flight: 0.0, _goes_on)
        steps = source.history(connection, mailbox).steps(lambda _size, _in_flight: 0.0)
        assert new_mail()
        assert uids_in_order(watched) == []
        assert next(steps) == 0.0
        first = uids_in_order(watched)
        assert first == [40, 39, 38, 37]
        watched.sandbox.deliver(letter(100))
        assert new_mail()
        assert uids_in_order(watched) == [*first, 41]
        assert any(pause == math.inf for pause in steps)
        assert uids_in_order(watched) == [*first, 41, *range(36, 0, -1)]
        assert next(steps) == math.inf


def test_the_next_batch_is_fetched_ahead_when_there_is_room_and_comes_once(watched: Watched):
    pauses = [0.0, 5.0, 0.0, 0.0]  # there is no room for the second batch until the first one was fetched
    asked: list[int] = []
    in_flight: list[int] = []

    def fetched() -> int:
        return len(watched.sandbox.with_stats(lambda stats: dict(stats.fetched_messages)))

    def room(size: int, load: StreamBacklog) -> float:
        asked.append(size)
        in_flight.append(load.depth)
        if len(asked) == 3:
            assert fetched() == 4
        return pauses.pop(0) if pauses else 0.0

    with closing(log_in(watched.account, 5.0)) as connection:
        source, mailbox = watched.source(), connection.examine(connection.find_mailbox("auto"))
        new_mail = partial(source.new_mail(connection, mailbox).run, lambda _size, _in_flight: 0.0, _goes_on)
        assert new_mail()
        steps = source.history(connection, mailbox).steps(room)
        assert next(steps) == 0.0
        assert in_flight == [0, 4, 4, 8]
        assert (len(uids_in_order(watched)), fetched() >= 8) == (4, True)
        assert next(steps) == 0.0
        assert (len(uids_in_order(watched)), fetched() >= 10) == (8, True)
        watched.sandbox.deliver(letter(100))
        assert new_mail()
        assert any(pause == math.inf for pause in steps)
    assert uids_in_order(watched) == [*range(40, 32, -1), 41, *range(32, 0, -1)]
    assert sum(asked) - asked[1] == sum(each.size for each in watched.sandbox.messages() if each.size > 1000)
    assert set(watched.sandbox.with_stats(lambda stats: dict(stats.fetched_messages)).values()) == {1}


def test_much_new_mail_is_fetched_ahead_as_well(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sync, "MAX_FETCH_UIDS", 500)
    in_flight: list[int] = []

    def room(_size: int, load: StreamBacklog) -> float:
        in_flight.append(load.depth)
        return 1.0 if len(in_flight) in {2, 3} else 0.0  # the second batch has to wait until the first is appended

    waited: list[float] = []
    with closing(log_in(watched.account, 5.0)) as connection:
        source, mailbox = watched.source(), connection.examine(connection.find_mailbox("auto"))
        new_mail = partial(source.new_mail(connection, mailbox).run, room, lambda seconds: not waited.append(seconds))
        assert new_mail()
        for number in range(100, 120):
            watched.sandbox.deliver(letter(number, 1000))
        assert new_mail()
    assert uids_in_order(watched) == list(range(41, 61))
    assert in_flight == [0, 4, 4, 0, 4, 8, 8]
    assert [seconds for seconds in waited if seconds] == [1.0]
    assert set(watched.sandbox.with_stats(lambda stats: dict(stats.fetched_messages)).values()) == {1}


def test_the_walk_goes_on_where_it_was_killed(watched: Watched):
    """Each life ends after one batch; reconcile takes what is still to come for what it is."""
    lives = 0
    while not lives or cursor(watched).history > 1:
        with closing(log_in(watched.account, 5.0)) as connection:
            source, mailbox = watched.source(), connection.examine(connection.find_mailbox("auto"))
            assert source.new_mail(connection, mailbox).run(lambda _size, _in_flight: 0.0, _goes_on)
            next(source.history(connection, mailbox).steps(lambda _size, _in_flight: 0.0))
        report = reconcile(watched)
        assert (report.missing, report.queued + report.unfetched) == (0, 40)
        lives += 1
    assert lives > 8
    assert uids_in_order(watched) == list(range(40, 0, -1))
    fetched = watched.sandbox.with_stats(lambda stats: dict(stats.fetched_messages))
    assert 2 <= max(fetched.values()) <= 3  # a life takes a batch with it, and one more that was asked for


def test_a_watcher_walks_beside_new_mail_and_shows_how_far_it_is(watched: Watched):
    with watched.running():
        watched.sandbox.deliver(letter(100))
        watched.arrives()
        watched.hears(HistoryWalked, remaining=0)
    walked = watched.heard.of(HistoryWalked)
    assert [event.remaining for event in walked] == sorted((event.remaining for event in walked), reverse=True)
    shown = watched.ops.status.report()["accounts"][0]["history"]
    assert shown == {"remaining": 0, "percent": 100.0, "eta_seconds": shown["eta_seconds"]}
    assert watched.metric("imap_history_remaining_messages", account="default") == 0


def test_a_single_pass_brings_everything(watched: Watched):
    assert watched.supervisor.watcher.once()
    assert uids_in_order(watched) == list(range(40, 0, -1))
    watched.ledger.close()


def test_a_walk_moves_no_latency_of_live_mail(watched: Watched, tmp_path: Path):
    assert watched.supervisor.watcher.once()
    watched.sandbox.deliver(letter(100))
    assert watched.supervisor.watcher.once()
    assert history_uids(watched.redis.url) == set(range(1, 41))
    counted = deliver_all(watched, tmp_path)
    for name in ("end_to_end_latency_seconds_count", "queue_wait_seconds_count"):
        assert (counted(name, mail="history"), counted(name, mail="live")) == (40.0, 1.0)
    watched.ledger.close()


def deliver_all(watched: Watched, folder: Path) -> Callable[..., float | None]:
    """Let a worker take what is in the stream; returns what reads its metrics."""
    registry = CollectorRegistry()
    names = Names(accounts=("default",), breakers=(), dependencies={}, sinks=("shelf",))
    reactions = WorkerMetrics(MetricFactory(registry), names).reactions()

    def observe(event: Event) -> None:
        if type(event) in reactions:
            reactions[type(event)](event)

    consumer = Consumer(link(watched.redis.url), "here-worker-1", 60)
    with closing(IsolatedParser(30.0)) as parser:
        processor = BatchProcessor(
            consumer,
            Shelf(),
            Breaker("shelf", BreakerPolicy(fail_max=1000), (), observe),
            DiskBlobStore(folder / "blobs"),
            parser,
            synthetic=SyntheticMessages(link(watched.redis.url)),
            further_sinks=(),
            router=Router((), ()),
            on_recorded=lambda: None,
            max_retries=5,
            instance="here",
            observe=observe,
        )
        Worker(
            consumer,
            processor,
            batch=lambda: 50,
            lease=60,
            paused=lambda: False,
            suspects=threading.Lock(),
            min_priority=lambda: 0,
            observe=observe,
        ).drain()
    return lambda name, **labels: registry.get_sample_value(f"email_ingestion_{name}", labels)


class Shelf:
    """A sink that takes everything."""

    name = "shelf"

    def deliver(self, batch: Sequence[SinkMessage]) -> set[str]:
        return set()

    def ping(self) -> None:
        """Be there."""


def test_a_flush_begins_the_walk_anew_on_a_living_connection(watched: Watched):
    with watched.running():
        watched.arrives()
        with watched.redis.client() as client:
            client.flushall()
        watched.sandbox.deliver(letter(100))
        watched.arrives()


def test_what_is_old_waits_while_the_stream_is_busy(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("email_ingestion.producer.backpressure.HISTORY_DEPTH", 8)
    with watched.running():
        watched.until(lambda: len(uids_in_order(watched)) == 8, "two batches")
        watched.sandbox.deliver(letter(100))
        watched.until(lambda: uids_in_order(watched) == [*range(40, 32, -1), 41], "the new one all the same")
        with watched.redis.client() as client:
            client.delete(watched.keys.stream)
        watched.until(lambda: uids_in_order(watched)[:4] == [32, 31, 30, 29], "more when there is room")


def test_degraded_new_mail_comes_and_old_mail_and_reconciliation_wait(watched: Watched):
    watched.control.set_level("DEGRADED", 600, "an operator")
    with watched.running():
        watched.hears(Synced)
        watched.sandbox.deliver(letter(100))
        watched.until(lambda: uids_in_order(watched) == [41], "the new one")
        watched.sandbox.deliver(letter(101))
        watched.until(lambda: uids_in_order(watched) == [41, 42], "the next one, and nothing else")
        assert not watched.heard.of(Reconciled)
        watched.control.set_level("NORMAL", 600, "an operator")
        watched.arrives()


# The budget


def test_old_mail_may_use_a_part_of_the_budget_and_new_mail_all_of_it(watched: Watched):
    small = Watched(watched.sandbox, watched.redis, watched.folder, {"imap_bytes_per_day": 30_000})
    with small.running():
        small.until(lambda: small.heard.of(BytesSpent) and small.heard.of(BytesSpent)[-1].today >= 24_000, "80 %")
        for number in range(100, 120):
            small.sandbox.deliver(letter(number, 1000))
        small.until(lambda: small.heard.of(BytesSpent)[-1].today >= 30_000, "100 %")
        small.sandbox.deliver(letter(120, 1000))
        held = small.hears(FetchPaused)
        assert held.reason == "IMAP_BYTES_PER_DAY is used up"
    uids = uids_in_order(small)
    assert 10 < sum(uid <= 40 for uid in uids) < 30
    assert 0 < sum(uid > 40 for uid in uids) <= 20
    account = small.ops.status.report()["accounts"][0]
    assert account["byte_budget"] == 30_000 <= account["bytes_today"]
    assert small.metric("imap_bytes_budget_remaining", account="default") == 0
    sent = small.sandbox.with_stats(lambda stats: stats.bytes_sent)
    assert abs(account["bytes_today"] - sent) < 2000  # greetings, and what the sandbox could not send any more
    again = Watched(watched.sandbox, watched.redis, watched.folder, {"imap_bytes_per_day": 30_000})
    before = len(uids_in_order(small))
    with again.running():  # a restart forgets nothing
        again.hears(BytesSpent)
        assert again.heard.of(BytesSpent)[0].today >= 30_000
        assert len(uids_in_order(again)) == before


def test_bytes_are_forgotten_after_a_day_and_not_before(redis_server: RedisServer):
    now = 1_000_000_000.0
    quota = DownloadQuota(link(redis_server.url), "default", clock=lambda: now)
    assert quota.reserve(600, 1000).granted
    now += 23 * 3600
    assert quota.reserve(600, 1000) == quota.reserve(0, 0)  # one may go beyond
    assert not quota.reserve(1, 1000).granted
    now += 2 * 3600
    assert quota.reserve(1, 1000).today == 601
    now += 25 * 3600
    assert quota.adjust(-5).today == 0


def test_two_processes_share_a_budget(redis_server: RedisServer):
    ours, theirs = (DownloadQuota(link(redis_server.url), "default") for _ in range(2))
    assert [each.reserve(500, 1000).granted for each in (ours, theirs, ours)] == [True, True, False]
    assert DownloadQuota(link(redis_server.url), "other").reserve(1, 1000).today == 1


class Counted(DownloadQuota):
    """Counts how often Redis is asked."""

    questions = 0

    def reserve(self, size: int, limit: int) -> QuotaUse:
        self.questions += 1
        return super().reserve(size, limit)


def test_a_budget_is_drawn_in_strides_and_what_is_left_is_given_back(redis_server: RedisServer):
    quota, heard = Counted(link(redis_server.url), "default"), Heard()
    budget = DownloadBudget("default", quota, 640_000, heard)
    assert all(budget.reserve(1000, 0.8) for _ in range(30))
    assert quota.questions <= 8
    assert heard.of(BytesSpent)[-1].today == 30_000
    assert 30_000 < quota.reserve(0, 0).today < 40_000  # a crash would have used up so much
    budget.correct(25_000)
    budget.correct(31_000, last=True)
    assert heard.of(BytesSpent)[-1].today == quota.reserve(0, 0).today == 31_000
    assert budget.reserve(1000)
    budget.correct(20_000)  # of another connection; more came than was in hand
    assert quota.reserve(0, 0).today == 51_000


def test_crash_upon_crash_does_not_use_up_a_day(redis_server: RedisServer):
    quota = DownloadQuota(link(redis_server.url), "default")
    for _ in range(100):  # producers that die after three messages each
        budget = DownloadBudget("default", quota, 2_500_000_000, lambda _: None)
        assert all(budget.reserve(1000) for _ in range(3))
    assert quota.reserve(0, 0).today <= 2 * 300_000


def test_old_mail_has_nothing_of_what_was_drawn_for_new_mail(redis_server: RedisServer):
    quota = Counted(link(redis_server.url), "default")
    quota.reserve(8_100_000, 10_000_000)
    budget = DownloadBudget("default", quota, 10_000_000, lambda _: None)
    assert [budget.reserve(1000), budget.reserve(1000), budget.reserve(1000)] == [True] * 3
    asked = quota.questions
    assert not budget.reserve(1000, 0.8)
    assert budget.reserve(1000)  # that was drawn for it
    assert quota.questions == asked + 1


# The other end of the cursor


@pytest.fixture
def appender(redis_server: RedisServer) -> Appender:
    made = Appender(link(redis_server.url))
    made.restart_cursor("default", "INBOX", Cursor(1, 100, 100, 101))
    return made


def down(appender: Appender, since: int, *uids: int, last_uid: int) -> tuple[int, Cursor]:
    at = Cursor(1, 100, 100, since)
    return appender.append("default", "INBOX", at, last_uid, [message(uid) for uid in uids], end="history")


def test_history_moves_down_and_new_mail_up(appender: Appender):
    assert down(appender, 101, 100, 99, last_uid=98) == (2, Cursor(1, 100, 100, 98))
    assert appender.append("default", "INBOX", Cursor(1, 100, 100, 98), 101, [message(101)])[0] == 1
    assert appender.cursor("default", "INBOX") == Cursor(1, 101, 100, 98)


def test_a_resent_portion_adds_nothing_and_a_mark_that_went_back_is_refused(appender: Appender):
    assert down(appender, 101, 100, 99, last_uid=99)[0] == 2
    assert down(appender, 101, 100, 99, 98, last_uid=98)[0] == 1  # two producers, or a lost answer
    with pytest.raises(StaleCursor):
        down(appender, 90, 89, last_uid=89)
    assert appender.cursor("default", "INBOX") == Cursor(1, 100, 100, 98)


def test_a_cursor_of_an_earlier_release_has_no_history_to_come(redis_server: RedisServer):
    made = Appender(link(redis_server.url))
    with redis_server.client() as client:
        client.hset(Keys().cursor("default", "INBOX"), mapping={"uidvalidity": 1, "uid": 7, "rescan": 9})
    assert made.cursor("default", "INBOX") == Cursor(1, 7, 9, 1)


def test_portions_from_above_are_those_from_below_mirrored(watched: Watched):
    with closing(log_in(watched.account, 5.0)) as connection:
        connection.examine(connection.find_mailbox("auto"))
        outlines = connection.fetch_summaries(range(1, 11))
    wanted = {1, 2, 3, 5, 8, 9, 10}
    cut = [([each.uid for each in p.summaries], p.last_uid) for p in batches_descending(outlines, wanted, 1, 2300)]
    assert cut == [([10, 9], 9), ([8, 5], 4), ([3, 2], 2), ([1], 1)]
    assert sum(len(p.summaries) for p in batches(outlines, wanted, 10, fetcher.BATCH_BYTES)) == 7
