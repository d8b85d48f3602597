"""What label tracking asks of the ledger and the stream, for one opened mailbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.reconcile.underway import Underway

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger


class Labelled:
    """Made anew for each round. Methods raise SinkUnavailable and what `RedisLink.call` raises."""

    def __init__(self, account: str, opened: SelectedMailbox, ledger: Callable[[], Ledger], underway: Underway) -> None:
        self._account = account
        self._opened = opened
        self._ledger = ledger
        self._underway = underway

    def any(self) -> bool:
        """Whether anything was delivered from the mailbox yet."""
        return self._ledger().begun(self._account, self._opened.name) is not None

    def relabel(self, labels: Mapping[str, Sequence[str]]) -> tuple[set[str], int]:
        """See `Ledger.relabel`."""
        return self._ledger().relabel(self._opened.name, labels)

    def look(self) -> None:
        """See what is in the stream now."""
        self._underway.look()

    def queued(self, gm_msgid: int) -> bool:
        """Whether a message was in the stream at one of the looks."""
        return self._underway.by_gm_msgid(gm_msgid) == "queued"
