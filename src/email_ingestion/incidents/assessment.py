"""What an incident does: how well the service works, whose mail is late, and whether mail is at risk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from email_ingestion.doctor.service_checks import run_check, worst
from email_ingestion.fleet.managed_processes import find_processes
from email_ingestion.fleet.status_table import OK_STATES
from email_ingestion.settings import Settings

LATE_SECONDS = 300.0  # without a successful look at a mailbox


@dataclass(frozen=True, slots=True)
class Assessment:
    """Impact, scope and data risk as sentences, with the numbers they come from."""

    taken_at: str
    level: str  # of the worst check
    impact: list[str]
    scope: list[str]
    data_risk: list[str]
    checks: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def assess(settings: Settings, span: timedelta) -> Assessment:
    """Look at everything now; what does not answer is said, never left out."""
    results = run_check("all", settings, span)
    bodies = [body for process in find_processes(settings) if (body := process.status())]
    producer = next((body for body in bodies if body["component"] == "producer"), None)
    return Assessment(
        taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
        level=worst(results),
        impact=[result.line for result in results if result.level != "OK"] or ["every check is OK"],
        scope=_scope(producer),
        data_risk=_data_risk(bodies),
        checks=[asdict(result) for result in results],
    )


def _scope(producer: dict[str, Any] | None) -> list[str]:
    if producer is None:
        return ["all accounts: the producer does not answer"]
    wrong = dict(_problems(producer))
    late = [
        f"account {each['name']}: last looked at {each['last_success_age_seconds']:.0f} s ago"
        for each in producer["accounts"]
        if each["last_success_age_seconds"] is not None and each["last_success_age_seconds"] > LATE_SECONDS
        if each["name"] not in wrong
    ]
    never = [
        f"account {each['name']}: not looked at since the producer started"
        for each in producer["accounts"]
        if each["last_success_age_seconds"] is None and each["name"] not in wrong
    ]
    named = [f"account {name}: {problem}" for name, problem in wrong.items()]
    found = [*named, *late, *never, *_waiting(producer["stream"])]
    if not named and producer.get("status", "ready") not in OK_STATES:  # then no account is served
        found.insert(0, f"all accounts: the producer is {producer['status']}")
    return found or [f"no account is late: {', '.join(each['name'] for each in producer['accounts'])}"]


def _problems(producer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each account that `/status` gives a reason for, with the reason and since when nothing came of it."""
    ages = {each["name"]: each["last_success_age_seconds"] for each in producer["accounts"]}
    for reason in producer.get("reasons", ()):
        name, found, problem = reason.removeprefix("account ").partition(": ")
        if found and reason.startswith("account ") and name in ages:
            age = ages[name]
            looked = "not looked at since the producer started" if age is None else f"last looked at {age:.0f} s ago"
            yield name, f"{looked}; {problem}"


def _waiting(stream: dict[str, Any]) -> list[str]:
    """Say whether mail that was fetched is late: it waits in the stream, of whichever accounts."""
    if stream["depth"] is None:
        return ["whether mail that was fetched is late is not known: Redis cannot be read"]
    oldest = stream["oldest_age_seconds"]
    if oldest is None or oldest <= LATE_SECONDS:
        return []
    return [
        f"mail of any account may be late: the oldest of {stream['depth']} messages waits for {oldest / 60:.0f} min"
    ]


def _data_risk(bodies: list[dict[str, Any]]) -> list[str]:
    """Say where mail is that has not reached the database; none of these places forgets it."""
    if not bodies:
        return ["unknown: no process of this machine answers; mail stays on the mail server until the database has it"]
    stream, dlq = bodies[0]["stream"], bodies[0]["dlq"]
    quarantined = sum(len(each.get("quarantined") or ()) for body in bodies for each in body["accounts"])
    known = {
        "messages wait in Redis": stream["depth"],
        "dead letters": dlq["depth"],
        "messages that the server does not send": quarantined,
    }
    unknown = [name for name, number in known.items() if number is None]
    risks = [f"{number} {name}" for name, number in known.items() if number]
    risks += [f"unknown, for Redis cannot be read: {', '.join(unknown)}"] if unknown else []
    return risks or ["none seen: nothing waits, no dead letter, nothing set aside (`reconcile` proves it)"]
