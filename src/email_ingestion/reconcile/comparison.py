"""The state of each message that a comparison found, and the sums. Decisions only, nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from email_ingestion.mailbox import MessageSummary
from email_ingestion.producer.known_mail import Locations
from email_ingestion.producer.selection import FetchFilter

MessageState = Literal["delivered", "queued", "dead", "purged", "excluded", "accepted", "missing"]

JSON_KEYS = {"last_uid": "upto", "unfetched": "ahead"}  # of the fields that are not their own keys
MAX_MISSING_UIDS = 1000  # missing UIDs that a report names; it counts all of them


def compare(
    summaries: Iterable[MessageSummary], locations: Locations, fetch_filter: FetchFilter
) -> dict[int, MessageState]:
    """Return the state of each message: the ledger is believed first, and a rule only excuses what is nowhere."""
    return {summary.uid: _state(summary, locations, fetch_filter) for summary in summaries}


def _state(summary: MessageSummary, locations: Locations, fetch_filter: FetchFilter) -> MessageState:
    if summary.uid in locations.delivered:
        return "delivered"
    if summary.uid in locations.in_flight:
        return locations.in_flight[summary.uid]
    if summary.uid in locations.purged:
        return "purged"
    return "excluded" if fetch_filter.exclusion_reason(summary, ()) else "missing"


@dataclass(slots=True)
class ReconcileReport:
    """The sums for one mailbox, UIDs up to `last_uid`; `docs/reconcile.md` says what each means."""

    account: str
    mailbox: str
    uidvalidity: int
    last_uid: int
    checked: int = 0
    delivered: int = 0
    queued: int = 0
    dead: int = 0
    purged: int = 0
    excluded: int = 0
    accepted: int = 0
    missing: int = 0
    unsent: int = 0  # of the missing: the server lists them but does not send them
    repaired: int = 0
    duplicate: int = 0
    unexpected: int = 0
    altered: int = 0
    unfetched: int = 0
    missing_uids: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, or no more."""
        return self.missing == self.repaired

    def count(self, states: Mapping[int, MessageState]) -> None:
        """Add the states of some messages, by UID."""
        self.checked += len(states)
        for uid, state in states.items():
            setattr(self, state, getattr(self, state) + 1)
            if state == "missing" and len(self.missing_uids) < MAX_MISSING_UIDS:
                self.missing_uids.append(uid)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `--json` prints it, with its keys."""
        fields = {JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}
        return fields | {"complete": self.complete}
