"""The records of incidents on the disk: opened under a lock, so that no number is given twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from email_ingestion.atomic_files import atomic_write, file_lock, unwritable
from email_ingestion.errors import OperationFailed

FOLDER = Path("data/incidents")

ALERT_PREFIX = "EmailIngestion"

State = Literal["open", "acknowledged", "resolved"]
Kind = Literal["opened", "note", "done", "ran", "ack", "update", "action", "factor", "lucky", "resolved", "verified"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a person wrote, and when."""

    timestamp: str  # ISO 8601, UTC
    user: str
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident; times are ISO 8601, UTC, None where it did not come to that."""

    number: str
    title: str
    severity: str
    opened_at: str
    opened_by: str
    alert: str = ""  # the alert that opened it
    acknowledged_at: str | None = None
    acknowledged_by: str | None = None
    resolved_at: str | None = None
    resolved_by: str | None = None
    cause: str = ""
    fix: str = ""
    ticket: str = ""  # URL of the ticket that INCIDENT_WEBHOOK answered with
    entries: tuple[Entry, ...] = field(default=(), repr=False)

    @property
    def state(self) -> State:
        """How far it is."""
        return "resolved" if self.resolved_at else "acknowledged" if self.acknowledged_at else "open"

    @property
    def folder(self) -> Path:
        """Where everything about it lies."""
        return FOLDER / self.number

    @property
    def seconds(self) -> float | None:
        """How long it has lasted, to its resolution or to now; None where the clock has gone back since."""
        start, end = datetime.fromisoformat(self.opened_at), self._end
        return (end - start).total_seconds() if end >= start else None

    @property
    def span(self) -> tuple[datetime, datetime]:
        """From its opening to its resolution or to now; the other way round where the clock has gone back since."""
        start = datetime.fromisoformat(self.opened_at)
        return min(start, self._end), max(start, self._end)

    @property
    def _end(self) -> datetime:
        return datetime.fromisoformat(self.resolved_at) if self.resolved_at else datetime.now(UTC)

    def texts(self, kind: Kind) -> list[str]:
        """Return what people wrote under a kind."""
        return [entry.text for entry in self.entries if entry.kind == kind]


def open_incident(title: str, severity: str, user: str, alert: str = "", *, unless_open: bool = False) -> Incident:
    """Give the next number of the day, make its folder and write the incident.

    Raises ConfigurationError, DiskFull without room: then nothing of it is left. With `unless_open`, return the
    incident that is open for this alert, if there is one.
    """
    now = datetime.now(UTC)
    with file_lock(FOLDER / "numbers"):
        if unless_open and (found := _open_for(alert)):
            return add_entry(found[0], user, "note", f"the alert {alert} fires again: {title}")
        taken = [int(path.name.rpartition("-")[2]) for path in FOLDER.glob(f"INC-{now:%Y%m%d}-*")]
        number = f"INC-{now:%Y%m%d}-{max(taken, default=0) + 1:03d}"
        incident = described_incident(number, title, severity, user, alert)
        try:
            incident.folder.mkdir(mode=0o700)
            _write(incident)
        except OSError as error:
            shutil.rmtree(incident.folder, ignore_errors=True)
            raise unwritable(incident.folder, error) from error
    return incident


def described_incident(number: str, title: str, severity: str, user: str, alert: str = "") -> Incident:
    """Return an incident that begins now, with its first entry; nothing is written."""
    now = _now()
    first = Entry(now, user, "opened", f"{severity} {title}" + (f" (alert {alert})" if alert else ""))
    return Incident(number, title, severity, now, user, alert, entries=(first,))


def find_incident(number: str) -> Incident:
    """Return an incident by its number, an end of it that only one has, or the alert it is open for.

    Raises OperationFailed.
    """
    if open_ones := _open_for(number):
        return open_ones[0]
    names = [path.parent.name for path in sorted(FOLDER.glob("INC-*/incident.json"))]
    found = [name for name in names if name == number] or [name for name in names if name.endswith(number)]
    if len(found) != 1:
        known = ", ".join(names[-5:]) or "none yet; `email-ingestion incident open` makes one"
        what = "several incidents end" if found else "no incident ends"
        raise OperationFailed(f"{what} in {number!r}; latest: {known}")
    return _read(FOLDER / found[0])


def _open_for(alert: str) -> list[Incident]:
    """Return the incidents that are open for an alert, newest first."""
    wanted = alert.removeprefix(ALERT_PREFIX)
    found = list_incidents() if wanted else []
    return [each for each in found if not each.resolved_at and each.alert.removeprefix(ALERT_PREFIX) == wanted]


def list_incidents(tell: Callable[[str], None] = lambda _: None) -> list[Incident]:
    """Return all incidents that can be read, newest first; `tell` is called with a sentence for each other one."""
    found = []
    for path in sorted(FOLDER.glob("INC-*/incident.json"), reverse=True):
        try:
            found.append(_read(path.parent))
        except OperationFailed as error:
            tell(str(error))
    return found


def change(incident: Incident, user: str, kind: Kind, text: str, **fields: Any) -> Incident:
    """Set fields of the incident and write down who did that and what they said."""
    with file_lock(incident.folder / "incident"):
        stored = _read(incident.folder)
        changed = replace(stored, **fields, entries=(*stored.entries, Entry(_now(), user, kind, text)))
        try:
            _write(changed)
        except OSError as error:
            raise unwritable(incident.folder / "incident.json", error) from error
    return changed


def add_entry(incident: Incident, user: str, kind: Kind, text: str) -> Incident:
    """Append what a person wrote. Raises as `change`."""
    return change(incident, user, kind, text)


def keep(incident: Incident, name: str, content: str) -> Path:
    """Write a file into the incident's folder and return its path; a text that is there gets a number of its own.

    Raises ConfigurationError when it cannot be written, DiskFull when there is no room.
    """
    stem, _, suffix = name.rpartition(".")
    path, number = incident.folder / name, 1
    while path.exists():
        number += 1
        path = incident.folder / f"{stem}-{number}.{suffix}"
    try:
        with atomic_write(path) as file:
            file.write(content.encode())
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def _write(incident: Incident) -> None:
    """Replace both files of an incident, or leave both as they are. Raises OSError."""
    fields = {name: value for name, value in asdict(incident).items() if name != "entries"}
    lines = "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in incident.entries)
    with (
        atomic_write(incident.folder / "incident.json") as of_fields,
        atomic_write(incident.folder / "entries.jsonl") as of_entries,
    ):
        of_entries.write(lines.encode())
        of_fields.write((json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode())
        of_fields.flush()
        os.fsync(of_fields.fileno())  # there is room for it before the entries take their place


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(folder: Path) -> Incident:
    try:
        return Incident(**json.loads((folder / "incident.json").read_text()), entries=_read_entries(folder))
    except (OSError, ValueError, TypeError) as error:
        raise OperationFailed(
            f"the incident in {folder} cannot be read ({error}): bring back its incident.json and entries.jsonl"
        ) from error


def _read_entries(folder: Path) -> tuple[Entry, ...]:
    path = folder / "entries.jsonl"
    lines: Sequence[str] = path.read_text().splitlines() if path.exists() else ()
    return tuple(Entry(**json.loads(line)) for line in lines)
