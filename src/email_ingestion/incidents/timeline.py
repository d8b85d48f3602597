"""The timeline of an incident: what people wrote, what operators ordered, and what the processes logged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.log_files import LogFilter, read_records
from email_ingestion.incidents.incident_log import Incident
from email_ingestion.ops.audit_log import read_audit

BEFORE, AFTER = timedelta(minutes=30), timedelta(minutes=10)
MAX_ENTRIES = 500
# Log events that tell what happened, not how each message fared.
EVENTS = {
    *("process_started", "process_stopped", "process_failed", "process_crashed", "loop_stalled", "loop_failed"),
    *("redis_failed", "imap_connection_failed", "imap_locked_out", "operator_needed", "token_refresh_failed"),
    *(
        "breaker_changed",
        "message_quarantined",
        "sink_hung",
        "email_dead_lettered",
        "operator_notified",
        "alert_received",
        "lease_changed",
    ),
    *("imap_uidvalidity_changed", "fetching_held", "mailbox_reconciled", "dependency_probed", "imap_connected"),
}
DETAILS = (
    "alert",
    "alerts",
    "ended",
    "priority",
    "firing",
    "message",
    "reason",
    "dependency",
    "ok",
    "breaker",
    "old",
    "new",
    "account",
    "sink",
    "loop",
    "error_type",
    "suppressed",
    # of orders
    "section",
    "component",
    "name",
    "value",
    "state",
    "level",
    "min_priority",
    "ttl_seconds",
    "file",
    "until",
    "repaired",
)
OF_EVERY_RECORD = {"component", "level"}  # of the log, where they tell nothing; of an order they do


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One line of the timeline."""

    at: datetime
    source: str
    text: str


def timeline(incident: Incident, log_dir: Path) -> list[TimelineEntry]:
    """Return all that is known, by time, from half an hour before the incident was opened to shortly after its end.

    Of more than MAX_ENTRIES, the log's lines in the middle are left out and counted.
    """
    start, end = incident.span[0] - BEFORE, incident.span[1] + AFTER
    people = [
        TimelineEntry(datetime.fromisoformat(each.timestamp), each.user, f"{each.kind}: {each.text}")
        for each in incident.entries
    ]
    logged = [each for each in (*_orders(log_dir), *_logged(log_dir, start)) if start <= each.at <= end]
    logged = list(_joined(sorted(logged, key=lambda moment: moment.at)))
    room = max(0, MAX_ENTRIES - len(people))
    if len(logged) > room:
        head, tail = logged[: room // 2], logged[len(logged) - room // 2 :]
        left_out = TimelineEntry(head[-1].at, "log", f"{len(logged) - len(head) - len(tail)} lines are left out here")
        logged = [*head, left_out, *tail]
    return sorted([*people, *logged], key=lambda moment: moment.at)


def _joined(entries: Iterable[TimelineEntry]) -> Iterator[TimelineEntry]:
    """Yield one entry for each run of equal ones: an order goes to every process, and each writes it down."""
    for (source, text), found in groupby(entries, key=lambda entry: (entry.source, entry.text)):
        run = list(found)
        times = f" ({len(run)} times)" if len(run) > 1 else ""
        yield TimelineEntry(run[0].at, source, f"{text}{times}")


def _logged(log_dir: Path, since: datetime) -> Iterator[TimelineEntry]:
    gaps: list[str] = []
    for record in read_records(log_dir, LogFilter(since, "INFO"), gaps):
        if record.get("event") in EVENTS:
            yield TimelineEntry(
                _when(record),
                str(record.get("instance", "log")),
                f"{record['event']} {_details(record, but=OF_EVERY_RECORD)}".strip(),
            )
    for gap in gaps:
        yield TimelineEntry(since, "log", f"not read: {gap}")


def _orders(log_dir: Path) -> Iterator[TimelineEntry]:
    try:
        for record in read_audit(log_dir):
            if record.get("result") != "started" and not str(record.get("action")).startswith("incident"):
                text = f"{record.get('action')} {record.get('result')} {_details(record)}".strip()
                yield TimelineEntry(_when(record), str(record.get("user", "audit")), text)
    except OperationFailed as error:
        yield TimelineEntry(datetime.now(UTC), "audit", f"the audit log cannot be read: {error}")


def _details(record: dict[str, Any], but: Collection[str] = ()) -> str:
    names = (name for name in DETAILS if name not in but)
    return " ".join(f"{name}={record[name]}" for name in names if record.get(name) not in (None, "", 0, []))


def _when(record: dict[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(str(record["timestamp"])).astimezone(UTC)
    except (KeyError, ValueError):
        return datetime.fromtimestamp(0, UTC)
