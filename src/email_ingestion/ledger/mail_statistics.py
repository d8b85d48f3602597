"""Numbers over delivered mail: how much arrives at this hour, as in past weeks, and how well formed it is.

Nothing of a message is given out but its sender's domain.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median

from sqlalchemy import and_, func, or_, select

from email_ingestion.ledger.engine import Database
from email_ingestion.ledger.tables import emails

WEEKS = 4  # that the present hour is compared with
HOUR = timedelta(hours=1)
WEEK = timedelta(weeks=1)
FACTOR = 3.0  # times as much, or as little, is unusual
FEW = 20  # messages: below, nothing is unusual
ROWS = 1000  # read at once
DATE_DEFECTS = {"date:invalid", "date:missing"}
VERDICTS = ("spf", "dkim", "dmarc")
NO_VERDICT = "no verdict"
NO_DOMAIN = "(no address)"


@dataclass(frozen=True, slots=True)
class MailVolume:
    """The mail of one account that arrived within the last hour, and what the same hour of past weeks had."""

    arrived: int
    past: tuple[int, ...]  # of the weeks since the account's first mail, newest first

    @property
    def expected(self) -> float | None:
        """The median of the past weeks; None where there is none to compare with."""
        return float(median(self.past)) if self.past else None

    @property
    def anomaly(self) -> str | None:
        """How the hour differs, "high" or "low"; None when it is as usual, or there is nothing to compare with."""
        usual = self.expected
        if usual is None:
            return None
        if self.arrived > FACTOR * usual + FEW:
            return "high"
        return "low" if usual > FEW and self.arrived * FACTOR < usual else None


@dataclass(slots=True)
class MailQuality:
    """How well formed mail is; counts of messages."""

    messages: int = 0
    defective: int = 0
    defects: Counter[str] = field(default_factory=Counter)  # by code
    verdicts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in VERDICTS})
    unreadable_dates: int = 0
    empty_bodies: int = 0
    by_domain: Counter[str] = field(default_factory=Counter)
    defective_by_domain: Counter[str] = field(default_factory=Counter)
    defects_by_domain: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


class MailStatistics:
    """The numbers of one ledger. Every method raises SinkUnavailable when it is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def volume(self, accounts: Sequence[str], now: datetime) -> dict[str, MailVolume]:
        """Compare the hour before `now` with the same hour of the last four weeks, for each account."""
        arrived = emails.c.internaldate
        with self._database.connect() as connection:
            hours = []
            for week in range(WEEKS + 1):
                end = now - week * WEEK
                query = select(emails.c.account, func.count()).where(arrived > end - HOUR, arrived <= end)
                hours.append({name: int(count) for name, count in connection.execute(query.group_by(emails.c.account))})
            first = {
                name: connection.execute(select(func.min(arrived)).where(emails.c.account == name)).scalar_one()
                for name in accounts
                if any(name in hour for hour in hours)
            }
        found = {}
        for name in accounts:
            oldest = first.get(name, now)
            counts = [hour.get(name, 0) for hour in hours]
            known = [
                count for week, count in enumerate(counts) if week and oldest and oldest <= now - week * WEEK - HOUR
            ]
            found[name] = MailVolume(counts[0], tuple(known))
        return found

    def quality(self, since: datetime, account: str | None = None) -> MailQuality:
        """Sum up the mail that arrived from `since` on."""
        c = emails.c
        has_text = func.length(func.trim(c.text, " \t\r\n\xa0")) > 0
        has_html = func.length(func.coalesce(c.html, "")) > 0
        columns = (c.from_addr, c.defects, c.spf, c.dkim, c.dmarc, c.date, has_text, has_html)
        query = select(c.internaldate, c.email_id, *columns).order_by(c.internaldate, c.email_id).limit(ROWS)
        if account is not None:
            query = query.where(c.account == account)
        found = MailQuality()
        behind = c.internaldate >= since
        while True:
            with self._database.connect() as connection:
                rows = connection.execute(query.where(behind)).all()
            for *_, sender, defects, spf, dkim, dmarc, date, text, html in rows:
                _add(found, domain_of(sender), defects, dict(zip(VERDICTS, (spf, dkim, dmarc), strict=True)))
                found.unreadable_dates += date is None or not DATE_DEFECTS.isdisjoint(defects)
                found.empty_bodies += not (text or html)
            if len(rows) < ROWS:
                return found
            at, last = rows[-1][0], rows[-1][1]
            behind = or_(c.internaldate > at, and_(c.internaldate == at, c.email_id > last))


def domain_of(address: str | None) -> str:
    """Return the domain of a sender's address, in lower case."""
    return (address or "").rpartition("@")[2].strip("> .").lower() or NO_DOMAIN


def _add(found: MailQuality, domain: str, defects: Sequence[str], verdicts: Mapping[str, str | None]) -> None:
    found.messages += 1
    found.by_domain[domain] += 1
    for name, verdict in verdicts.items():
        found.verdicts[name][verdict or NO_VERDICT] += 1
    if defects:
        found.defective += 1
        found.defective_by_domain[domain] += 1
        found.defects.update(set(defects))
        found.defects_by_domain[domain].update(set(defects))
