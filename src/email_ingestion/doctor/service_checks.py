"""Checks of the service over a span of time, as monitoring plugins give them: one line, OK, WARNING, CRITICAL, UNKNOWN.

`doctor` finds the cause of what is wrong with a set-up; these say how well it works: rates and percentiles. The limits
are those of config/alerts.yml.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

from email_ingestion.app.account_list import configured_accounts
from email_ingestion.errors import EmailIngestionError
from email_ingestion.fleet.log_files import LogFilter, read_records
from email_ingestion.fleet.status_table import OK_STATES, ProcessStatus, SystemStatus, system_status
from email_ingestion.fleet.web_process import STEM as WEB
from email_ingestion.ledger.fingerprint import sqlite_path
from email_ingestion.ledger.maintenance import database_load, delivery_seconds
from email_ingestion.ledger.store import open_ledger
from email_ingestion.ops.alert_thresholds import alert_thresholds
from email_ingestion.settings import Settings
from email_ingestion.stream import open_link, read_gauges

Level = Literal["OK", "WARNING", "CRITICAL", "UNKNOWN"]
EXIT_CODES: dict[Level, int] = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}
BY_WEIGHT: tuple[Level, ...] = ("OK", "UNKNOWN", "WARNING", "CRITICAL")

# Thresholds of config/alerts.yml from which a value is a warning, and from which it is critical.
ERROR_SHARE = ("error_ratio_warning", "error_ratio_serious")
LATENCY_SECONDS = ("freshness_seconds", "delivery_seconds_critical")  # of 95 of 100 messages
QUEUE_AGE_SECONDS = ("message_age_warning", "message_age_critical")
QUEUE_DEPTH = ("backlog_warning", "backlog_critical")
ANSWER_SECONDS = ("transaction_seconds_warning", "transaction_seconds_critical")
CONNECTION_SHARE = ("connection_ratio_warning", "connection_ratio_critical")
QUERY_SECONDS = ("query_seconds_warning", "query_seconds_critical")
DISK_SHARE = ("disk_ratio_warning", "disk_ratio_critical")
REPLICA_SECONDS = ("replica_seconds_warning", "replica_seconds_critical")
FEW, BURST_SECONDS = "few_messages", "burst_seconds"
FAILURES = {"email_deferred", "email_dead_lettered"}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check; `values` are the numbers behind the sentence."""

    name: str
    level: Level
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The result as one line."""
        return f"{self.level} {self.name}: {self.text}"


@dataclass
class Look:
    """What the checks of one run look at; the processes are asked once for all of them."""

    settings: Settings
    since: datetime

    @cached_property
    def system(self) -> SystemStatus:
        """The processes of this machine."""
        return system_status(self.settings)

    @cached_property
    def limits(self) -> Mapping[str, float]:
        """The thresholds of config/alerts.yml. Raises ConfigurationError for one that is no number."""
        return alert_thresholds()

    def level(self, value: float, names: tuple[str, str]) -> Level:
        """Judge a value by a pair of thresholds."""
        warning, critical = (self.limits[name] for name in names)
        return "CRITICAL" if value > critical else "WARNING" if value > warning else "OK"


def run_check(name: str, settings: Settings, span: timedelta) -> list[CheckResult]:
    """Run one check, or `all` of them; what cannot be looked at is UNKNOWN, with the reason."""
    names = list(CHECKS) if name == "all" else [name]
    look = Look(settings, datetime.now(UTC) - span)
    results = []
    for each in names:
        try:
            results.append(CHECKS[each](look))
        except (EmailIngestionError, OSError) as error:
            results.append(CheckResult(each, "UNKNOWN", " ".join(str(error).split())))
    return results


def worst(results: Sequence[CheckResult]) -> Level:
    """Return the level of several results together."""
    return max((result.level for result in results), key=BY_WEIGHT.index)


def check_errors(look: Look) -> CheckResult:
    """Compare attempts that failed with messages that were delivered, by the log files of this machine."""
    delivered = failed = dead = 0
    gaps: list[str] = []
    for record in read_records(look.settings.log_dir, LogFilter(look.since, "INFO"), gaps):
        if record.get("event") == "emails_delivered":
            delivered += _integer(record.get("count"))
        elif record.get("event") in FAILURES:
            failed += 1 + _integer(record.get("suppressed"))
            dead += record["event"] == "email_dead_lettered"
    if gaps:
        return CheckResult("errors", "UNKNOWN", "; ".join(gaps))
    share = failed / (delivered + failed) if delivered + failed else 0.0
    values = {"delivered": delivered, "failed_attempts": failed, "dead_lettered": dead, "share": round(share, 4)}
    text = f"{share:.1%} of attempts failed: {failed} of {delivered + failed}, {dead} dead letters"
    level = look.level(share, ERROR_SHARE)
    if level == "CRITICAL" and failed <= look.limits[FEW]:  # three of five prove nothing
        level = "WARNING"
    return CheckResult("errors", level, text, values)


def check_latency(look: Look) -> CheckResult:
    """Measure how long mail that arrived in the span took from its arrival at the server to its row."""
    seconds = sorted(delivery_seconds(look.settings.database_url, look.since))
    if not seconds:
        return CheckResult(
            "latency", "OK", "nothing to measure: no mail that arrived in this span is delivered", {"messages": 0}
        )
    p50, p95, p99 = (seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.95, 0.99))
    values = {"messages": len(seconds), "p50_seconds": p50, "p95_seconds": p95, "p99_seconds": p99}
    text = f"p50 {p50:.1f} s, p95 {p95:.1f} s, p99 {p99:.1f} s of {len(seconds)} messages from arrival to row"
    return CheckResult("latency", look.level(p95, LATENCY_SECONDS), text, values)


def check_queue(look: Look) -> CheckResult:
    """Look how many messages wait in Redis, and for how long."""
    gauges = read_gauges(open_link(look.settings.redis_address, "email-ingestion-check"))
    age = time.time() - gauges.oldest if gauges.oldest else 0.0
    values = {
        "depth": gauges.depth,
        "pending": gauges.pending,
        "oldest_age_seconds": round(age, 1),
        "dead_letters": gauges.dlq_depth,
    }
    text = (
        f"{gauges.depth} messages, {gauges.pending} of them with workers, the oldest {age:.0f} s old; "
        f"{gauges.dlq_depth} dead letters"
    )
    levels = [look.level(age, QUEUE_AGE_SECONDS)]
    if age > look.limits[BURST_SECONDS]:
        levels.append(look.level(gauges.depth, QUEUE_DEPTH))
    if gauges.depth >= look.settings.stream_max_depth:
        levels.append("CRITICAL")
        text += "; it is full (STREAM_MAX_DEPTH), so the producer fetches nothing"
    return CheckResult("queue", max(levels, key=BY_WEIGHT.index), text, values)


def check_breakers(look: Look) -> CheckResult:
    """Look at the circuit breakers of the processes of this machine."""
    system = look.system
    states = {
        f"{process.stem} {breaker['name']}": breaker["state"]
        for process in system.processes
        for breaker in (process.body or {}).get("circuit_breakers", ())
    }
    if not states:
        return CheckResult("breakers", "UNKNOWN", system.nothing())
    tripped = {name: state for name, state in states.items() if state != "CLOSED"}
    level: Level = "CRITICAL" if "OPEN" in tripped.values() else "WARNING" if tripped else "OK"
    text = ", ".join(f"{name} {state}" for name, state in tripped.items()) or f"all {len(states)} are CLOSED"
    return CheckResult("breakers", level, text, {"states": states})


def check_workers(look: Look) -> CheckResult:
    """Look whether the processes that should run do, and work; without the web process mail flows all the same."""
    system = look.system
    missing = [each.reason for each in system.missing if each.component != WEB]
    present = [each for each in system.processes if each.missing is None]
    sick = [_with_reason(each) for each in present if each.state not in OK_STATES and each.component != WEB]
    weak = [_with_reason(each) for each in present if each.state == "degraded"]
    if system.web and not system.web.serves:
        weak.append(f"web is {system.web.state}")
    running = [each.stem for each in system.processes if each.body]
    values = {"running": running, "missing": [each.name for each in system.missing]}
    if missing or sick:
        return CheckResult("workers", "CRITICAL", "; ".join([*missing, *sick]), values)
    if not running:
        return CheckResult("workers", "CRITICAL", system.nothing(), values)
    if weak:
        return CheckResult("workers", "WARNING", "; ".join(weak), values)
    return CheckResult("workers", "OK", f"{', '.join(running)} run and are ready", values)


def _with_reason(process: ProcessStatus) -> str:
    """Say how a process is, and the first reason that it gives."""
    reasons = process.as_json().get("reasons") or ()
    more = f" and {len(reasons) - 1} more reasons" if len(reasons) > 1 else ""
    return f"{process.stem} is {process.state}" + (f" ({reasons[0].rstrip('.')}{more})" if reasons else "")


def check_database(look: Look) -> CheckResult:
    """Open the database, and on a server look at connections, long queries, who waits for whom, and replicas."""
    load = database_load(look.settings.database_url)
    values = {name: value for name, value in load.items() if value is not None}
    shares = [look.level(load["answer_seconds"], ANSWER_SECONDS)]
    texts = [f"it took a transaction in {1000 * load['answer_seconds']:.0f} ms"]
    if load["connections"] is not None:
        shares += [
            look.level(load["connections"] / load["max_connections"], CONNECTION_SHARE),
            look.level(load["longest_query_seconds"], QUERY_SECONDS),
            "WARNING" if load["blocked"] or load["idle_slots"] else "OK",
            look.level(load["replica_lag_seconds"] or 0.0, REPLICA_SECONDS),
        ]
        texts += _describe_server(load)
    if (used := _disk_share(look.settings.database_url)) is not None:
        values["disk_used"] = round(used, 4)
        level = look.level(used, DISK_SHARE)
        shares.append(level)
        if level != "OK":  # what is small may go in while messages do not
            texts.append(f"its disk is {used:.0%} full")
    refusals = database_refusals({process.stem: process.body or {} for process in look.system.processes})
    if refusals:
        shares.append("CRITICAL")
        texts = [f"it does not take mail: {refusals[0]}", *texts]
    return CheckResult("database", max(shares, key=BY_WEIGHT.index), ", ".join(texts), values)


def database_refusals(bodies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what processes say that find that the database takes no mail, by their `/status`.

    What a check writes is small, and may go in while messages do not.
    """
    return [
        f"{stem}: {breaker['last_error'] or 'its circuit breaker is open'}"
        for stem, body in bodies.items()
        for breaker in body.get("circuit_breakers", ())
        if breaker["name"] == "database" and breaker["state"] != "CLOSED" and not breaker["forced"]
    ]


def _disk_share(url: str) -> float | None:
    """Return how much of the disk under an SQLite database is used; None for a server, whose disk is not here."""
    path = sqlite_path(url)
    if path is None or not path.parent.exists():
        return None
    usage = shutil.disk_usage(path.parent)
    return usage.used / (usage.used + usage.free)  # without what is kept for root


def _describe_server(load: Mapping[str, Any]) -> Iterator[str]:
    """Say how busy a database server is, and what of it this user may not see."""
    yield f"{load['connections']} of {load['max_connections']} connections"
    yield f"the longest query runs {load['longest_query_seconds']:.0f} s"
    if load["hidden_sessions"]:
        yield f"of {load['hidden_sessions']} sessions of other users the queries are hidden (pg_monitor shows them)"
    for each in load["blocked"]:
        waits = " and ".join(f"PID {pid}" if pid else "a prepared transaction" for pid in each["blockers"])
        yield f"PID {each['pid']} ({each['name']}) waits for {waits} for {each['seconds']:.0f} s"
    if not load["blocked"]:
        yield "nobody waits for a lock"
    if load["replicas"]:
        lag = load["replica_lag_seconds"]
        behind = "with no lag to tell of" if lag is None else f"the slowest {lag:.0f} s behind"
        yield f"{load['replicas']} replica{'s' if load['replicas'] > 1 else ''}, {behind}"
    if load["idle_slots"]:
        yield f"nobody reads the replication slot {', '.join(load['idle_slots'])}: the server keeps its log for it"


def check_volume(look: Look) -> CheckResult:
    """Compare the mail of the last hour with the same hour of past weeks, for each account."""
    with closing(open_ledger(look.settings.database_url)) as ledger:
        names = [each.name for each in configured_accounts(look.settings, ledger)]
        volumes = ledger.statistics.volume(names, datetime.now(UTC))
    values = {
        name: {"arrived": each.arrived, "expected": each.expected, "past_weeks": list(each.past)}
        for name, each in volumes.items()
    }
    usual = {name: "nothing to compare with" if each.expected is None else f"{each.expected:g} as a rule"
             for name, each in volumes.items()}  # fmt: skip
    text = "; ".join(f"{name} {each.arrived} messages in this hour, {usual[name]}" for name, each in volumes.items())
    unusual = any(each.anomaly for each in volumes.values())
    return CheckResult("volume", "WARNING" if unusual else "OK", text, {"accounts": values})


CHECKS: dict[str, Callable[[Look], CheckResult]] = {
    "errors": check_errors,
    "latency": check_latency,
    "queue": check_queue,
    "breakers": check_breakers,
    "workers": check_workers,
    "database": check_database,
    "volume": check_volume,
}


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0
