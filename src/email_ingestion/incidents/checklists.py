"""What is to be done after an incident began, by time, and what of it is done.

What the incident's log shows is ticked by itself; the rest somebody ticks with `incident checklist NUMBER --done N`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from email_ingestion.incidents.incident_log import Incident

Shown = Callable[[Incident], bool]


def _never(_incident: Incident) -> bool:
    return False


def _has(kind: str) -> Shown:
    return lambda incident: any(entry.kind == kind for entry in incident.entries)


def _holds_file(name: str) -> Shown:
    return lambda incident: (incident.folder / name).exists()


def _is_verified(incident: Incident) -> bool:
    return "all holds" in [entry.text for entry in incident.entries if entry.kind == "verified"][-1:]


# By the span since the incident began, with the hours it ends after: what to do, and what shows that it is done.
CHECKLISTS: Mapping[tuple[str, float], Sequence[tuple[str, Shown]]] = {
    ("0-1 h", 1): (
        ("acknowledge it: `incident ack`", lambda incident: incident.acknowledged_at is not None),
        ("keep the evidence: `evidence collect`", _holds_file("evidence")),
        ("tell people: `incident update`", _has("update")),
        ("follow the section: `runbook run SECTION --step`", _has("ran")),
    ),
    ("1-24 h", 24): (
        ("end it, with cause and fix: `incident resolve`", lambda incident: incident.resolved_at is not None),
        ("verify that all is well: `incident verify`", _is_verified),
        ("is any mail missing? `reconcile`", _never),
        ("is any mail aside? `dlq stats`", _never),
        ("write the post-mortem: `incident postmortem`", _holds_file("postmortem.md")),
    ),
    ("1-7 d", 7 * 24): (
        ("discuss the post-mortem with all who were there", _never),
        ("give every action an owner and a day: `incident note --kind action`", _has("action")),
        ("play the fault: `gameday`", _never),
    ),
    ("1-30 d", 30 * 24): (
        ("see that the actions are done", _never),
        ("change the thresholds in config/alerts.yml if it was told too late, or too often", _never),
        ("correct the section of the runbook", _never),
    ),
}


@dataclass(frozen=True, slots=True)
class ChecklistItem:
    """One thing to do, by when, and whether it is done."""

    number: int
    span: str
    due: datetime
    text: str
    done: bool


def checklist(incident: Incident) -> list[ChecklistItem]:
    """Return everything that is to be done for an incident, numbered from 1."""
    start = datetime.fromisoformat(incident.opened_at)
    ticked = set(incident.texts("done"))
    found: list[ChecklistItem] = []
    for (span, hours), items in CHECKLISTS.items():
        due = start + timedelta(hours=hours)
        for text, shown in items:
            done = text in ticked or shown(incident)
            found.append(ChecklistItem(len(found) + 1, span, due, text, done))
    return found


def checklist_text(incident: Incident) -> str:
    """Write the checklists with their ticks and times."""
    lines: list[str] = []
    for item in checklist(incident):
        heading = f"**{item.span}**, by {item.due:%Y-%m-%d %H:%M} UTC"
        if heading not in lines:
            lines += ["", heading, ""]
        lines.append(f"- [{'x' if item.done else ' '}] {item.number}. {item.text}")
    return "\n".join(lines[1:]) + "\n"
