"""Which mail is old enough to be erased, and which is held: by settings and routes, by holds. Decisions only.

The days of a route are in the row of each message, given when it was recorded or reparsed; where none are, those of its
account count, as the settings have them now. A hold wins over both, and over `erase`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from email_ingestion.erasure.mail_selector import MailSelector
from email_ingestion.parsing import parse_headers
from email_ingestion.records import Envelope
from email_ingestion.routing import Router

if TYPE_CHECKING:
    from email_ingestion.ledger.erasure import MailChoice
    from email_ingestion.ledger.model import ErasableMessage, Hold

KINDS = ("sender", "address", "id", "account")


@dataclass(frozen=True, slots=True)
class RetentionSelector:
    """Selects what is older than it is kept. `account_days` are by account, `route_days` those that rows have."""

    now: datetime
    account_days: Mapping[str, int]
    route_days: Sequence[int]
    router: Router

    def choice(self) -> MailChoice:
        """Return what is old enough; nothing more is asked of it."""
        from email_ingestion.ledger.erasure import AgeLimit, MailChoice  # noqa: PLC0415 - with it comes SQLAlchemy

        accounts = (AgeLimit(self._before(days), account=name) for name, days in self.account_days.items())
        routes = (AgeLimit(self._before(days), route_days=days) for days in self.route_days if days)
        return MailChoice(limits=(*accounts, *routes))

    def matches_stored(self, message: ErasableMessage) -> bool:
        """Whether it is meant, which the database has decided."""
        del message
        return True

    def matches_raw(self, envelope: Envelope, raw: Callable[[], bytes]) -> bool:
        """Whether a message of Redis is old enough, by its account, or by the routes that its header shows."""
        days = self.account_days.get(envelope.account)
        if self.router.sets_retention:
            decided = self.router.decide(parse_headers(envelope, raw())).retention_days
            days = days if decided is None else decided
        return bool(days) and envelope.internaldate < self._before(days or 0)

    def matches_unreadable(self, account: str, died: datetime, raw: Callable[[], bytes]) -> bool:
        """Whether a dead letter without an envelope died long enough ago."""
        del raw
        days = self.account_days.get(account)
        return days is not None and died < self._before(days)

    def describe(self) -> dict[str, Any]:
        """Return the days by account and of routes."""
        return {"retention_days": dict(self.account_days), "route_days": list(self.route_days)}

    def _before(self, days: int) -> datetime:
        return self.now - timedelta(days=days)


class Holds:
    """The holds of one moment."""

    def __init__(self, holds: Sequence[Hold]) -> None:
        self._selectors = [_selector(hold) for hold in holds]

    @property
    def need_addresses(self) -> bool:
        """Whether the header of a message must be known to decide on it."""
        return any(each.sender or each.address for each in self._selectors)

    def keep(self, message: ErasableMessage) -> bool:
        """Whether a message must not be erased."""
        return any(each.matches_stored(message) for each in self._selectors)

    def keep_unreadable(self, account: str, died: datetime, raw: Callable[[], bytes]) -> bool:
        """Whether a dead letter without an envelope must not be erased."""
        return any(each.matches_unreadable(account, died, raw) for each in self._selectors)


def _selector(hold: Hold) -> MailSelector:
    if hold.kind == "id":
        return MailSelector(email_ids=(hold.value,), account=hold.account)
    if hold.kind == "account":
        return MailSelector(account=hold.account)
    if hold.kind == "sender":
        return MailSelector(sender=hold.value, account=hold.account)
    return MailSelector(address=hold.value, account=hold.account)
