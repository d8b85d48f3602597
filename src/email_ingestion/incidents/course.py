"""How an incident went: its worst moment that was written down, and how late mail was in its time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from email_ingestion.doctor.service_checks import BY_WEIGHT
from email_ingestion.errors import EmailIngestionError
from email_ingestion.incidents.assessment import LATE_SECONDS, Assessment
from email_ingestion.incidents.incident_log import Incident
from email_ingestion.ledger.maintenance import delivery_seconds_by_account
from email_ingestion.settings import Settings

BEFORE = timedelta(minutes=30)  # an alert comes some time after its fault has begun


@dataclass(frozen=True, slots=True)
class IncidentCourse:
    """What is told of an incident afterwards. `worst` is the first of its worst assessments; `delays` are sentences."""

    worst: Assessment | None
    delays: list[str]

    def lines(self, now: Assessment) -> list[str]:
        """Return what it did to mail, how it was at its worst, and how it is."""
        return [*self.delays, *self._at_worst(), *(f"now: {line}" for line in (*now.impact, *now.scope))]

    def _at_worst(self) -> list[str]:
        if self.worst is None:
            return ["how it was at its worst was not kept"]
        return self._timed((*self.worst.impact, *self.worst.scope))

    def data(self, now: Assessment) -> list[str]:
        """Return where mail was at its worst, and where it is."""
        return [*self._timed(self.worst.data_risk if self.worst else ()), *(f"now: {line}" for line in now.data_risk)]

    def _timed(self, lines: Iterable[str]) -> list[str]:
        at = datetime.fromisoformat(self.worst.taken_at) if self.worst else datetime.now(UTC)
        return [f"at {at:%H:%M} UTC: {line}" for line in lines]


def course_of(incident: Incident, settings: Settings) -> IncidentCourse:
    """Look at what was kept of an incident, and at the mail of its time."""
    start, end = incident.span
    kept = [each for each in _kept(incident) if datetime.fromisoformat(each.taken_at) <= end]
    kept.sort(key=lambda each: datetime.fromisoformat(each.taken_at))
    worst = max(kept, key=lambda each: BY_WEIGHT.index(each.level), default=None)
    return IncidentCourse(worst, list(_delays(settings, start - BEFORE, end)))


def _kept(incident: Incident) -> Iterator[Assessment]:
    for path in incident.folder.glob("assessment*.json"):
        try:
            made = Assessment(**json.loads(path.read_text()))
            if made.level in BY_WEIGHT and datetime.fromisoformat(made.taken_at).tzinfo:
                yield made
        except (OSError, ValueError, TypeError):
            continue  # damaged: the others count


def _delays(settings: Settings, start: datetime, end: datetime) -> Iterator[str]:
    """Say for each account how late the mail of this time is; what is not delivered yet is not among it."""
    when = f"mail that arrived between {start:%H:%M} and {end:%H:%M} UTC"
    try:
        found = delivery_seconds_by_account(settings.database_url, start, end)
    except EmailIngestionError as error:
        yield f"how late mail was is not known: {error}"
        return
    for account, seconds in sorted(found.items()):
        late = sum(each > LATE_SECONDS for each in seconds)
        yield (
            f"account {account}: of {len(seconds)} delivered messages, {when}, {late} came more than "
            f"{LATE_SECONDS / 60:.0f} min late; the slowest took {max(seconds):.0f} s"
        )
    if not found:
        yield f"no {when} is delivered"
