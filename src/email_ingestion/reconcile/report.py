"""What a comparison found: the verdict on each message, and the sums. Decisions only, nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from email_ingestion.mailbox import MessageSummary
from email_ingestion.producer.choice import Rules
from email_ingestion.reconcile.accounted import Evidence

Verdict = Literal["delivered", "queued", "dead", "purged", "excluded", "missing"]

NAMED_MOST = 1000  # missing UIDs that a report names; it counts all of them


def compare(outlines: Iterable[MessageSummary], evidence: Evidence, rules: Rules) -> dict[int, Verdict]:
    """The verdict on each message: the ledger is believed first, and a rule only excuses what is nowhere."""
    return {outline.uid: _verdict(outline, evidence, rules) for outline in outlines}


def _verdict(outline: MessageSummary, evidence: Evidence, rules: Rules) -> Verdict:
    if outline.uid in evidence.delivered:
        return "delivered"
    if outline.uid in evidence.underway:
        return evidence.underway[outline.uid]
    if outline.uid in evidence.purged:
        return "purged"
    return "excluded" if rules.reason_against(outline, ()) else "missing"


@dataclass(slots=True)
class Report:
    """The sums for one mailbox, UIDs up to `upto`; `docs/reconcile.md` says what each means."""

    account: str
    mailbox: str
    uidvalidity: int
    upto: int
    checked: int = 0
    delivered: int = 0
    queued: int = 0
    dead: int = 0
    purged: int = 0
    excluded: int = 0
    missing: int = 0
    repaired: int = 0
    duplicate: int = 0
    unexpected: int = 0
    ahead: int = 0
    missing_uids: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, or no more."""
        return self.missing == self.repaired

    def count(self, verdicts: Mapping[int, Verdict]) -> None:
        """Add the verdicts on some messages."""
        self.checked += len(verdicts)
        for uid, verdict in verdicts.items():
            setattr(self, verdict, getattr(self, verdict) + 1)
            if verdict == "missing" and len(self.missing_uids) < NAMED_MOST:
                self.missing_uids.append(uid)

    def as_dict(self) -> dict[str, Any]:
        """As JSON tells it."""
        return asdict(self) | {"complete": self.complete}
