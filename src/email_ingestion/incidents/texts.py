"""The texts of an incident, filled in: what is unknown is said to be unknown, and nothing is left to fill in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from email_ingestion.doctor.service_checks import CheckResult
from email_ingestion.errors import ConfigurationError
from email_ingestion.incidents.assessment import Assessment
from email_ingestion.incidents.checklists import checklist_text
from email_ingestion.incidents.course import IncidentCourse
from email_ingestion.incidents.incident_log import Incident
from email_ingestion.incidents.timeline import TimelineEntry
from email_ingestion.ops.contacts import read_contacts
from email_ingestion.ops.notices import priority_of

HOUR = 3600
_BREAK = "\N{ZERO WIDTH SPACE}"  # which a reader does not see, and a mention or a link does not survive
UPDATE_MINUTES = {"P1": 15, "P2": 30, "P3": 240, "P4": 1440}


def initial_text(incident: Incident, now: Assessment) -> str:
    """Tell colleagues that there is an incident."""
    return _message(incident, f"{incident.severity} OPENED", "What we see", now, _next_update(incident))


def update_text(incident: Incident, now: Assessment, words: str) -> str:
    """Tell colleagues how it goes."""
    return _message(incident, f"{incident.severity} UPDATE", words, now, _next_update(incident))


def resolved_text(incident: Incident, now: Assessment, course: IncidentCourse) -> str:
    """Tell colleagues that it is over, and what it did."""
    words = f"Cause: {incident.cause}\nFix: {incident.fix}\n\nEffect:\n{_list(course.delays)}\nNow"
    return _message(incident, "RESOLVED", words, now, "")


def summary_text(incident: Incident, now: Assessment, course: IncidentCourse) -> str:
    """Tell people who decide, in a few sentences."""
    over = f"It is resolved: {_sentence(incident.fix)}" if incident.resolved_at else f"It is {incident.state}."
    cause = f"The cause was: {_sentence(incident.cause)}" if incident.cause else "The cause is not known yet."
    return (
        f"# {incident.number}: {incident.title}\n\n"
        f"Severity {incident.severity}, opened {incident.opened_at}, for {_duration(incident.seconds)}. "
        f"{over} {cause}\n\n"
        f"## Impact\n\n{_list(course.lines(now))}\n## Data\n\n{_list(course.data(now))}"
    )


def statuspage_text(incident: Incident, now: Assessment) -> str:
    """Tell people outside: no names of machines or causes, only what they notice; an alert's words are for us."""
    title = "e-mail is processed late" if incident.alert else incident.title
    if incident.resolved_at:
        return (
            f"Resolved: {title}\n\nFrom {incident.opened_at} to {incident.resolved_at} (UTC) mail was "
            "processed late or not at all. It works again; mail that arrived meanwhile has stayed on the mail server "
            "and is processed now.\n"
        )
    state = "Investigating" if incident.state == "open" else "Identified"
    noticed = "mail may be processed late" if now.level != "CRITICAL" else "mail is processed late or not at all"
    return (
        f"{state}: {title}\n\nSince {incident.opened_at} (UTC) {noticed}. Mail stays on the mail server until "
        f"it is processed. {_next_update(incident)}\n"
    )


def postmortem_text(
    incident: Incident, now: Assessment, course: IncidentCourse, moments: Sequence[TimelineEntry]
) -> str:
    """Write the post-mortem: blameless, with the timeline, to be discussed within 24 hours."""
    due = datetime.fromisoformat(incident.resolved_at or incident.opened_at) + timedelta(hours=24)
    rows = "".join(f"| {each.at:%Y-%m-%d %H:%M:%S} | {_cell(each.source)} | {_cell(each.text)} |\n" for each in moments)
    answered = _minutes_between(incident.opened_at, incident.acknowledged_at)
    return (
        f"# Post-mortem {incident.number}: {incident.title}\n\n"
        f"Blameless: it says what happened, not who is guilty. To be discussed by {due:%Y-%m-%d %H:%M} UTC.\n\n"
        f"| Date | Severity | Duration | Time to acknowledge | State |\n|---|---|---|---|---|\n"
        f"| {incident.opened_at} | {incident.severity} | {_duration(incident.seconds)} | {answered} "
        f"| {incident.state} |\n\n"
        f"## Impact\n\n{_list(course.lines(now))}\n## Data\n\n{_list(course.data(now))}\n"
        f"## Root cause\n\n{incident.cause or 'Not known: the incident is not resolved.'}\n\n"
        f"## Resolution\n\n{incident.fix or 'None yet.'}\n\n"
        f"## Contributing factors\n\n{_list(incident.texts('factor'))}\n"
        f"## Where we were lucky\n\n{_list(incident.texts('lucky'))}\n"
        f"## Actions\n\n{_list(incident.texts('action'), box=True)}\n"
        f"## Timeline (UTC)\n\n| When | Who | What |\n|---|---|---|\n{rows}\n"
        f"## Checklists\n\n{checklist_text(incident)}"
    )


def without_markup(text: str) -> str:
    """Return a text that a tracker shows as it stands: it calls nobody, links to nothing, is no HTML.

    The words of an alert, a server or a colleague may be in it. Headings, lists and bold type of ours stay.
    """
    plain = "".join(each if each.isprintable() or each == "\n" else " " for each in text)
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace("[", "\\[").replace("`", "'")
    return re.sub(r"@(?=\w)|#(?=\d)|(?<=\w):(?=//)|(?<=www)\.", lambda found: f"{found[0]}{_BREAK}", plain)


def verification_text(incident: Incident, results: Sequence[CheckResult], extra: Sequence[tuple[bool, str]]) -> str:
    """Write the verification checklist with what was found."""
    ticked = [(result.level == "OK", result.line) for result in results] + list(extra)
    lines = "".join(f"- [{'x' if ok else ' '}] {text}\n" for ok, text in ticked)
    return f"# Verification of {incident.number}\n\nAt {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC.\n\n{lines}"


def _message(incident: Incident, head: str, words: str, now: Assessment, last: str) -> str:
    return (
        f"**{incident.number} {head}: {incident.title}**\n\n{words}:\n{_list(now.impact)}\n"
        f"Scope: {'; '.join(now.scope)}\nData: {'; '.join(now.data_risk)}\n"
        f"Since {incident.opened_at}, for {_duration(incident.seconds)}; state {incident.state}"
        + (f", acknowledged by {incident.acknowledged_by}" if incident.acknowledged_by else "")
        + f".\n{_recipients(incident)}{last}\n"
    )


def _recipients(incident: Incident) -> str:
    """Say who is told by config/contacts.toml, and within how many minutes somebody answers."""
    priority = priority_of(incident.severity) or "P2"
    try:
        contacts = read_contacts()
    except ConfigurationError as error:
        return f"Told: unknown, for {error}.\n"
    people = "; ".join(each.line for each in contacts.told_of(priority))
    minutes = contacts.response_minutes.get(priority)
    answer = f" An answer within {minutes} min." if minutes else ""
    return f"Told: {people}.{answer}\n" if people else ""


def _next_update(incident: Incident) -> str:
    at = datetime.now(UTC) + timedelta(minutes=UPDATE_MINUTES[priority_of(incident.severity) or "P2"])
    return f"Next update by {at:%Y-%m-%d %H:%M} UTC."


def _list(items: Sequence[str], *, box: bool = False) -> str:
    return "".join(f"- {'[ ] ' if box else ''}{item}\n" for item in items) or "None was recorded.\n"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time (the clock was set back meanwhile)"
    return f"{seconds / HOUR:.1f} h" if seconds >= HOUR else f"{seconds / 60:.0f} min"


def _minutes_between(start: str, end: str | None) -> str:
    if end is None:
        return "not acknowledged"
    seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    return _duration(seconds if seconds >= 0 else None)
