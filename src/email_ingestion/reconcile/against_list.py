"""Compares the ledger with the list of another system: what is missing there, and what there is not ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from email_ingestion.ledger.model import DeliveredName
from email_ingestion.ledger.store import Ledger
from email_ingestion.reconcile.id_list import normalize

EMAIL_ID = re.compile(r"([a-z0-9][a-z0-9_-]{0,62}):(gm:\d+|sha256:[0-9a-f]{64})", re.ASCII)
MAX_NAMED = 1_000  # missing messages that the report names
NO_ACCOUNT = ""  # of lines that name no account of ours


@dataclass(slots=True)
class AccountComparison:
    """One account: how many messages are ours, how many are missing there, and how many there are not ours."""

    ours: int = 0
    missing: int = 0
    not_ours: int = 0
    unidentified: int = 0  # without a Message-ID, where the list has nothing else


@dataclass(slots=True)
class ListComparison:
    """All accounts, and the missing messages by month and label; `named` are the first of them."""

    accounts: dict[str, AccountComparison] = field(default_factory=dict)
    missing_by_month: Counter[str] = field(default_factory=Counter)
    missing_by_label: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    lines: int = 0
    repeated: int = 0  # lines that say what another line said
    found: int = 0  # names that are ours

    @property
    def missing(self) -> int:
        """How many of our messages are not in the list."""
        return sum(each.missing for each in self.accounts.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON has it."""
        return {
            "missing": self.missing,
            "not_ours": sum(each.not_ours for each in self.accounts.values()),
            "lines": self.lines,
            "repeated": self.repeated,
            "accounts": [
                {
                    "account": name or None,
                    "ours": each.ours,
                    "missing": each.missing,
                    "not_ours": each.not_ours,
                    "unidentified": each.unidentified,
                }
                for name, each in sorted(self.accounts.items())
            ],
            "missing_by_month": dict(sorted(self.missing_by_month.items())),
            "missing_by_label": dict(self.missing_by_label.most_common()),
            "missing_ids": self.named,
        }


def compare_with_list(ledger: Ledger, lines: Iterable[str], accounts: Iterable[str]) -> ListComparison:
    """Compare the delivered messages of `accounts` with lines that each hold a Message-ID or an `email_id`.

    A message is there when either of its names is in the list. Lines that name neither a message of ours nor an
    account count as not ours; with one account they are that account's. All names are in memory together, about 150
    bytes each.
    """
    names = list(accounts)
    listed, comparison = _read(lines)
    has_ids = any(EMAIL_ID.fullmatch(name.lower()) for name in listed)
    comparison.accounts = {name: AccountComparison() for name in names}
    found: set[str] = set()
    spellings = _Spellings(listed)
    for name in names:
        for message in ledger.delivered_names(name):
            its_names = {message.email_id, normalize(message.message_id or "")}
            found |= its_names & listed
            counts = comparison.accounts[name]
            counts.ours += 1
            if not its_names.isdisjoint(listed):
                continue
            if not message.message_id and not has_ids:
                counts.unidentified += 1
            elif not spellings.may_have(name, message, its_names):
                _count_missing(comparison, name, message)
    for name, message in spellings.choose(found):
        _count_missing(comparison, name, message)
    comparison.found = len(found)
    for name in listed - found:
        _count_foreign(comparison, name, names)
    return comparison


class _Spellings:
    """Finds messages whose names another system wrote in capitals, or in small letters.

    Case matters in Message-IDs, and of some mail servers two differ by nothing else. So a name that is ours as it
    stands is that message's, and only what is left may be one that is spelt in another way.
    """

    def __init__(self, listed: set[str]) -> None:
        self._names = listed
        self._listed: dict[str, list[str]] = {}  # by the name in small letters; made when the first one is looked for
        self._waiting: list[tuple[str, DeliveredName, list[str]]] = []

    def may_have(self, account: str, message: DeliveredName, names: set[str]) -> bool:
        """Whether the list has a name of the message in another spelling; `choose` decides."""
        if not self._listed:
            for name in self._names:
                self._listed.setdefault(name.casefold(), []).append(name)
        some = [name for name in sorted(names) if name.casefold() in self._listed]
        if some:
            self._waiting.append((account, message, some))
        return bool(some)

    def choose(self, found: set[str]) -> Iterator[tuple[str, DeliveredName]]:
        """Add to `found` what stands for messages that wait; yield those for which nothing is left."""
        taken: set[str] = set()  # names of ours that are in the list
        for account, message, names in self._waiting:
            if not taken.isdisjoint(names):
                continue
            left = ((name, each) for name in names for each in self._listed[name.casefold()] if each not in found)
            name, spelling = next(left, (None, None))
            if name is None or spelling is None:
                yield account, message
            else:
                taken.add(name)
                found.add(spelling)


def _count_missing(comparison: ListComparison, account: str, message: DeliveredName) -> None:
    comparison.accounts[account].missing += 1
    comparison.missing_by_month[f"{message.internaldate:%Y-%m}"] += 1
    comparison.missing_by_label.update(message.labels)
    if len(comparison.named) < MAX_NAMED:
        comparison.named.append(message.email_id)


def _read(lines: Iterable[str]) -> tuple[set[str], ListComparison]:
    comparison, listed = ListComparison(), set[str]()
    for line in lines:
        name = normalize(line)
        if name:
            comparison.lines += 1
            comparison.repeated += name in listed
            listed.add(name)
    return listed, comparison


def _count_foreign(comparison: ListComparison, name: str, names: list[str]) -> None:
    email_id = EMAIL_ID.fullmatch(name.lower())
    account = email_id[1] if email_id else names[0] if len(names) == 1 else NO_ACCOUNT
    if account not in names:
        account = NO_ACCOUNT
    comparison.accounts.setdefault(account, AccountComparison()).not_ours += 1
