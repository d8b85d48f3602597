"""`email-ingestion check`: what each check says, with a real Redis and a real database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from email_ingestion.doctor.service_checks import CHECKS, database_refusals, run_check, worst
from email_ingestion.ledger.store import open_ledger
from email_ingestion.settings import Settings
from tests.contract.ledgers import mail, stored
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

HOUR = timedelta(hours=1)


@pytest.fixture
def settings(tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return Settings(redis_url=own_redis.url, ops_port=0)


def log(records: list[dict[str, object]]) -> None:
    Path("logs").mkdir()
    lines = (
        json.dumps({"timestamp": datetime.now(UTC).isoformat(), "level": "WARNING", **record}) for record in records
    )
    Path("logs/worker.log").write_text("\n".join(lines) + "\n")


def test_what_cannot_be_looked_at_is_unknown_and_never_ok(settings: Settings) -> None:
    broken = settings.model_copy(
        update={"redis_url": "redis://127.0.0.1:1/0", "database_url": "postgresql+psycopg://127.0.0.1:1/none"}
    )
    found = {result.name: result for result in run_check("all", broken, HOUR)}
    assert found.keys() == CHECKS.keys()
    assert {found[name].level for name in ("errors", "latency", "queue", "breakers", "database")} == {"UNKNOWN"}
    assert found["workers"].level == "CRITICAL"
    assert all(result.text and "\n" not in result.line for result in found.values())
    assert worst(list(found.values())) == "CRITICAL"


@pytest.mark.parametrize(("failed", "level"), [(0, "OK"), (9, "OK"), (15, "WARNING"), (40, "CRITICAL")])
def test_errors_are_a_share_of_what_was_handled(settings: Settings, failed: int, level: str) -> None:
    left_out = [{"event": "email_deferred", "suppressed": failed - 1}] if failed else []
    log([{"event": "emails_delivered", "count": 100, "level": "INFO"}, *left_out])
    (result,) = run_check("errors", settings, HOUR)
    assert (result.level, result.values["failed_attempts"], result.values["delivered"]) == (level, failed, 100)


def test_latency_is_in_percentiles_of_the_mail_that_arrived_in_the_span(settings: Settings) -> None:
    ledger = open_ledger(settings.database_url)
    now = datetime.now(UTC)
    arrivals = [now - timedelta(seconds=number) for number in range(100)] + [now - timedelta(days=9)]
    for number, at in enumerate(arrivals, start=1):
        letter = mail(number)
        ledger.record([stored(replace(letter, envelope=replace(letter.envelope, internaldate=at)))])
    ledger.close()
    (result,) = run_check("latency", settings, HOUR)
    assert result.values["messages"] == 100
    assert 45 <= result.values["p50_seconds"] <= 110
    assert result.values["p50_seconds"] < result.values["p95_seconds"] <= result.values["p99_seconds"]


def test_the_queue_is_told_with_its_depth_and_the_database_with_its_time(settings: Settings) -> None:
    from email_ingestion.stream import Appender  # noqa: PLC0415

    Appender(link(str(settings.redis_url))).append_missing([message(1), message(2)], "0")
    (queue,) = run_check("queue", settings, HOUR)
    assert (queue.level, queue.values["depth"], queue.values["pending"]) == ("OK", 2, 0)
    open_ledger(settings.database_url).close()
    (database,) = run_check("database", settings, HOUR)
    assert (database.level, "ms" in database.text) == ("OK", True)


def thresholds(**values: float) -> None:
    """Write a config/alerts.yml of one's own."""
    Path("config").mkdir(exist_ok=True)
    rules = (
        f'      - record: email_ingestion:threshold:{name}\n        expr: "{value}"\n' for name, value in values.items()
    )
    Path("config/alerts.yml").write_text("groups:\n  - name: thresholds\n    rules:\n" + "".join(rules))


def test_the_limits_are_those_of_the_alerts(settings: Settings) -> None:
    log([{"event": "emails_delivered", "count": 100, "level": "INFO"}, {"event": "email_deferred", "suppressed": 14}])
    levels = {}
    for ratio in (0.05, 0.5):
        thresholds(error_ratio_warning=ratio, error_ratio_serious=ratio)
        levels[ratio] = run_check("errors", settings, HOUR)[0].level
    assert levels == {0.05: "CRITICAL", 0.5: "OK"}
    thresholds(error_ratio_warning="a tenth")  # type: ignore[arg-type]
    (result,) = run_check("errors", settings, HOUR)
    assert (result.level, "error_ratio_warning" in result.text) == ("UNKNOWN", True)


def test_three_failures_of_five_are_no_outage(settings: Settings) -> None:
    log([{"event": "emails_delivered", "count": 2, "level": "INFO"}, {"event": "email_deferred", "suppressed": 2}])
    (result,) = run_check("errors", settings, HOUR)
    assert (result.level, result.values["share"]) == ("WARNING", 0.6)


@pytest.mark.parametrize(
    ("burst", "most", "level"), [(3600, 50_000, "OK"), (0, 50_000, "CRITICAL"), (3600, 9, "CRITICAL")]
)
def test_many_messages_are_a_backlog_once_they_wait_and_a_full_queue_at_once(
    settings: Settings, burst: int, most: int, level: str
) -> None:
    from email_ingestion.stream import Appender  # noqa: PLC0415

    thresholds(burst_seconds=burst, backlog_warning=3, backlog_critical=5)
    Appender(link(str(settings.redis_url))).append_missing([message(number) for number in range(9)], "0")
    (queue,) = run_check("queue", settings.model_copy(update={"stream_max_depth": most}), HOUR)
    assert (queue.level, queue.values["depth"]) == (level, 9)


def test_a_database_that_takes_a_trial_and_no_mail_is_not_called_well() -> None:
    def breaker(name: str, state: str, *, forced: bool = False) -> dict[str, object]:
        return {"name": name, "state": state, "forced": forced, "last_error": "No space left on device"}

    full = [breaker("redis", "CLOSED"), breaker("database", "HALF_OPEN")]
    held = [breaker("database", "OPEN", forced=True), breaker("webhook", "OPEN")]
    bodies = {"producer": {}, "worker": {"circuit_breakers": full}, "worker-2": {"circuit_breakers": held}}
    assert database_refusals(bodies) == ["worker: No space left on device"]
