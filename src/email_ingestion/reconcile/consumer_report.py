"""What a comparison of a sink with the ledger found, by account and month, and how it asks the ledger a second time.

Mail goes on while a comparison lasts. So nothing is missing, altered or foreign before the ledger was asked once
more: what is on its way, was delivered within the last minute, or was erased meanwhile is none of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from email_ingestion.ledger.owed_mail import OwedMessage
from email_ingestion.ledger.store import Ledger
from email_ingestion.reconcile.against_list import EMAIL_ID

MAX_NAMED = 1_000  # messages of a kind that the report names
YOUNG = timedelta(minutes=1)  # since its delivery: it may be on its way inside the receiver
PART = 500  # messages about which the ledger is asked together
FIELDS = ("owed", "missing", "altered", "not_ours", "erased", "not_owed", "duplicates", "in_flight", "dead_letters")


@dataclass
class ConsumerReport:
    """The sums for one sink; `docs/completeness.md` says what each means."""

    sink: str
    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)  # by account and month
    named: dict[str, list[str]] = field(default_factory=lambda: {"missing": [], "altered": [], "not_ours": []})
    foreign: int = 0  # things there without any identity
    unknown: int = 0  # what readers take away after use: nobody knows whether they had it
    unreadable: list[str] = field(default_factory=list)
    resent: int = 0
    exchanged_bytes: int = 0  # with a receiver that is compared by tree
    seconds: float = 0.0

    def count(self, what: str, account: str, month: str, number: int = 1) -> None:
        """Add messages of an account and month to a sum."""
        self.counts.setdefault((account, month), Counter())[what] += number

    def sum(self, what: str) -> int:
        """Return a sum over all accounts and months."""
        return sum(each[what] for each in self.counts.values()) + (self.foreign if what == "not_ours" else 0)

    @property
    def complete(self) -> bool | None:
        """Whether the sink has all it was given, unaltered; None where nothing is wrong but not all could be seen."""
        if self.sum("missing") or self.sum("altered"):
            return False
        return None if self.is_partial else True

    @property
    def is_partial(self) -> bool:
        """Whether not all of the sink could be looked at."""
        return bool(self.unreadable or self.unknown)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return {
            "sink": self.sink,
            "complete": self.complete,
            **{name: self.sum(name) for name in FIELDS},
            "unknown": self.unknown,
            "unreadable": self.unreadable[:MAX_NAMED],
            "resent": self.resent,
            "exchanged_bytes": self.exchanged_bytes,
            "seconds": round(self.seconds, 3),
            "accounts": self.rows(),
            **{f"{name}_ids": ids for name, ids in self.named.items()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each account and month."""
        return [
            {"account": account, "month": month, **{name: counts[name] for name in FIELDS}}
            for (account, month), counts in sorted(self.counts.items())
        ]


class SecondLook:
    """Collects what may be wrong, asks the ledger about it, and counts what is. Call `finish` at the end."""

    def __init__(
        self, ledger: Ledger, report: ConsumerReport, started: datetime, resend: Callable[[list[str]], int] | None
    ) -> None:
        """`resend` owes messages to the sink again and returns how many; without it nothing is changed."""
        self._ledger = ledger
        self._report = report
        self._before = started - YOUNG
        self._resend = resend
        self._wrong: dict[str, str] = {}  # missing or altered, by identity
        self._extra: dict[str, str] = {}  # month, by identity

    def count_owed(self, message: OwedMessage) -> bool:
        """Count a message; return whether it must be there, else it does not matter whether it is."""
        account, month = message.account, f"{message.internaldate:%Y-%m}"
        self._report.count("owed", account, month)
        if message.state == "dead":
            self._report.count("dead_letters", account, month)
        elif not self.is_settled(message):
            self._report.count("in_flight", account, month)
        return self.is_settled(message)

    def is_settled(self, message: OwedMessage) -> bool:
        """Whether a message must be there."""
        return message.is_settled(self._before)

    def suspect(self, email_id: str, what: str) -> None:
        """Note a message that seems to be missing or altered."""
        self._wrong[email_id] = what
        if len(self._wrong) >= PART:
            self._settle_wrong()

    def find_extra(self, email_id: str, month: str) -> None:
        """Note a message that the sink has and that does not seem to be owed to it."""
        self._extra[email_id] = month
        if len(self._extra) >= PART:
            self._settle_extra()

    def finish(self) -> None:
        """Ask the ledger about the rest."""
        self._settle_wrong()
        self._settle_extra()

    def _settle_wrong(self) -> None:
        wrong, self._wrong = self._wrong, {}
        known = self._ledger.owed.known(self._report.sink, wrong)
        lost = []
        for email_id, what in wrong.items():
            message = known.get(email_id)
            if message is None or message.state is None:  # erased meanwhile
                continue
            month = f"{message.internaldate:%Y-%m}"
            if not self.is_settled(message):
                self._report.count("in_flight", message.account, month)
                continue
            self._report.count(what, message.account, month)
            self._name(what, email_id)
            lost.append(email_id)
        if self._resend and lost:
            self._report.resent += self._resend(lost)

    def _settle_extra(self) -> None:
        extra, self._extra = self._extra, {}
        known = self._ledger.owed.known(self._report.sink, extra)
        unknown = [each for each in extra if each not in known]
        erased = self._ledger.erasure.erased(unknown) if unknown else frozenset()
        for email_id, month in extra.items():
            if email_id in known:
                if known[email_id].state is None:
                    self._report.count("not_owed", known[email_id].account, month)
                continue
            identity = EMAIL_ID.fullmatch(email_id)
            account = identity[1] if identity else ""
            self._report.count("erased" if email_id in erased else "not_ours", account, month)
            if email_id not in erased:
                self._name("not_ours", email_id)

    def _name(self, what: str, email_id: str) -> None:
        if len(self._report.named[what]) < MAX_NAMED:
            self._report.named[what].append(email_id)
