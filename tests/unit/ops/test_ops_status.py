"""When a process is alive and when it is ready, and what it tells of itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from email_ingestion import errors, events
from email_ingestion.events import Event
from email_ingestion.ops.status import Status
from email_ingestion.ops.status_records import Identity, Names, Peer, RedisState
from tests.unit.ops.shown import PRODUCER, PRODUCER_NAMES, READING, WORKER, WORKER_NAMES, Clock, FakeBreaker

REDIS_UP = events.Probed("redis", ok=True, seconds=0.0007, error=None)
REDIS_DOWN = events.Probed("redis", ok=False, seconds=1.0, error=errors.RedisConnectionError("refused"))
RUNNING: tuple[Event, ...] = (events.Started("defaults"), REDIS_UP)
REVOKED = errors.OAuth2AuthenticationError("consent was withdrawn; run python producer.py --auth-setup")
MISTYPED = errors.OAuth2AuthenticationError("the OAuth2 client is refused", is_of_client=True)


def words(text: str) -> set[str]:
    return set(text.split())


class Board:
    """A status board, its breakers and its time."""

    def __init__(self, identity: Identity = WORKER, names: Names = WORKER_NAMES) -> None:
        self.time = Clock(1000.0)
        self.step = 0.0  # seconds by which the wall clock was set
        self.breakers = {name: FakeBreaker(name) for name in names.breakers}
        self.status = Status(
            identity, names, lambda: list(self.breakers.values()), lambda: self.time.now + self.step, self.time
        )

    def after(self, *happened: Event) -> str:
        for event in happened:
            self.status(event)
        return self.status.readiness().status

    @property
    def reasons(self) -> str:
        return " | ".join(self.status.readiness().reasons)


@pytest.fixture
def worker() -> Board:
    return Board()


@pytest.fixture
def producer() -> Board:
    return Board(PRODUCER, PRODUCER_NAMES)


def test_a_process_is_starting_until_redis_has_answered(worker: Board) -> None:
    assert worker.after() == "starting"
    assert worker.after(events.Started("defaults")) == "starting"
    assert "redis: no answer yet" in worker.reasons
    assert worker.after(REDIS_UP) == "ready"


def unforeseen() -> Exception:
    try:
        {}["Dear customer"]
    except KeyError as error:
        return error
    raise AssertionError


def test_a_failure_nobody_foresaw_degrades_and_names_class_and_place_but_no_text(producer: Board) -> None:
    failure = events.LoopFailed("watch:default", unforeseen(), retry_in=4.0)
    assert producer.after(*RUNNING, failure, failure) == "degraded"
    assert "loop watch:default: KeyError at ops/test_ops_status.py:" in producer.reasons
    assert "(2 times)" in producer.reasons
    assert "Dear customer" not in producer.reasons
    producer.time.now += 80.0
    turned = events.LoopTick("watch")
    assert producer.after(REDIS_UP, turned, events.Synced("default", "INBOX", 1, 7, 0)) == "degraded"  # a moment ago
    producer.time.now += 30.0
    assert producer.after(REDIS_UP, turned) == "ready"


def test_a_thread_that_has_ended_is_told_for_ever(producer: Board) -> None:
    producer.after(*RUNNING, events.LoopFailed("keep-0", unforeseen(), retry_in=None))
    producer.time.now += 1e6
    assert producer.after(REDIS_UP, events.LoopTick("watch")) == "degraded"
    assert "loop keep-0: KeyError" in producer.reasons


def test_what_a_loop_waits_for_is_told_until_it_is_back(producer: Board) -> None:
    away = events.LoopFailed("watch:default", errors.SinkUnavailable("the database is away"), retry_in=1.0)
    assert producer.after(*RUNNING, away) == "degraded"
    assert "loop watch:default: SinkUnavailable: the database is away" in producer.reasons
    assert producer.after(events.Synced("default", "INBOX", 1, 7, 0)) == "ready"


def test_a_start_during_an_outage_says_what_is_missing(worker: Board) -> None:
    assert worker.after(REDIS_DOWN) == "not_ready"
    assert "RedisConnectionError: refused" in worker.reasons


def test_readiness_follows_redis(worker: Board) -> None:
    assert worker.after(*RUNNING, REDIS_DOWN) == "not_ready"
    assert worker.after(REDIS_UP) == "ready"
    assert worker.after(events.RedisFailed(errors.RedisConnectionError("READONLY"), 1.0)) == "not_ready"


def test_an_open_redis_breaker_is_not_ready_and_a_trying_one_is_degraded(worker: Board) -> None:
    worker.after(*RUNNING)
    worker.breakers["redis"].state = "OPEN"
    assert worker.after() == "not_ready"
    worker.breakers["redis"].state = "HALF_OPEN"
    assert worker.after() == "degraded"
    worker.breakers["redis"].state = "CLOSED"
    assert worker.after() == "ready"


def test_one_sink_down_is_degraded_and_no_sink_is_not_ready(worker: Board) -> None:
    down = events.Probed("database", ok=False, seconds=0.1, error=errors.SinkUnavailable("locked"))
    assert worker.after(*RUNNING, down) == "degraded"
    worker.breakers["webhook"].state = "OPEN"
    assert worker.after() == "not_ready"
    assert "no sink is usable" in worker.reasons


@pytest.mark.parametrize(
    ("trouble", "mended"),
    [
        (events.ConnectionFailed("default", errors.IMAPConnectionError("reset"), 5.0), events.Connected("default")),
        (events.ConnectionFailed("default", errors.IMAPThrottledError("slow"), 60.0), events.Connected("default")),
        (events.NeedsOperator("default", REVOKED), events.Connected("default")),
        (
            events.TokenRefreshFailed("default", errors.TokenRefreshError("502"), permanent=False),
            events.TokenRefreshed("default", 5000.0),
        ),
        (events.FetchPaused("default", "the stream is full"), events.FetchPaused("default", "")),
        (events.TokenRefreshed("default", 900.0), events.TokenRefreshed("default", 5000.0)),
    ],
)
def test_trouble_with_the_mailbox_degrades_the_producer_until_it_is_over(
    producer: Board, trouble: Event, mended: Event
) -> None:
    assert producer.after(*RUNNING, trouble) == "degraded"
    assert producer.reasons
    assert producer.after(mended) == "ready"


def test_a_stall_outlives_the_login_of_the_watcher_that_replaced_it(producer: Board) -> None:
    logged_in = (events.TokenRefreshed("default", 5000.0), events.Connected("default"))
    assert producer.after(*RUNNING, events.WatcherRebuilt("default", 300.0), *logged_in) == "degraded"
    assert "its watcher got nothing done for 300 s" in producer.reasons
    assert producer.after(events.Synced("default", "INBOX", 1, 7, 0)) == "ready"


def test_a_stall_over_the_database_is_not_blamed_on_the_mail_server(producer: Board) -> None:
    stalled = events.WatcherRebuilt("default", 300.0, asked_server=False)
    assert producer.after(*RUNNING, stalled) == "degraded"
    assert "it waits for the database, Redis or a disk" in producer.reasons


def test_a_missing_consent_outlives_a_refresh(producer: Board) -> None:
    refreshed = events.TokenRefreshed("default", 5000.0)
    assert producer.after(*RUNNING, events.NeedsOperator("default", REVOKED), refreshed) == "degraded"
    assert producer.status.report()["accounts"][0]["reauth_required"] is True


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ([], None),
        ([events.TokenRefreshed("default", 5000.0)], "valid"),
        ([events.TokenRefreshed("default", 5000.0, 2 * 86400.0)], "expiring"),
        ([events.TokenRefreshed("default", 5000.0, 9 * 86400.0)], "valid"),
        ([events.TokenRefreshFailed("default", errors.TokenRefreshError("502"), permanent=False)], "refresh failing"),
        ([events.TokenRefreshFailed("default", REVOKED, permanent=True)], "re-authorize"),
        ([events.TokenRefreshFailed("default", MISTYPED, permanent=True)], "client refused"),
        ([events.TokenRefreshFailed("default", MISTYPED, permanent=False)], "client refused"),
        ([events.NeedsOperator("default", MISTYPED), events.TokenRefreshed("default", 5000.0)], "valid"),
        ([events.NeedsOperator("default", REVOKED), events.TokenRefreshed("default", 5000.0)], "re-authorize"),
        (
            [
                events.NeedsOperator("default", REVOKED),
                events.TokenRefreshed("default", 5000.0),
                events.Connected("default"),
            ],
            "valid",
        ),
    ],
)
def test_the_state_of_a_token_is_told(producer: Board, told: list[Event], state: str | None) -> None:
    producer.after(*told)
    assert producer.status.report()["accounts"][0]["token_state"] == state


def test_a_consent_that_ends_within_days_degrades_the_producer(producer: Board) -> None:
    assert producer.after(*RUNNING, events.TokenRefreshed("default", 5000.0, 9 * 86400.0)) == "ready"
    producer.time.now = 7 * 86400.0
    producer.after(events.TokenRefreshed("default", 8 * 86400.0, 9 * 86400.0), REDIS_UP)
    assert "consent ends in 2.0 days" in producer.reasons
    assert "--auth-setup" in producer.reasons


def test_draining_outranks_everything(worker: Board) -> None:
    assert worker.after(*RUNNING, REDIS_DOWN, events.Stopping("SIGTERM")) == "draining"
    assert worker.reasons == "stopping: SIGTERM"


def test_conditions_come_and_go(worker: Board) -> None:
    worker.after(*RUNNING)
    worker.status.set_condition("paused", "by an operator")
    assert worker.after() == "degraded"
    worker.status.set_condition("disk", "no space for data", critical=True)
    assert worker.after() == "not_ready"
    worker.status.set_condition("disk", None)
    worker.status.set_condition("paused", None)
    assert worker.after() == "ready"


def test_a_sink_that_hangs_is_a_reason_until_it_takes_mail(worker: Board) -> None:
    assert worker.after(*RUNNING, events.SinkCalls("webhook", (("a:gm:1", 990.0),), None)) == "ready"
    assert worker.after(events.SinkCalls("webhook", (("a:gm:1", 970.0),), "30 s at a:gm:1")) == "degraded"
    assert "sink webhook: 30 s at a:gm:1" in worker.reasons
    assert worker.after(events.SinkCalls("webhook", (), None)) == "ready"


def test_mail_that_does_not_get_to_a_sink_is_a_reason_whatever_holds_it_up(worker: Board) -> None:
    held_up = events.SinkBacklog("webhook", 3, 5.0, 0, "worker-2 has default:gm:1 in hand")
    assert worker.after(*RUNNING, events.SinkBacklog("webhook", 3, 5.0, 0), held_up) == "ready"
    worker.time.now += 21
    assert worker.after(held_up) == "degraded"
    assert "sink webhook: mail has waited for it for 21 s: worker-2 has default:gm:1 in hand" in worker.reasons
    assert worker.after(events.SinkBacklog("webhook", None, None)) == "degraded"  # for all that is known
    assert worker.after(events.SinkCalls("webhook", (), "no answer")) == "degraded"
    assert "worker-2" not in worker.reasons  # what is wrong with the sink says it already
    worker.after(events.SinkCalls("webhook", (), None))
    assert worker.after(events.SinkBacklog("webhook", 3, 6.0, 0)) == "ready"  # it moves
    worker.time.now += 21
    assert worker.after(events.LoopTick("consume")) == "degraded"  # its dispatcher says nothing any more
    assert "it does not move" in worker.reasons
    assert worker.after(events.SinkBacklog("webhook", 0, None, 0)) == "ready"


def test_mail_that_is_to_be_sent_again_and_does_not_move_is_a_reason(worker: Board) -> None:
    worker.after(*RUNNING, events.SinkBacklog("webhook", 0, None, 7))
    worker.time.now += 15
    worker.after(events.SinkBacklog("webhook", 0, None, 6))
    worker.time.now += 15
    assert worker.after(events.SinkBacklog("webhook", 0, None, 6)) == "ready"
    worker.time.now += 15
    worker.after(events.LoopTick("consume"))
    assert worker.after(events.SinkBacklog("webhook", 0, None, 6, "due and not taken")) == "degraded"


def test_a_loop_that_hands_mail_over_is_told_when_it_hangs_long_before_it_counts_as_stalled() -> None:
    names = replace(WORKER_NAMES, loops={"consume": 120.0, "sink webhook": 120.0}, flow=("sink webhook",))
    worker = Board(names=names)
    assert worker.after(*RUNNING) == "ready"
    worker.time.now += 26
    assert worker.after(REDIS_UP) == "degraded"
    assert worker.reasons == "loop sink webhook has not turned for 26 s"
    worker.time.now += 100
    assert worker.after(REDIS_UP) == "not_ready"
    assert worker.reasons.count("sink webhook") == 1
    assert worker.after(events.LoopTick("sink webhook"), events.LoopTick("consume")) == "ready"


def test_a_silent_loop_is_neither_alive_nor_ready_until_it_turns(worker: Board) -> None:
    worker.after(*RUNNING)
    worker.time.now += 31
    alive, body = worker.status.health()
    assert (alive, body["status"]) == (False, "stalled")
    assert "consume" in body["reasons"][0]
    assert worker.after() == "not_ready"
    assert worker.after(events.LoopTick("consume"), REDIS_UP) == "ready"
    assert worker.status.health()[0] is True


def test_an_outage_of_redis_does_not_touch_liveness(worker: Board) -> None:
    worker.after(*RUNNING, REDIS_DOWN)
    assert worker.status.health()[0] is True


def test_waiting_for_a_sink_is_not_an_outage_of_redis(worker: Board) -> None:
    for error in (errors.SinkUnavailable("locked"), errors.CircuitBreakerError("database", 30.0)):
        assert worker.after(*RUNNING, events.RedisFailed(error, 1.0)) == "ready"
    assert worker.after(events.RedisFailed(errors.CircuitBreakerError("redis", 30.0), 1.0)) == "not_ready"


def test_a_loop_may_end_on_purpose(worker: Board) -> None:
    worker.status.loops.watch("recover", 10.0)
    worker.status.loops.forget("consume")
    worker.time.now += 31
    assert list(worker.status.loops.stalled()) == ["recover"]


def test_a_dependency_nobody_asks_any_more_counts_as_failing(worker: Board) -> None:
    worker.after(*RUNNING, events.Probed("database", ok=True, seconds=0.1, error=None))
    worker.time.now += 61
    worker.status(events.LoopTick("consume"))
    assert worker.after() == "not_ready"
    assert worker.reasons == "redis: not checked for 61 s"


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0], ids=["a day back", "a day forward"])
def test_a_clock_that_is_set_makes_up_no_failure_and_hides_none(worker: Board, step: float) -> None:
    assert worker.after(*RUNNING) == "ready"
    worker.step = step
    assert worker.after() == "ready"
    assert [each["age_seconds"] for each in worker.status.report()["checks"] if each["name"] == "redis"] == [0.0]
    worker.time.now += 61
    assert worker.after() == "not_ready"
    assert "redis: not checked for 61 s" in worker.reasons


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0], ids=["a day back", "a day forward"])
def test_a_failure_of_a_loop_is_shown_as_long_as_it_lasts_though_the_clock_is_set(producer: Board, step: float) -> None:
    away = errors.IMAPConnectionError("refused")
    assert producer.after(*RUNNING, events.LoopFailed("watch:default", away, retry_in=4.0)) == "degraded"
    producer.step = step
    assert producer.after() == "degraded"
    producer.time.now += 15
    assert producer.after(REDIS_UP) == "ready"


def test_the_report_has_every_key_of_the_contract_before_anything_is_known(producer: Board) -> None:
    producer.status.set_peers([Peer("worker", "worker-1", 7, alive=False, ready=None, ops_url=None, seen_at=None)])
    report = producer.status.report()
    keys = {
        name: set(value[0]) if isinstance(value, list) else set(value)
        for name, value in report.items()
        if isinstance(value, list | dict) and name != "reasons"
    }
    assert keys == {
        "circuit_breakers": words(
            "name state failure_count success_count fail_max recovery_timeout success_threshold "
            "retry_after_seconds forced last_error last_error_type last_state_change"
        ),
        "checks": words("name status critical response_time_ms error error_type checked_at age_seconds"),
        "stream": words("name depth pending waiting oldest_age_seconds max_deliveries ok collected_at"),
        "dlq": {"name", "depth", "oldest_age_seconds"},
        "accounts": words(
            "name mailbox watch refused alert alert_age_seconds last_uid uidvalidity backlog last_success_age_seconds "
            "history bytes_today "
            "byte_budget "
            "token_expires_in_seconds token_state consent_expires_in_seconds reauth_required quarantined "
            "quarantine_accepted"
        ),
        "statistics": words("produced processed failed dead_lettered duplicates orphans_claimed"),
        "peers": words("component instance pid alive ready ops_url seen_age_seconds"),
        "clocks": {"server", "offset_seconds"},
        "control": words("paused pause level degradation min_priority priority orders"),
    }
    assert words("component instance status version pid started_at uptime_seconds timestamp") <= report.keys()
    assert report["stream"]["depth"] is None
    assert report["statistics"]["processed"] is None
    assert report["statistics"]["produced"] == 0
    json.dumps(report)


def test_the_report_shows_redis_and_forgets_it_when_it_is_gone_or_old(worker: Board) -> None:
    def gone() -> RedisState:
        raise errors.RedisConnectionError("gone")

    worker.status.collect(lambda: READING)
    worker.time.now = 1010.0
    shown = worker.status.report()
    assert shown["stream"] == {
        "name": "{email_ingestion}:stream",
        "depth": 7,
        "pending": 3,
        "waiting": 4,
        "oldest_age_seconds": 10.0,
        "max_deliveries": 2,
        "ok": True,
        "collected_at": "1970-01-01T00:16:40.000Z",
    }
    assert shown["dlq"] == {"name": "{email_ingestion}:dlq", "depth": 1, "oldest_age_seconds": 110.0}
    worker.time.now = 1031.0
    assert worker.status.redis() is None
    worker.status.collect(lambda: READING)
    worker.status.collect(gone)
    lost = worker.status.report()["stream"]
    assert (lost["ok"], lost["depth"], lost["collected_at"]) == (False, None, "1970-01-01T00:17:11.000Z")


def test_the_report_shows_the_accounts(producer: Board) -> None:
    producer.after(
        events.Watching("default", "idle"),
        events.Synced("default", "[Gmail]/All Mail", 11, 4711, 3),
        events.HistoryWalked("default", 250, 0.75, 12.34),
        events.BytesSpent("default", 10, 100),
        events.TokenRefreshed("default", 4600.0),
        events.Published("default", "[Gmail]/All Mail", ("default:gm:1",), 1, 10),
    )
    producer.time.now += 5
    report = producer.status.report()
    assert report["accounts"][0] == {
        "name": "default",
        "mailbox": "[Gmail]/All Mail",
        "watch": "idle",
        "refused": [],
        "alert": None,
        "alert_age_seconds": None,
        "last_uid": 4711,
        "uidvalidity": 11,
        "backlog": 3,
        "last_success_age_seconds": 5.0,
        "history": {"remaining": 250, "percent": 75.0, "eta_seconds": 12.3},
        "bytes_today": 10,
        "byte_budget": 100,
        "token_expires_in_seconds": 3595.0,
        "token_state": "valid",
        "consent_expires_in_seconds": None,
        "reauth_required": False,
        "quarantined": [],
        "quarantine_accepted": 0,
    }
    assert report["statistics"]["produced"] == 1


def test_a_quarantined_message_is_named_at_once_and_degrades_until_it_is_accepted(producer: Board) -> None:
    def shown() -> dict:
        return producer.status.report()["accounts"][0]

    producer.after(
        *RUNNING,
        events.Quarantined("default", "INBOX", 7, errors.IMAPConnectionError("it hangs up over alice@example.com"), 1),
        events.QuarantineCounted("default", "Archive", ((3, "it is empty"),), 2),
    )
    assert shown()["quarantined"][0]["uid"] == 7
    assert "it hangs up" in shown()["quarantined"][0]["reason"]
    assert "alice" not in shown()["quarantined"][0]["reason"]
    assert shown()["quarantined"][1] == {"mailbox": "Archive", "uid": 3, "reason": "it is empty"}
    assert shown()["quarantine_accepted"] == 2
    (reason,) = [each for each in producer.status.report()["reasons"] if "quarantined" in each]
    assert reason.startswith("account default: 2 quarantined, UID 7: it hangs up")
    assert "and 1 more" in reason
    producer.after(
        events.QuarantineCounted("default", "INBOX", (), 1), events.QuarantineCounted("default", "Archive", (), 3)
    )
    assert shown()["quarantined"] == []
    assert not [each for each in producer.status.report()["reasons"] if "quarantined" in each]


def test_statistics_count_each_message_once(worker: Board) -> None:
    worker.after(
        events.Delivered("a:gm:1", 1, duplicate=False, duration=0.1, queue_wait=0.1, end_to_end=1.0),
        events.Delivered("a:gm:2", 1, duplicate=True, duration=0.1, queue_wait=0.1, end_to_end=1.0),
        events.Deferred("a:gm:3", 1, errors.SinkUnavailable("x"), 1.0),
        events.DeadLettered("a:gm:3", "max_retries", 6, errors.SinkUnavailable("x")),
        events.DeadLettered("a:gm:5", "poison", 6, None),
        events.DeadLettered("a:gm:6", "operator", 1, errors.SinkUnavailable("x")),
        events.DeadLettered("a:gm:4", "permanent", 1, errors.PermanentError("x")),
        events.Reclaimed(3),
    )
    assert worker.status.report()["statistics"] == {
        "produced": None,
        "processed": 1,
        "failed": 3,
        "dead_lettered": 4,
        "duplicates": 1,
        "orphans_claimed": 3,
    }


def test_no_address_leaves_through_the_report(worker: Board) -> None:
    worker.breakers["redis"].last_error = "login of bob@example.org failed"
    worker.after(
        events.Probed("redis", ok=False, seconds=0.1, error=errors.RedisConnectionError("user bob@example.org"))
    )
    assert "bob" not in json.dumps(worker.status.report())
