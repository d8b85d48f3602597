"""Which messages an erasure or a hold is about: by sender, by any address, by identity, by age. Decisions only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from email_ingestion.identity import tombstone
from email_ingestion.parsing import addresses_in, addresses_of
from email_ingestion.records import Envelope

if TYPE_CHECKING:
    from email_ingestion.ledger.erasure import MailChoice
    from email_ingestion.ledger.model import ErasableMessage

SENDER_FIELDS = ("from",)
ADDRESS_FIELDS = (
    *("from", "sender", "reply-to", "to", "cc", "bcc", "return-path"),
    *("resent-from", "resent-sender", "resent-to", "resent-cc", "resent-bcc"),
)
_PLAIN_DOMAIN = re.compile(r"[a-z0-9.-]+", re.ASCII)


class Selector(Protocol):
    """Decides which messages are meant."""

    def choice(self) -> MailChoice:
        """Return what the database can select; `matches_stored` decides on each message of it."""

    def matches_stored(self, message: ErasableMessage) -> bool:
        """Whether a message of the database is meant."""

    def matches_raw(self, envelope: Envelope, raw: Callable[[], bytes]) -> bool:
        """Whether a message that nobody has parsed yet is meant; `raw` returns its bytes, its header at least."""

    def matches_unreadable(self, account: str, died: datetime, raw: Callable[[], bytes]) -> bool:
        """Whether a dead letter without an envelope is meant; it has no identity, and the date at which it died."""

    def describe(self) -> dict[str, Any]:
        """Return the conditions for audit log and report: hashes in the place of addresses and identities."""


@dataclass(frozen=True, slots=True)
class MailSelector:
    """All conditions that are set must hold. An address is a whole one, or `@example.org` for all of a domain."""

    sender: str | None = None
    address: str | None = None  # of the sender or of a recipient
    email_ids: tuple[str, ...] | None = None
    before: datetime | None = None  # by INTERNALDATE
    account: str | None = None

    def choice(self) -> MailChoice:
        """Return what the database can select; `matches_stored` decides on each message of it."""
        from email_ingestion.ledger.erasure import MailChoice  # noqa: PLC0415 - with it comes SQLAlchemy

        wanted = self.sender or self.address
        domain = fold_address(wanted).rpartition("@")[2] if wanted else ""
        near = (domain if _PLAIN_DOMAIN.fullmatch(domain) else "@") if wanted else None
        return MailChoice(self.account, self.email_ids, self.before, near)

    def matches_stored(self, message: ErasableMessage) -> bool:
        """Whether a message of the database is meant."""

        def addresses(fields: tuple[str, ...]) -> tuple[str, ...]:
            known = (message.sender or "", *(message.recipients if len(fields) > 1 else ()))
            values = (value for name, value in message.headers if name.lower() in fields)
            return (*known, *(each for value in values for each in addresses_in(value)))

        return self._matches(message.envelope, addresses)

    def matches_raw(self, envelope: Envelope, raw: Callable[[], bytes]) -> bool:
        """Whether a message that nobody has parsed yet is meant; `raw` returns its bytes, its header at least."""
        return self._matches(envelope, lambda fields: addresses_of(raw(), fields))

    def matches_unreadable(self, account: str, died: datetime, raw: Callable[[], bytes]) -> bool:
        """Whether a dead letter without an envelope is meant; it has no identity, and the date at which it died."""
        if self.email_ids is not None or (self.account and self.account != account):
            return False
        if self.before is not None and died >= self.before:
            return False
        return self._has_addresses(lambda fields: addresses_of(raw(), fields))

    def describe(self) -> dict[str, Any]:
        """Return the conditions for audit log and report: hashes in the place of addresses and identities."""
        found: dict[str, Any] = {}
        for name in ("sender", "address"):
            value = getattr(self, name)
            if value is not None:
                found[f"{name}_sha256"] = hashlib.sha256(fold_address(value).encode()).hexdigest()
        if self.email_ids is not None:
            found["tombstones"] = [tombstone(each) for each in self.email_ids]
        if self.before is not None:
            found["before"] = self.before.isoformat()
        if self.account is not None:
            found["account"] = self.account
        return found

    def _matches(self, envelope: Envelope, addresses: Callable[[tuple[str, ...]], tuple[str, ...]]) -> bool:
        if self.account is not None and envelope.account != self.account:
            return False
        if self.email_ids is not None and envelope.email_id not in self.email_ids:
            return False
        if self.before is not None and envelope.internaldate >= self.before:
            return False
        return self._has_addresses(addresses)

    def _has_addresses(self, addresses: Callable[[tuple[str, ...]], tuple[str, ...]]) -> bool:
        wanted = ((self.sender, SENDER_FIELDS), (self.address, ADDRESS_FIELDS))
        return all(value is None or _is_among(value, addresses(fields)) for value, fields in wanted)


def _is_among(wanted: str, addresses: tuple[str, ...]) -> bool:
    folded = fold_address(wanted)
    if folded.startswith("@"):
        return any(fold_address(each).endswith(folded) for each in addresses)
    return any(fold_address(each) == folded for each in addresses)


def fold_address(address: str) -> str:
    """Return an address in the form in which two are compared; no receiver tells capitals apart any more."""
    return address.strip().strip("<>").strip().casefold()
