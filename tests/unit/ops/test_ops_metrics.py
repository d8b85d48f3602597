"""What Prometheus scrapes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from email_ingestion import errors, events
from email_ingestion.events import BreakerState
from email_ingestion.ops import memory_limit
from email_ingestion.ops.metric_factory import ERROR_TYPES
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.observers import Ops
from email_ingestion.ops.status_records import RedisState
from tests.unit.ops.shown import PRODUCER, PRODUCER_NAMES, READING, WORKER, WORKER_NAMES, Clock, FakeBreaker

COMMON = """circuit_breaker_state circuit_breaker_transitions_total dlq_depth dlq_messages_total dlq_replayed_total
stream_depth stream_pending stream_waiting stream_oldest_timestamp_seconds stream_max_deliveries active_workers
dependency_up loop_last_iteration_timestamp_seconds redis_memory_used_bytes redis_memory_max_bytes
backup_last_success_timestamp_seconds log_messages_total build_info collect_success
stream_oldest_pending_timestamp_seconds dlq_oldest_timestamp_seconds redis_evicted_keys_total disk_free_bytes
disk_size_bytes missing_processes"""
OF_PRODUCER = """emails_produced_total emails_skipped_total imap_last_success_timestamp_seconds imap_backlog_messages
imap_connections_total imap_fetched_bytes_total imap_bytes_budget_remaining imap_uidvalidity_changes_total
oauth2_token_expiry_timestamp_seconds oauth2_refreshes_total oauth2_reauth_required oauth2_token_state
oauth2_consent_expiry_timestamp_seconds account_lease_held reconcile_missing
reconcile_last_success_timestamp_seconds delivered_until_timestamp_seconds"""
OF_WORKER = """emails_processed_total emails_failed_total processing_latency_seconds queue_wait_seconds
end_to_end_latency_seconds retries_total duplicates_total orphan_messages_claimed_total sink_deliveries_total"""
FROM_REDIS = """stream_depth stream_pending stream_waiting stream_oldest_timestamp_seconds stream_max_deliveries
stream_oldest_pending_timestamp_seconds dlq_depth dlq_oldest_timestamp_seconds active_workers
redis_evicted_keys_total redis_memory_used_bytes redis_memory_max_bytes dlq_replayed_total"""
CATALOGUE = Path(__file__).parents[3] / "docs" / "metrics.md"
MOST_SERIES = 250  # of ours, per process


def series(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name with labels, without our prefix."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            name = sample.name.removeprefix("email_ingestion_")
            found[f"{name}{{{labels}}}" if labels else name] = sample.value
    return found


def fed(ops: Ops) -> Ops:
    """After one of everything."""
    ops.status.collect(lambda: READING)
    for event in (
        events.LoopTick("consume"),
        events.LoopTick("watch"),
        events.Probed("redis", ok=True, seconds=0.001, error=None),
        events.BackupFound(1234.0),
        events.CertificateSeen("redis", 5678.0),
        events.BreakerChanged("redis", "CLOSED", "OPEN", None),
        events.Connected("default"),
        events.ConnectionFailed("default", errors.IMAPThrottledError("slow"), 1.0),
        events.Synced("default", "[Gmail]/All Mail", 1, 77, 12, 0.5),
        events.Downloaded("default", 1000),
        events.BytesSpent("default", 1000, 2500),
        events.Published("default", "INBOX", ("default:gm:1", "default:gm:2"), 2, 1000),
        events.Skipped("default", "known", 3),
        events.MailboxChanged("default", "INBOX", 1, 2),
        events.TokenRefreshed("default", 5000.0, 9e9),
        events.LeaseChanged("default", None, lost=False),
        events.TokenRefreshFailed("second", errors.OAuth2AuthenticationError("revoked"), permanent=True),
        events.Reconciled("default", 2, 0, 0),
        events.Reconciled("second", 3, 0, 0),
        events.ContentsVerified(10, 5000, 1, 2, 0.5),
        events.ErasuresLookedAt(0),
        events.ConsumersProved({"database": (0, 1.0)}),
        events.ConsumerCompared("database", 0, 0, 0.5),
        events.ConsumerNotCompared("database", "it is away"),
        events.RetentionApplied(3, 1, 0, 0.5),
        events.MailboxContradicted("default", "INBOX", "UID 7 names another message"),
        events.AlteredOnServer("default", "INBOX", 8),
        events.Delivered("default:gm:1", 1, duplicate=False, duration=0.02, queue_wait=0.3, end_to_end=4.0),
        events.Delivered(
            "default:gm:2", 1, duplicate=True, duration=0.02, queue_wait=0.3, end_to_end=4e8, history=True
        ),
        events.SinkDelivered("database", "delivered", 2),
        events.SinkBacklog("webhook", 7, 1700.0),
        events.SyntheticHandled(3, delivered=True),
        events.OutdatedRecordsCounted(4),
        events.SlowMessageFound("default:gm:9"),
        events.CanarySeen(delivered=True, took=0.2),
        events.Deferred("default:gm:3", 1, errors.SinkUnavailable("full"), 2.0),
        events.Deferred("default:gm:4", 1, ZeroDivisionError(), 2.0),
        events.DeadLettered("default:gm:3", "max_retries", 6, errors.SinkUnavailable("full")),
        events.DeadLettered("default:gm:5", "permanent", 1, errors.PermanentError("no")),
        events.Reclaimed(4),
    ):
        ops.metrics(event)
    return ops


def test_a_worker_has_every_metric_of_the_contract(worker: Ops) -> None:
    names = {name.split("{")[0] for name in series(fed(worker).metrics)}
    names |= {name.removesuffix("_count") for name in names}
    assert set((COMMON + " " + OF_WORKER).split()) <= names
    assert not names & set(OF_PRODUCER.split())


def test_a_producer_has_every_metric_of_the_contract(producer: Ops) -> None:
    names = {name.split("{")[0] for name in series(fed(producer).metrics)}
    assert set((COMMON + " " + OF_PRODUCER).split()) <= names
    assert not names & set(OF_WORKER.split())


def test_catalogue_and_code_name_the_same_metrics(worker: Ops, producer: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limit, "memory_use", lambda: memory_limit.MemoryUse(1, 2))
    found: dict[str, tuple[str, str, str]] = {}
    for who, ops in (("producer", producer), ("worker", worker)):
        for family in text_string_to_metric_families(fed(ops).metrics.render().decode()):
            name = family.name + "_total" * (family.type == "counter" and not family.name.endswith("_total"))
            if name.startswith("email_ingestion_"):
                found[name] = (family.type, "both" if name in found else who, family.documentation)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (.*) \|$", CATALOGUE.read_text(), re.MULTILINE)
    assert [name for name, *_ in rows] == sorted(found)
    assert {name: tuple(row) for name, *row in rows} == found


def test_events_move_what_a_worker_counts(worker: Ops) -> None:
    found = series(fed(worker).metrics)
    assert found["emails_processed_total"] == 1
    assert found["duplicates_total"] == 1
    assert found["retries_total"] == 2
    assert found["emails_failed_total{error_type=SinkUnavailable}"] == 2
    assert found["emails_failed_total{error_type=PermanentError}"] == 1
    assert found["emails_failed_total{error_type=_OTHER}"] == 1
    assert found["dlq_messages_total{reason=max_retries}"] == 1
    assert found["orphan_messages_claimed_total"] == 4
    assert found["sink_deliveries_total{result=delivered,sink=database}"] == 2
    assert found["sink_waiting_messages{sink=webhook}"] == 7
    assert found["sink_oldest_timestamp_seconds{sink=webhook}"] == 1700
    for mail, end_to_end in (("live", 4.0), ("history", 4e8)):
        assert found[f"end_to_end_latency_seconds_count{{mail={mail}}}"] == 1
        assert found[f"end_to_end_latency_seconds_sum{{mail={mail}}}"] == end_to_end
        assert found[f"queue_wait_seconds_count{{mail={mail}}}"] == 1
    assert found["circuit_breaker_transitions_total{name=redis,to=open}"] == 1
    assert found["backup_last_success_timestamp_seconds"] == 1234


def test_what_a_sink_is_owed_is_absent_while_nobody_knows(worker: Ops) -> None:
    fed(worker).metrics(events.SinkBacklog("webhook", 0, None))
    found = series(worker.metrics)
    assert found["sink_waiting_messages{sink=webhook}"] == 0
    assert "sink_oldest_timestamp_seconds{sink=webhook}" not in found
    worker.metrics(events.SinkBacklog("webhook", None, None))
    worker.metrics(events.SinkBacklog("webhook", None, None))
    assert "sink_waiting_messages{sink=webhook}" not in series(worker.metrics)


def test_events_move_what_a_producer_counts(producer: Ops) -> None:
    found = series(fed(producer).metrics)
    assert found["emails_produced_total"] == 2
    assert found["emails_skipped_total{reason=known}"] == 3
    assert found["imap_connections_total{result=connected}"] == 1
    assert found["imap_connections_total{result=throttled}"] == 1
    assert found["imap_backlog_messages{account=default}"] == 12
    assert found["imap_bytes_budget_remaining{account=default}"] == 1500
    assert found["oauth2_reauth_required{account=default}"] == 0
    assert found["oauth2_reauth_required{account=second}"] == 1
    assert found["oauth2_refreshes_total{result=refused}"] == 1
    assert found["oauth2_token_state{account=second,state=re-authorize}"] == 1
    assert found["oauth2_token_state{account=default,state=re-authorize}"] == 0
    assert found["oauth2_token_state{account=default,state=valid}"] == 1
    assert found["oauth2_token_expiry_timestamp_seconds{account=default}"] == 5000
    assert found["reconcile_missing"] == 5


def test_counters_stand_at_zero_before_anything_happens(worker: Ops, producer: Ops) -> None:
    found = series(worker.metrics)
    for reason in ("max_retries", "permanent", "poison", "operator"):
        assert found[f"dlq_messages_total{{reason={reason}}}"] == 0
    for kind in ERROR_TYPES:
        assert found[f"emails_failed_total{{error_type={kind}}}"] == 0
    assert found["sink_deliveries_total{result=failed,sink=webhook}"] == 0
    assert found["log_messages_total{level=CRITICAL}"] == 0
    assert series(producer.metrics)["emails_skipped_total{reason=vanished}"] == 0


def test_what_is_not_known_yet_is_absent(producer: Ops) -> None:
    found = series(producer.metrics)
    for name in (
        "reconcile_missing",
        "reconcile_last_success_timestamp_seconds",
        "backup_last_success_timestamp_seconds",
    ):
        assert name not in found
    assert not [name for name in found if name.startswith(("dependency_up", "imap_last_success"))]


def test_gauges_of_redis_are_absent_when_it_cannot_be_read(worker: Ops) -> None:
    def unreadable() -> RedisState:
        raise errors.RedisConnectionError("gone")

    worker.status.collect(lambda: READING)
    shown = series(worker.metrics)
    worker.status.collect(unreadable)
    gone = series(worker.metrics)
    assert set(FROM_REDIS.split()) <= shown.keys()
    assert not set(FROM_REDIS.split()) & gone.keys()
    assert (shown["collect_success"], gone["collect_success"]) == (1, 0)
    assert (shown["stream_depth"], shown["active_workers"], shown["dlq_replayed_total"]) == (7, 2, 5)


def test_a_mail_server_nobody_may_ask_is_neither_up_nor_down(producer: Ops) -> None:
    producer.metrics(events.Probed("imap", ok=False, seconds=0.0, error=errors.IMAPConnectionError("reset")))
    refused = errors.OAuth2AuthenticationError("revoked")
    for _ in range(2):
        producer.metrics(events.NeedsOperator("default", refused))
    assert "dependency_up{dependency=imap}" not in series(producer.metrics)
    producer.metrics(events.Probed("imap", ok=True, seconds=0.0, error=None))
    assert series(producer.metrics)["dependency_up{dependency=imap}"] == 1


def test_a_mail_server_that_answers_one_account_does_not_hide_that_another_ones_fails(producer: Ops) -> None:
    def probed(account: str, error: Exception | None = None) -> events.Probed:
        return events.Probed("imap", ok=error is None, seconds=0.0, error=error, account=account)

    failed, well = probed("second", errors.IMAPConnectionError("the certificate has expired")), probed("default")

    def shown() -> tuple[float | None, float | None, float | None, str]:
        found = series(producer.metrics)
        names = ("dependency_up{dependency=imap}", "imap_up{account=default}", "imap_up{account=second}")
        check = next(each for each in producer.status.report()["checks"] if each["name"] == "imap")
        return (*map(found.get, names), check["status"])

    for event in (well, failed, well):
        producer.observe(event)
    assert shown() == (0, 1, 0, "unhealthy")
    producer.observe(probed("second", errors.CircuitBreakerError("imap:second", 9)))
    assert "certificate" in str(producer.status.report()["checks"])
    producer.observe(events.NeedsOperator("second", errors.ConfigurationError("IMAP_MAILBOX")))
    producer.observe(well)
    assert shown() == (1, 1, None, "healthy")
    producer.observe(failed)
    producer.observe(events.AccountUpdated("second", "paused"))
    assert shown()[2:] == (None, "unknown")


def test_an_empty_stream_has_no_oldest_entry(worker: Ops) -> None:
    empty = type(READING.stream)(0, 0, 0, None, 0)
    worker.status.collect(lambda: RedisState(empty, READING.dlq, 1, 1, 0))
    found = series(worker.metrics)
    assert found["stream_depth"] == 0
    assert "stream_oldest_timestamp_seconds" not in found


def test_a_breaker_shows_its_state_of_now(worker: Ops, redis_breaker: FakeBreaker) -> None:
    seen = []
    states: tuple[BreakerState, ...] = ("CLOSED", "OPEN", "HALF_OPEN")
    for state in states:
        redis_breaker.state = state
        seen.append(series(worker.metrics)["circuit_breaker_state{name=redis}"])
    assert seen == [0, 1, 2]


def test_a_dependency_whose_breaker_opens_is_down_though_no_probe_has_failed(worker: Ops) -> None:
    worker.observe(events.Probed("database", ok=True, seconds=0.0, error=None))
    worker.observe(events.BreakerChanged("database", "CLOSED", "OPEN", None))  # an operator's order tells nothing of it
    assert series(worker.metrics)["dependency_up{dependency=database}"] == 1
    worker.observe(events.BreakerChanged("database", "CLOSED", "OPEN", errors.SinkUnavailable("gone")))
    assert series(worker.metrics)["dependency_up{dependency=database}"] == 0
    checks = {check["name"]: check["status"] for check in worker.status.report()["checks"]}
    assert checks["database"] == "unhealthy"
    worker.observe(events.BreakerChanged("database", "HALF_OPEN", "CLOSED", None))
    assert series(worker.metrics)["dependency_up{dependency=database}"] == 1
    checks = {check["name"]: check["status"] for check in worker.status.report()["checks"]}
    assert checks["database"] == "healthy"


def test_the_number_of_series_does_not_follow_the_mail(worker: Ops, producer: Ops) -> None:
    fed(worker)
    fed(producer)
    before = len(series(worker.metrics)), len(series(producer.metrics))
    for number in range(300):
        kind = type(f"Error{number}", (Exception,), {})
        for ops in (worker, producer):
            ops.observe(events.Deferred(f"a:gm:{number}", 1, kind("x"), 1.0))
            ops.observe(events.Synced(f"unknown-{number}@example.org", "x", 1, 1, 1))
            ops.observe(events.LoopTick(f"loop-{number}"))
            ops.observe(events.SinkDelivered(f"sink-{number}", "delivered", 1))
    after = len(series(worker.metrics)), len(series(producer.metrics))
    assert after[0] <= before[0] + 2  # one _OTHER each for loop and sink
    assert after[1] <= before[1] + 3
    assert max(after) < MOST_SERIES
    assert b"@" not in worker.metrics.render() + producer.metrics.render()


def test_log_records_are_counted_by_level(worker: Ops) -> None:
    worker.metrics.count_log("ERROR")
    worker.metrics.count_log("NOTICE")
    assert series(worker.metrics)["log_messages_total{level=ERROR}"] == 1


def test_times_are_those_of_the_clock() -> None:
    clock = Clock(99.0)
    metrics = Metrics(PRODUCER, PRODUCER_NAMES, list, lambda: None, clock)
    metrics(events.Synced("default", "INBOX", 1, 1, 0))
    metrics(events.LoopTick("watch"))
    found = series(metrics)
    assert found["imap_last_success_timestamp_seconds{account=default}"] == 99
    assert found["loop_last_iteration_timestamp_seconds{loop=watch}"] == 99


class Watched:
    """A producer's metrics, at a time and with a stream of a test's choosing."""

    def __init__(self) -> None:
        self.clock = Clock(1000.0)
        self.oldest: float | None = None
        self.metrics = Metrics(PRODUCER, PRODUCER_NAMES, list, self.reading, self.clock)

    def reading(self) -> RedisState:
        return replace(READING, stream=replace(READING.stream, oldest_timestamp=self.oldest))

    def listed(self, ago: float | None = 0.0) -> None:
        self.metrics(events.Synced("default", "INBOX", 1, 1, 0, ago))

    def until(self) -> float:
        return series(self.metrics)["delivered_until_timestamp_seconds{account=default}"]


def test_mail_is_delivered_up_to_the_last_listing_when_nothing_waits() -> None:
    watched = Watched()
    watched.listed(ago=2.0)
    assert watched.until() == 998
    watched.clock.now = 5000.0  # the watcher hangs: it sees nothing, and that shows
    assert watched.until() == 998


def test_mail_that_waits_on_the_server_or_in_the_stream_holds_the_time_back() -> None:
    watched = Watched()
    watched.listed()
    watched.metrics(events.NewMailWaiting("default", 400.0))
    assert watched.until() == 400
    watched.listed(ago=None)  # a part of it is in the stream
    assert watched.until() == 400
    watched.listed()
    watched.oldest = 700.0
    assert watched.until() == 700
    watched.oldest = None
    assert watched.until() == 1000


def test_nothing_is_said_of_mail_nobody_listed_nor_of_a_stream_nobody_can_read(producer: Ops) -> None:
    watched = Watched()
    assert not [name for name in series(watched.metrics) if "delivered_until" in name]
    producer.metrics(events.Synced("default", "INBOX", 1, 1, 0, 0.0))
    assert not [name for name in series(producer.metrics) if "delivered_until" in name]


def test_a_folder_that_is_not_there_yet_is_measured_by_the_disk_it_will_be_on(tmp_path: Path) -> None:
    names = replace(WORKER_NAMES, folders={"logs": tmp_path, "backups": tmp_path / "later"})
    found = series(Metrics(WORKER, names, list, lambda: None))
    assert found["disk_size_bytes{folder=backups}"] == found["disk_size_bytes{folder=logs}"]
    assert 0 < found["disk_free_bytes{folder=logs}"] <= found["disk_size_bytes{folder=logs}"]


@pytest.mark.parametrize("side", [(WORKER, WORKER_NAMES), (PRODUCER, PRODUCER_NAMES)], ids=["worker", "producer"])
def test_promtool_has_nothing_to_say(side: tuple[object, object], worker: Ops, producer: Ops) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is missing: apt-get install prometheus")
        pytest.skip("promtool is not installed (Debian package prometheus)")
    rendered = fed(worker if side[0] is WORKER else producer).metrics.render()
    done = subprocess.run([promtool, "check", "metrics"], input=rendered, check=False, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_help_is_there_for_every_metric(worker: Ops) -> None:
    text = fed(worker).metrics.render().decode()
    assert all(re.match(r"# HELP \S+ .*\.", line) for line in text.splitlines() if line.startswith("# HELP email_"))


def test_failures_nobody_foresaw_are_counted_by_loop_and_class(producer: Ops) -> None:
    for error in (KeyError("x"), KeyError("y"), errors.SinkUnavailable("away"), re.error("strange")):
        producer.observe(events.LoopFailed("watch", error))
    producer.observe(events.LoopFailed("someone else's", KeyError("x")))
    found = {name: value for name, value in series(producer.metrics).items() if name.startswith("loop_errors")}
    assert found == {
        "loop_errors_total{error_type=KeyError,loop=watch}": 2,
        "loop_errors_total{error_type=_OTHER,loop=watch}": 1,
        "loop_errors_total{error_type=KeyError,loop=_OTHER}": 1,
    }


def test_no_label_of_ours_is_one_that_every_target_has(producer: Ops, worker: Ops) -> None:
    """Prometheus would call it `exported_…`, and an alert by it would be about something else."""
    for ops in (producer, worker):
        for family in text_string_to_metric_families(ops.metrics.render().decode()):
            for sample in family.samples:
                if sample.name != "email_ingestion_build_info":
                    assert not {"component", "process", "instance", "job"} & sample.labels.keys(), sample.name
