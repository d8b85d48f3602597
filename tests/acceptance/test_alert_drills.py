"""Faults on a live stack, seen by a real Prometheus: the right alert, one notification of it, and its end.

Time runs faster in the rules, so that minutes are seconds; the processes themselves keep their own pace.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from gmail_sandbox import RunningSandbox
from tests.servers.missing import program
from tests.servers.postgres import fresh_database, running_postgres
from tests.servers.processes import Place, token_of, until
from tests.servers.prometheus import Notified, Prometheus, running_alertmanager, running_prometheus
from tests.servers.redis import RedisServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

LOWERED = ("freshness_seconds", "sync_silence_seconds", "pending_seconds")
LETTER = b"Subject: hello\r\n\r\nworld\r\n"
HEALTHY_SECONDS = 20 * 60
SETTLE_SECONDS = 240.0


@contextmanager
def watched(here: Place, times: float) -> Iterator[tuple[Prometheus, Notified]]:
    """Prometheus and Alertmanager on the processes of a place, whose mailbox is looked at every second."""
    here.set(IMAP_POLL_SECONDS=1, CB_RECOVERY_TIMEOUT=2, IMAP_TIMEOUT_SECONDS=2)
    targets = here.folder / "data" / "targets"
    with (
        running_alertmanager(here.folder / "alertmanager", times=times) as (port, notified),
        running_prometheus(
            here.folder / "prometheus", targets, times=times, lowered=LOWERED, alertmanager=port
        ) as prometheus,
    ):
        yield prometheus, notified


def flowing(here: Place, sandbox: RunningSandbox, prometheus: Prometheus, notified: Notified) -> None:
    """Return when mail flows, Prometheus sees it and nothing fires but the Watchdog; forget what was told so far."""
    before = len(here.rows("SELECT 1 FROM emails"))
    sandbox.deliver(LETTER)
    until(lambda: len(here.rows("SELECT 1 FROM emails")) > before, "mail flows")
    quiet(prometheus)
    notified.heard.clear()


def quiet(prometheus: Prometheus) -> None:
    def well() -> bool:
        firing = {name for name in prometheus.firing() if not name.startswith("Disk")}
        return firing == {"Watchdog"} and bool(prometheus.query("email_ingestion:mail_age:seconds"))

    until(well, "only the Watchdog fires", SETTLE_SECONDS)


def told_once(notified: Notified, receiver: str, alert: str, prometheus: Prometheus, hold: float) -> None:
    """The alert reaches the receiver, and while the fault lasts nobody is told of anything else."""
    other = {"page": "day", "day": "page"}[receiver]
    until(lambda: notified.at(receiver), f"somebody is told: {prometheus.firing()}", SETTLE_SECONDS)
    time.sleep(hold)  # the consequences have time to show
    assert (set(notified.at(receiver)), notified.at(other)) == ({alert}, []), prometheus.firing()


def resolved(notified: Notified, receiver: str, alert: str, prometheus: Prometheus) -> None:
    until(lambda: alert in notified.at(receiver, "resolved"), "the end of it is told", SETTLE_SECONDS)
    quiet(prometheus)
    assert set(notified.at("page") + notified.at("day")) == {alert}


def test_a_killed_worker_is_one_page_of_priority_1(here: Place, sandbox: RunningSandbox) -> None:
    with watched(here, times=4) as (prometheus, notified):
        here.producer()
        worker = here.worker()
        flowing(here, sandbox, prometheus, notified)
        worker.kill()
        sandbox.deliver(LETTER)
        told_once(notified, "page", "NoWorkers", prometheus, hold=60)
        assert prometheus.firing()["NoWorkers"] == "P1"
        here.worker()
        resolved(notified, "page", "NoWorkers", prometheus)


def test_a_stopped_redis_is_one_page_of_priority_1(
    here: Place, sandbox: RunningSandbox, own_redis: RedisServer
) -> None:
    with watched(here, times=20) as (prometheus, notified):
        here.producer()
        here.worker()
        flowing(here, sandbox, prometheus, notified)
        own_redis.kill()
        sandbox.deliver(LETTER)
        told_once(notified, "page", "RedisDown", prometheus, hold=40)
        assert prometheus.firing()["RedisDown"] == "P1"
        own_redis.start()
        resolved(notified, "page", "RedisDown", prometheus)


def test_a_mail_server_that_falls_silent_is_one_page_of_priority_2(here: Place, sandbox: RunningSandbox) -> None:
    with watched(here, times=20) as (prometheus, notified):
        here.producer()
        here.worker()
        flowing(here, sandbox, prometheus, notified)
        sandbox.arm_fault("half_open", count=None, when="command")
        sandbox.deliver(LETTER)
        told_once(notified, "page", "ImapUnreachable", prometheus, hold=40)
        assert prometheus.firing()["ImapUnreachable"] == "P2"
        sandbox.clear_faults()
        resolved(notified, "page", "ImapUnreachable", prometheus)


def test_a_revoked_token_is_one_notice_of_priority_3(here: Place, sandbox: RunningSandbox) -> None:
    with watched(here, times=20) as (prometheus, notified):
        here.producer()
        here.worker()
        flowing(here, sandbox, prometheus, notified)
        tokens: Callable[[], list[str]] = lambda: sandbox.call(lambda s: list(s.backend.tokens._refresh))  # noqa: E731
        for token in tokens():
            sandbox.call(lambda s, token=token: s.backend.tokens.revoke(token))
        sandbox.arm_fault("session_expiry")
        sandbox.deliver(LETTER)
        told_once(notified, "day", "ReauthRequired", prometheus, hold=40)
        assert prometheus.firing()["ReauthRequired"] == "P3"
        Path(here.environment["GOOGLE_TOKEN_FILE"]).write_text(json.dumps(token_of(sandbox)))
        resolved(notified, "day", "ReauthRequired", prometheus)


@pytest.fixture
def database() -> Iterator[str]:
    with running_postgres() as server, fresh_database(server) as url:
        yield url


def test_a_failing_sink_is_one_page_of_priority_2(here: Place, sandbox: RunningSandbox, database: str) -> None:
    here.set(DATABASE_URL=database)
    name = make_url(database).database
    server = database.replace(f"/{name}?", "/postgres?")
    admin = create_engine(server, isolation_level="AUTOCOMMIT")

    def allow(*, connections: bool) -> None:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {connections}")
            if not connections:
                end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
                connection.exec_driver_sql(end)

    with watched(here, times=20) as (prometheus, notified):
        producer, worker = here.producer(), here.worker()
        sandbox.deliver(LETTER)
        until(lambda: worker.metric("email_ingestion_emails_processed_total") == 1, "mail flows")
        until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "the producer idles")
        quiet(prometheus)
        notified.heard.clear()
        allow(connections=False)
        sandbox.deliver(LETTER)
        told_once(notified, "page", "SinkDown", prometheus, hold=40)
        assert prometheus.firing()["SinkDown"] == "P2"
        allow(connections=True)
        resolved(notified, "page", "SinkDown", prometheus)
    admin.dispose()


@pytest.mark.timeout(HEALTHY_SECONDS + 300)
def test_twenty_healthy_minutes_under_load_fire_nothing_but_the_watchdog(here: Place, sandbox: RunningSandbox) -> None:
    program("prometheus-alertmanager", "prometheus-alertmanager")
    with (
        running_alertmanager(here.folder / "alertmanager", times=1) as (port, notified),
        running_prometheus(
            here.folder / "prometheus", here.folder / "data" / "targets", times=1, alertmanager=port
        ) as prometheus,
    ):
        here.producer()
        here.worker()
        until(lambda: prometheus.query("email_ingestion_active_workers == 1"), "Prometheus sees the stack", 120)
        until(lambda: "Watchdog" in prometheus.firing(), "Prometheus has looked at every rule once", 120)
        end, sent = time.monotonic() + HEALTHY_SECONDS, 0
        while time.monotonic() < end:
            for _ in range(10):
                sandbox.deliver(LETTER)
                sent += 1
            time.sleep(1.0)
            firing = {name for name in prometheus.firing() if not name.startswith("Disk")}
            assert firing == {"Watchdog"}, firing
        until(lambda: len(here.rows("SELECT 1 FROM emails")) == sent, "all of it is delivered")
        assert (notified.at("page"), notified.at("day")) == ([], [])
