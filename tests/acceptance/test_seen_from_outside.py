"""What a producer and a worker show while they work: every metric of the contract, and nothing anybody wrote."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.alerts import rules
from tests.alerts.dashboard import filled, targets
from tests.servers.missing import program
from tests.servers.poison import poisoned_python
from tests.servers.processes import Place, Running, gmail_settings, place, until
from tests.servers.prometheus import Prometheus, running_prometheus
from tests.servers.receiver import Receiver, http_receiver
from tests.servers.redis import running_redis

COMMON = """circuit_breaker_state circuit_breaker_transitions_total dlq_depth dlq_messages_total dlq_replayed_total
stream_depth stream_pending stream_waiting stream_max_deliveries active_workers dependency_up
loop_last_iteration_timestamp_seconds redis_memory_used_bytes redis_memory_max_bytes redis_evicted_keys_total
log_messages_total mail_reads_total mail_reads_last_hour
build_info collect_success disk_free_bytes disk_size_bytes backup_last_success_timestamp_seconds"""
OF_PRODUCER = """emails_produced_total emails_skipped_total imap_last_success_timestamp_seconds imap_backlog_messages
imap_connections_total imap_fetched_bytes_total imap_uidvalidity_changes_total oauth2_token_expiry_timestamp_seconds
oauth2_refreshes_total oauth2_reauth_required reconcile_missing reconcile_last_success_timestamp_seconds
delivered_until_timestamp_seconds imap_bytes_budget_remaining notices_total"""
OF_WORKER = """emails_processed_total emails_failed_total defective_emails_total mail_arrived_last_hour
processing_latency_seconds queue_wait_seconds
end_to_end_latency_seconds retries_total duplicates_total orphan_messages_claimed_total sink_deliveries_total"""
WHILE_MAIL_WAITS = "stream_oldest_timestamp_seconds"
WHEN_SOMETHING_DIED = "dlq_oldest_timestamp_seconds"
# Metrics that have nothing to tell of such a run: no consent has a known end, nothing lies in hand,
# no trial messages are sent, no loop fails over what nobody foresaw, no certificate ends.
LATER = {
    "email_ingestion_process_recent_crashes",  # none has crashed
    "email_ingestion_imap_locked_out_until_timestamp_seconds",  # the server there never refuses
    "email_ingestion_imap_throttled_timestamp_seconds",
    "email_ingestion_canary_last_success_timestamp_seconds",
    "email_ingestion_certificate_expiry_timestamp_seconds",  # no server there has TLS
    "email_ingestion_consumer_last_proof_timestamp_seconds",  # sinks are compared after a minute
    "email_ingestion_consumer_missing",
    "email_ingestion_contents_lost",  # stored bytes are not verified yet
    "email_ingestion_erasures_unfinished",  # looked at after five minutes
    "email_ingestion_loop_errors_total",
    "email_ingestion_memory_limit_bytes",  # a machine may have none
    "email_ingestion_memory_used_bytes",
    "email_ingestion_mail_expected_last_hour",  # there are no past weeks
    "email_ingestion_oauth2_consent_expiry_timestamp_seconds",
    "email_ingestion_sink_changes_oldest_timestamp_seconds",  # no sink is told of changes
    "email_ingestion_sink_changes_refused",
    "email_ingestion_sink_changes_total",
    "email_ingestion_sink_changes_waiting",
    "email_ingestion_sink_paused",  # nobody has paused one
    "email_ingestion_sink_oldest_timestamp_seconds",  # there is no further sink
    "email_ingestion_stream_oldest_pending_timestamp_seconds",
}
# Panels with a query that draws nothing then: for the same reasons, Redis has no limit, nothing waits or fails.
EMPTY = {
    "Age of the oldest entry",
    "Age of the oldest message a sink has not got",
    "Failed attempts",
    "Life of the certificates",
    "Life of the tokens",
    "Mail of this hour, against past weeks",
    "Memory of Redis",
    "Memory used, of its limit",
    "Missing at the last reconciliation",  # and contents that were lost
    "Owed to sinks",
}
MOST_SERIES = 300  # of one process, those of Python and the process included

POISON = "X-Poison: abort\r\n"
SUBJECT = "Redundancy terms for Wilhelmina %d"
LETTER = (
    "Subject: {subject}\r\nMessage-ID: <{number}@post.example.org>\r\n"
    "From: Wilhelmina Harker <wilhelmina.harker+{number}@example.org>\r\nTo: Jonathan <jonathan@example.net>\r\n"
    "{more}\r\nThe severance is 48200 euros, wire it to GB29NWBK6016133192681{number}.\r\n"
)
WRITTEN = re.compile(
    r"Wilhelmina|Harker|Jonathan|severance|Redundancy|GB29NWBK|example\.(org|net)|Muster|@", re.IGNORECASE
)


def letter(number: int, more: str = "") -> bytes:
    return LETTER.format(subject=SUBJECT % number, number=number, more=more).encode()


@dataclass
class Seen:
    """What was collected of a run over the contract's whole way: mail, a dead letter, a lost session, a stale token."""

    folder: Path
    early: str  # the producer's metrics while mail waits
    producer: str
    worker: str
    status: list[str]
    tokens: list[str]
    ids: list[str]
    firing: list[dict[str, str]]  # after all that, and after the worker was killed
    known: set[str]  # every metric Prometheus has
    answers: dict[str, int]  # how many series each expression gives
    notices: list[dict[str, str]]  # what the built-in monitor told
    spans: list[Span]
    drawn: dict[tuple[str, str], int]  # likewise each query of the dashboard, by its panel


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings(mail="60")) as running:
        yield running


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, sandbox: RunningSandbox) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("seen")
    settings = gmail_settings(sandbox, folder / "here")
    with running_redis(folder / "redis") as redis, place(folder / "here", redis.url, **settings) as here:
        here.set(LOG_LEVEL="DEBUG", PYTHONPATH=poisoned_python(folder / "site"), WORKER_MAX_RETRIES=0)
        targets = here.folder / "data" / "targets"
        with (
            http_receiver() as somebody,
            http_receiver(read=ExportTraceServiceRequest.FromString) as collector,
            running_prometheus(folder / "prometheus", targets, times=20) as prometheus,
        ):
            here.set(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}")
            here.set(ALERT_CHANNELS=f"json://127.0.0.1:{somebody.port}/", ALERT_SECONDS=0.5)
            seen = _run(here, sandbox, prometheus, somebody, collector)
            yield replace(seen, spans=_spans(collector))


def _run(here: Place, sandbox: RunningSandbox, prometheus: Prometheus, somebody: Receiver, collector: Receiver) -> Seen:
    sandbox.deliver(letter(1))
    sandbox.deliver(letter(2, POISON))
    backup = here.run("scripts/backup.py")
    assert backup.returncode == 0, backup.stderr
    producer = here.producer()
    until(lambda: producer.metric("email_ingestion_reconcile_missing") == 0, "the producer has read and audited all")
    until(lambda: producer.metric("email_ingestion_stream_depth") == 62, "the producer has seen the stream")
    early = producer.get("/metrics")[1]
    until(lambda: somebody.posted, "somebody is told that no worker runs")
    worker = here.worker()
    until(lambda: len(here.rows()) == 61, "the mail is in the database")
    until(lambda: worker.metric("email_ingestion_dlq_messages_total") == 1, "the poison is put aside")
    sandbox.arm_fault("stale_token")
    sandbox.arm_fault("session_expiry")
    sandbox.deliver(letter(3))
    until(lambda: len(here.rows()) == 62, "mail flows again")
    for process in (producer, worker):  # a reading of Redis is up to a second old
        until(lambda process=process: _reading(process) == (0, 1, 1), f"{process.stem} has read Redis")
    status = [process.get("/status")[1] for process in (producer, worker)]
    shown = [process.get("/metrics")[1] for process in (producer, worker)]
    until(
        lambda: _calm(prometheus), "Prometheus has scraped everything twice, and what fired while no worker ran is over"
    )
    answers = {expression: len(prometheus.query(expression)) for expression in rules.expressions()}
    drawn = {(title, query): len(prometheus.query(filled(query))) for title, query in targets()}
    known, firing = _known(prometheus), [_firing(prometheus)]
    until(lambda: any("over: NoWorkers" in notice["message"] for notice in somebody.posted), "and that it is over")
    until(lambda: len(_linked(_spans(collector))) == 63, "the worker's spans are collected")
    worker.kill()
    until(lambda: "WorkerDown" in _firing(prometheus), "Prometheus misses the worker")
    firing.append(_firing(prometheus))
    producer.terminate()
    until(lambda: not (here.folder / "data" / "targets" / "producer.json").exists(), "the producer took its file away")
    tokens = sandbox.call(lambda s: [*s.backend.tokens._access, *s.backend.tokens._refresh])
    ids = [row[0] for row in here.rows()]
    return Seen(
        here.folder,
        early,
        shown[0],
        shown[1],
        status,
        tokens,
        ids,
        firing,
        known,
        answers,
        list(somebody.posted),
        [],
        drawn,
    )


def _calm(prometheus: Prometheus) -> bool:
    twice = prometheus.query('count(rate(process_cpu_seconds_total{job="email_ingestion"}[1m])) == 2')
    known = rules.metrics() <= _known(prometheus) | LATER
    return bool(twice) and known and _firing(prometheus) == {"Watchdog": "P4"}


def _known(prometheus: Prometheus) -> set[str]:
    return {each["metric"]["__name__"] for each in prometheus.query('group by (__name__) ({job="email_ingestion"})')}


def _firing(prometheus: Prometheus) -> dict[str, str]:
    """How full this machine's disk is says nothing of the system."""
    return {name: priority for name, priority in prometheus.firing().items() if not name.startswith("Disk")}


def _spans(collector: Receiver) -> list[Span]:
    exported = [each for request in list(collector.posted) for each in request.resource_spans]
    return [span for each in exported for scope in each.scope_spans for span in scope.spans]


def _linked(spans: list[Span]) -> set[bytes]:
    """The spans that those of the worker link to."""
    return {link.span_id for span in spans if span.name == "process email_ingestion" for link in span.links}


def _reading(process: Running) -> tuple[float | None, ...]:
    shown = ("stream_depth", "dlq_depth", "active_workers")
    return tuple(process.metric(f"email_ingestion_{name}") for name in shown)


def names(text: str) -> set[str]:
    """Of every family that has a sample, as the contract writes them."""
    found = set()
    for family in text_string_to_metric_families(text):
        if family.samples:
            name = family.name.removeprefix("email_ingestion_")
            found.add(f"{name}_total" if family.type == "counter" else name)
    return found


def test_a_live_producer_shows_every_metric_of_the_contract(seen: Seen) -> None:
    wanted = set(f"{COMMON} {OF_PRODUCER} {WHEN_SOMETHING_DIED}".split())
    assert wanted - names(seen.producer) == set()
    assert set(WHILE_MAIL_WAITS.split()) - names(seen.early) == set()


def test_a_live_worker_shows_every_metric_of_the_contract(seen: Seen) -> None:
    assert set(f"{COMMON} {OF_WORKER} {WHEN_SOMETHING_DIED}".split()) - names(seen.worker) == set()


def test_each_process_shows_only_what_is_its_own(seen: Seen) -> None:
    assert names(seen.worker) & set(OF_PRODUCER.split()) == set()
    assert names(seen.producer) & set(OF_WORKER.split()) == set()


def test_both_processes_say_the_same_of_redis(seen: Seen) -> None:
    shared = ("email_ingestion_dlq_depth", "email_ingestion_active_workers", "email_ingestion_stream_depth")
    lines = [{line for line in text.splitlines() if line.startswith(shared)} for text in (seen.producer, seen.worker)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == len(shared)


@pytest.mark.parametrize("side", ["early", "producer", "worker"])
def test_promtool_has_nothing_to_say_of_what_is_served(side: str, seen: Seen) -> None:
    promtool = program("promtool", "prometheus")
    text = getattr(seen, side).encode()
    done = subprocess.run([promtool, "check", "metrics"], input=text, check=False, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_process_has_few_series_and_every_one_has_a_help(seen: Seen) -> None:
    for text in (seen.producer, seen.worker):
        families = list(text_string_to_metric_families(text))
        assert sum(len(family.samples) for family in families) < MOST_SERIES
        assert [family.name for family in families if not family.documentation] == []


def test_a_message_can_be_followed_by_its_identity_from_the_fetch_to_the_database(seen: Seen) -> None:
    told = {
        stem: [json.loads(line) for line in (seen.folder / "logs" / f"{stem}.log").read_text().splitlines()]
        for stem in ("producer", "worker")
    }
    published = {
        it for record in told["producer"] if record["event"] == "batch_published" for it in record["email_ids"]
    }
    delivered = {record["email_id"] for record in told["worker"] if record["event"] == "email_delivered"}
    dead = {record["email_id"] for record in told["worker"] if record["event"] == "email_dead_lettered"}
    assert delivered == set(seen.ids)
    assert published == delivered | dead
    assert len(dead) == 1


def test_nothing_anybody_wrote_and_no_token_is_in_logs_metrics_or_status(seen: Seen) -> None:
    texts = {path.name: path.read_text() for path in (seen.folder / "logs").iterdir()}
    texts |= {"producer metrics": seen.producer, "worker metrics": seen.worker, "status": "".join(seen.status)}
    assert len(texts["producer.log"].splitlines()) > 50
    for name, text in texts.items():
        assert WRITTEN.search(text) is None, (name, WRITTEN.search(text))
        assert [token for token in seen.tokens if token in text] == [], name


def test_every_expression_of_the_rules_is_answered_and_none_of_its_metrics_is_unknown(seen: Seen) -> None:
    assert len(seen.answers) > 70
    assert rules.metrics() - seen.known - LATER == set()


def test_after_all_that_only_the_watchdog_fires_and_a_killed_worker_is_missed(seen: Seen) -> None:
    healthy, bereft = seen.firing
    assert healthy == {"Watchdog": "P4"}
    assert bereft["WorkerDown"] == "P2"
    assert bereft.keys() <= {"Watchdog", "WorkerDown", "NoWorkers"}  # the last one when this machine is slow


def test_every_panel_of_the_dashboard_draws_something(seen: Seen) -> None:
    empty = {title for (title, _), count in seen.drawn.items() if not count}
    assert len(seen.drawn) > 50
    assert empty - EMPTY == set()


def test_the_built_in_monitor_tells_that_no_worker_runs_and_when_one_does(seen: Seen) -> None:
    assert seen.notices[0]["title"].startswith("email-ingestion: [P1] no worker runs")
    assert [notice for notice in seen.notices if WRITTEN.search(notice["title"] + notice["message"])] == []


def test_every_message_has_a_span_of_the_producer_to_which_the_workers_link(seen: Seen) -> None:
    sent = {span.span_id for span in seen.spans if span.name == "send email_ingestion"}
    assert len(sent) == len(seen.ids) + 1  # the dead letter
    assert _linked(seen.spans) == sent
    assert [span for span in seen.spans if WRITTEN.search(span.name + str(span.attributes))] == []
