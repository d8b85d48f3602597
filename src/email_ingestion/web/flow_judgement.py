"""Judges what is known of the flow: what hurts, where, and which section of the runbook helps. It asks nobody.

What could not be looked at is unknown, never well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from email_ingestion.ops.peers import MissingProcess, missing_processes, peers
from email_ingestion.ops.status_records import Peer
from email_ingestion.settings import Settings
from email_ingestion.stream.dead_letters import count_letters
from email_ingestion.web.live_system import LiveProcess, SystemReading

State = Literal["ok", "unknown", "warn", "bad"]
Stage = Literal["mailboxes", "producer", "stream", "workers", "sinks"]
STAGES: tuple[Stage, ...] = ("mailboxes", "producer", "stream", "workers", "sinks")
SEVERITY: dict[State, int] = {"ok": 0, "unknown": 1, "warn": 2, "bad": 3}
REDIS, IMAP, TOKEN, BREAKER = (
    "21-redis-down",
    "22-imap-unreachable",
    "23-oauth2-token-expired",
    "24-circuit-breaker-open",
)
DEAD_LETTERS, CRASH, BACKLOG, MEMORY = "25-dlq-growing", "26-worker-crash-or-oom", "27-backlog", "29-memory"
STUCK, SILENT, DATABASE, WEBHOOK = "211-stuck-message", "212-mailbox-silent", "217-database-locked", "218-webhook-down"
LOOP, QUARANTINE = "223-loop-failing", "224-quarantined-mail"
OF_CHECK: dict[str, tuple[Stage, str]] = {
    "redis": ("stream", REDIS),
    "imap": ("mailboxes", IMAP),
    "oauth2": ("mailboxes", TOKEN),
    "database": ("sinks", DATABASE),
}
OF_REASON = (
    ("quarantin", QUARANTINE),
    *((word, TOKEN) for word in ("authoriz", "token", "consent", "oauth2 client")),
    ("fetching held", "213-throttled"),
    ("clock", "225-clock-offset"),
    ("disk", "210-disk"),
    ("memory", MEMORY),
    ("database", DATABASE),
    ("sink", WEBHOOK),
    ("redis", REDIS),
    ("imap", IMAP),
    ("loop", LOOP),
    *((word, CRASH) for word in ("dead", "none runs")),
)
# The panel of config/grafana_dashboard.json that shows what a section is about.
OF_SECTION = {
    REDIS: 13,
    IMAP: 16,
    TOKEN: 17,
    BREAKER: 14,
    DEAD_LETTERS: 31,
    CRASH: 12,
    BACKLOG: 23,
    MEMORY: 42,
    STUCK: 24,
    SILENT: 16,
    DATABASE: 13,
    WEBHOOK: 49,
    LOOP: 15,
    QUARANTINE: 22,
}
DASHBOARD = "/d/email-ingestion"
OF_COMPONENT: dict[str, tuple[Stage, ...]] = {"producer": ("producer", "mailboxes"), "worker": ("workers", "sinks")}


@dataclass(frozen=True, slots=True)
class FlowProblem:
    """Something that hurts or is not known; `section` is an anchor of the incident runbook, `page` one of ours."""

    stage: Stage
    state: State
    text: str
    section: str = ""
    page: str = ""


@dataclass(frozen=True, slots=True)
class WorkerCount:
    """How many workers should run and how many do; None where nobody can say."""

    expected: int | None
    alive: int | None


def graph_link(grafana_url: str | None, section: str = "") -> str:
    """Return the address of our dashboard, or of its panel for a section; empty where no Grafana is configured."""
    if not grafana_url:
        return ""
    address, _, query = grafana_url.partition("?")
    dashboard = address if "/d/" in address else address.rstrip("/") + DASHBOARD
    queries = [*filter(None, (query,)), *([f"viewPanel={OF_SECTION[section]}"] if section in OF_SECTION else [])]
    return "?".join([dashboard, *filter(None, ("&".join(queries),))])


def stage_states(problems: list[FlowProblem]) -> dict[Stage, State]:
    """Return the worst state of each stage."""
    worst: dict[Stage, State] = dict.fromkeys(STAGES, "ok")
    for each in problems:
        worst[each.stage] = max(worst[each.stage], each.state, key=SEVERITY.__getitem__)
    return worst


def find_problems(
    reading: SystemReading, settings: Settings, thresholds: Mapping[str, float]
) -> tuple[list[FlowProblem], WorkerCount]:
    """Return all that hurts or is unknown, the worst first, and the number of workers."""
    known = _known_processes(reading, settings)
    missing = _missing(reading, known)
    alive = [each for each in known if each.component == "worker" and each.alive]
    lost = [each for each in missing if each.component == "worker"]
    asked = reading.processes.value is not None
    workers = WorkerCount(len(alive) + len(lost), len(alive)) if asked and (known or reading.redis.value) else None
    found = [
        *_redis(reading, thresholds),
        *_missing_problems(missing),
        *_silent_processes(reading, known),
        *_process_problems(reading),
        *_account_problems(reading, thresholds),
        *_sink_problems(reading, thresholds),
        *_database(reading),
    ]
    unique = list(dict.fromkeys(found))
    return sorted(unique, key=lambda each: -SEVERITY[each.state]), workers or WorkerCount(None, None)


def _known_processes(reading: SystemReading, settings: Settings) -> list[Peer]:
    gauges = reading.redis.value
    answering = [each.body for each in reading.processes.value or () if each.body]
    instances = {str(body["instance"]) for body in answering}
    found = peers(
        None,
        gauges.processes if gauges else (),
        settings.pid_dir,
        lost=gauges.lost if gauges else (),
        pending=gauges.pending_by_consumer if gauges else None,
    )
    stems = {each.stem for each in reading.processes.value or () if each.body}
    silent = [each for each in found if each.instance not in instances and each.instance not in stems]
    return silent + [
        Peer(body["component"], body["instance"], body["pid"], alive=True, ready=None, ops_url=None, seen_at=None)
        for body in answering
    ]


def _missing(reading: SystemReading, known: list[Peer]) -> list[MissingProcess]:
    gauges = reading.redis.value
    fed = any(each.component == "producer" and each.alive for each in known)
    unattended = reading.at - gauges.oldest if gauges and gauges.oldest and fed else 0.0
    return missing_processes(known, reading.at, unattended_seconds=unattended, count_pid_files=True)


def _missing_problems(missing: list[MissingProcess]) -> Iterator[FlowProblem]:
    for each in missing:
        stage: Stage = "producer" if each.component == "producer" else "workers"
        yield FlowProblem(
            stage, "bad", each.reason if each.name in each.reason else f"{each.name}: {each.reason}", CRASH
        )


def _silent_processes(reading: SystemReading, known: list[Peer]) -> Iterator[FlowProblem]:
    if reading.processes.value is None:
        for stage in STAGES:
            if stage != "stream":
                yield FlowProblem(stage, "unknown", f"not known: {reading.processes.problem}")
        return
    for component, stages in OF_COMPONENT.items():
        here = [each for each in reading.processes.value if each.component == component]
        for each in here:
            if each.pid and not each.body:
                name: Stage = "producer" if component == "producer" else "workers"
                yield FlowProblem(name, "bad", f"{each.stem} (PID {each.pid}) does not answer", CRASH)
        if not any(each.body for each in here):
            elsewhere = [each.instance for each in known if each.component == component and each.alive]
            why = f"{', '.join(elsewhere)} cannot be asked from here" if elsewhere else f"no {component} answers here"
            for stage in stages:
                yield FlowProblem(stage, "unknown", f"not known: {why}")


def _redis(reading: SystemReading, thresholds: Mapping[str, float]) -> Iterator[FlowProblem]:
    gauges = reading.redis.value
    if gauges is None:
        if reading.redis.failed:
            yield FlowProblem("stream", "bad", f"Redis cannot be read: {reading.redis.problem}", REDIS)
        why = "" if reading.redis.failed else f": {reading.redis.problem}"
        yield FlowProblem("stream", "unknown", f"not known: what waits in the queue and among the dead letters{why}")
        return
    if gauges.depth > thresholds["backlog_critical"]:
        yield FlowProblem("stream", "warn", f"{gauges.depth:,} messages wait in the stream", BACKLOG)
    if gauges.oldest_pending and reading.at - gauges.oldest_pending > thresholds["pending_seconds"]:
        minutes = (reading.at - gauges.oldest_pending) / 60
        yield FlowProblem("workers", "bad", f"a message is stuck for {minutes:.0f} min", STUCK)
    if gauges.dlq_depth:
        yield FlowProblem("stream", "warn", count_letters(gauges.dlq_depth), DEAD_LETTERS, "/dead-letters")
    if gauges.memory_used and gauges.memory_max:
        ratio = gauges.memory_used / gauges.memory_max
        if ratio > thresholds["redis_memory_ratio"]:
            yield FlowProblem("stream", "bad", f"Redis has used {ratio:.0%} of its memory", MEMORY)


def _process_problems(reading: SystemReading) -> Iterator[FlowProblem]:
    for process in reading.processes.value or ():
        if process.body:
            own: Stage = "producer" if process.component == "producer" else "workers"
            yield from _dependencies(process.stem, process.body, own)
            yield from _reasons(process.stem, process.body, own)


def _dependencies(stem: str, body: Mapping[str, Any], own: Stage) -> Iterator[FlowProblem]:
    for check in body["checks"]:
        stage, section = _of_dependency(check["name"], own)
        if check["status"] == "unhealthy":
            error = check["error"] or check["error_type"] or "it does not answer"
            yield FlowProblem(stage, "bad", f"{check['name']}, asked by {stem}: {error}", section)
        elif check["status"] == "unknown" and check["critical"]:
            yield FlowProblem(stage, "unknown", f"not known: {stem} has not reached {check['name']} yet")
    for breaker in body["circuit_breakers"]:
        if breaker["state"] != "CLOSED":
            held = ", held by an operator" if breaker["forced"] else ""
            text = f"circuit breaker {breaker['name']} of {stem} is {breaker['state']}{held}"
            yield FlowProblem(_of_dependency(breaker["name"], own)[0], "bad", text, BREAKER, "/operate")


def _reasons(stem: str, body: Mapping[str, Any], own: Stage) -> Iterator[FlowProblem]:
    """Yield why a process is not ready, but for what its checks and breakers have named already."""
    if body["status"] == "ready":
        return
    state: State = "warn" if body["status"] == "degraded" else "bad"
    named = [f"{check['name']}: " for check in body["checks"] if check["status"] == "unhealthy"]
    for reason in body["reasons"]:
        if not reason.startswith(("circuit breaker ", *named)):
            section = _section_of(reason) or (CRASH if state == "bad" else "")
            yield FlowProblem(own, state, f"{stem}: {reason}", section)


def _of_dependency(name: str, own: Stage) -> tuple[Stage, str]:
    if name in OF_CHECK:
        return OF_CHECK[name]
    for known, found in OF_CHECK.items():  # `imap:work` of several accounts
        if name.startswith((f"{known}:", f"{known}/", f"{known} ")):
            return found
    return ("sinks" if own == "workers" else own), (WEBHOOK if own == "workers" else BREAKER)


def _section_of(reason: str) -> str:
    """Return the section for a reason that no check has: of the first word that it contains."""
    words = reason.casefold()
    return next((section for word, section in OF_REASON if word in words), "")


def _account_problems(reading: SystemReading, thresholds: Mapping[str, float]) -> Iterator[FlowProblem]:
    for account in accounts_of(reading):
        name = account["name"]
        if account["reauth_required"]:
            yield FlowProblem("mailboxes", "bad", f"account {name} must be authorized again", TOKEN, "/accounts")
        if account.get("token_state") == "client refused":
            text = f"the OAuth2 client of account {name} is refused: its secret or ID in the settings is wrong"
            yield FlowProblem("mailboxes", "bad", text, TOKEN, "/accounts")
        age = account["last_success_age_seconds"]
        if age is not None and age > thresholds["sync_silence_seconds"]:
            yield FlowProblem("mailboxes", "bad", f"account {name} was not looked at for {age / 60:.0f} min", SILENT)
        if account["quarantined"]:
            count = len(account["quarantined"])
            text = f"the mail server of account {name} does not send {count} message{'' if count == 1 else 's'}"
            yield FlowProblem("mailboxes", "warn", text, QUARANTINE)
    for name, until in metric_of(reading, "producer", "delivered_until_timestamp_seconds").items():
        late = reading.at - until
        if late > thresholds["freshness_seconds"]:
            yield FlowProblem("stream", "warn", f"mail of account {name} waits for {late / 60:.0f} min", BACKLOG)


def _sink_problems(reading: SystemReading, thresholds: Mapping[str, float]) -> Iterator[FlowProblem]:
    for name, since in metric_of(reading, "worker", "sink_oldest_timestamp_seconds").items():
        late = reading.at - since
        if late > thresholds["sink_seconds_warning"]:
            state: State = "bad" if late > thresholds["sink_seconds_critical"] else "warn"
            yield FlowProblem("sinks", state, f"sink {name} has not got a message for {late / 60:.0f} min", WEBHOOK)


def _database(reading: SystemReading) -> Iterator[FlowProblem]:
    if reading.database.value is None:
        text, state = f"not known, how the database is: {reading.database.problem}", "unknown"
        if reading.database.failed:
            text, state = f"the database does not serve: {reading.database.problem}", "bad"
        yield FlowProblem("sinks", cast("State", state), text, DATABASE if reading.database.failed else "")


def accounts_of(reading: SystemReading) -> list[dict[str, Any]]:
    """Return the accounts as the producers report them, by name."""
    bodies = [each.body for each in reading.processes.value or () if each.body]
    return sorted((each for body in bodies for each in body["accounts"]), key=lambda each: str(each["name"]))


def metric_of(reading: SystemReading, component: str, name: str) -> dict[str, float]:
    """Return a metric of the processes of a kind by its label; of several values the smallest."""
    found: dict[str, float] = {}
    for process in _of(reading, component):
        for label, value in process.metrics.get(name, {}).items():
            found[label] = min(value, found.get(label, value))
    return found


def _of(reading: SystemReading, component: str) -> list[LiveProcess]:
    return [each for each in reading.processes.value or () if each.component == component]
