"""Keeps the labels in the database equal to those on the server: looks now and then at what changed since (CONDSTORE).

UIDs in windows ─▶ FETCH X-GM-LABELS (CHANGEDSINCE) ─▶ records ─▶ the MODSEQ up to which that is done, beside the cursor

A MODSEQ that is seen in one window may be above a change in an earlier one, made after that was read. So a round goes
down to the MODSEQ that was there before it began, and what it saw itself is the next round's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from email_ingestion.events import LabelsChanged, Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.message_summary import LabelChange
from email_ingestion.records import email_id
from email_ingestion.stream import Appender

WINDOW = 10_000  # UIDs asked for at once: what all of them answer is to fit into some megabytes
TRIES = 3  # what the server still does not send then is passed over
WINDOW_BYTES = 4096  # asked of the budget before a window; what really came is settled after it


class Records(Protocol):
    """What became of the messages of one opened mailbox. Methods raise SinkUnavailable and `RedisLink.call`'s."""

    def any(self) -> bool:
        """Whether there are any yet."""
        ...

    def relabel(self, labels: Mapping[str, Sequence[str]]) -> tuple[set[str], int]:
        """Set the labels of those identities that are delivered; returns those, and how many had other ones."""
        ...

    def look(self) -> None:
        """See what is in the stream now."""
        ...

    def queued(self, gm_msgid: int) -> bool:
        """Whether a message was in the stream at one of the looks."""
        ...


class Labels:
    """Of one opened mailbox; made anew for each connection.

    `room` is told how many bytes are to come and returns 0, or the seconds after which to ask again.
    """

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        opened: SelectedMailbox,
        *,
        intake: Appender,
        records: Callable[[], Records],
        room: Callable[[int], float],
        every: float,
        observe: Observe,
    ) -> None:
        """`every`: seconds between two rounds, infinite for none."""
        self._account = account
        self._connection = connection
        self._opened = opened
        self._intake = intake
        self._records = records
        self._room = room
        self._every = every
        self._observe = observe
        self._reached = opened.modseq
        self._incomplete = 0  # rounds in which the server did not send everything, one after another

    def steps(self) -> Iterator[float]:
        """Go on for ever; each step says for how many seconds to do something else. Raises as `Sync.run` does."""
        if self._every == math.inf or not self._opened.modseq or not self._connection.is_gmail:
            while True:
                yield math.inf
        while True:
            yield from self._round(self._records())
            yield from _during(self._every)

    def _round(self, records: Records) -> Iterator[float]:
        since = self._since(records)
        held, seen, whole = self._reached, self._reached, True
        for low, high in self._windows():
            while pause := self._room(WINDOW_BYTES):
                yield pause
            changed, all_sent = self._connection.fetch_label_changes(low, high, since)
            whole = whole and all_sent
            held = min([held, *(each.modseq - 1 for each in self._apply(changed, records))])
            seen = max([seen, *(each.modseq for each in changed)])
            yield 0.0
        self._incomplete = 0 if whole else self._incomplete + 1
        if self._incomplete % TRIES == 0 and held > since:
            self._intake.note_modseq(self._account, self._opened.name, self._opened.uidvalidity, held)
        self._reached = seen

    def _since(self, records: Records) -> int:
        """Where the round before ended; where that is not known everything is looked at, unless nothing is here yet."""
        known = self._intake.modseq(self._account, self._opened.name)
        if known and known <= self._reached:
            return known
        return 1 if records.any() else self._reached

    def _windows(self) -> Iterator[tuple[int, int | None]]:
        low = 1
        while low + WINDOW < self._opened.uidnext:
            yield low, low + WINDOW - 1
            low += WINDOW
        yield low, None

    def _apply(self, changed: Sequence[LabelChange], records: Records) -> list[LabelChange]:
        """Change the records; returns what has no record yet because it is in the stream, with the labels it had."""
        left = self._set(changed, records)
        if not left:
            return []
        records.look()
        queued = [each for each in left if records.queued(each.gm_msgid)]
        # What left the stream before that look was perhaps recorded after we asked for it.
        self._set([each for each in left if not records.queued(each.gm_msgid)], records)
        return queued

    def _set(self, changed: Sequence[LabelChange], records: Records) -> list[LabelChange]:
        """Change the records; returns what has none."""
        identities = {email_id(self._account, each.gm_msgid, ""): each for each in changed}
        if not identities:
            return []
        recorded, different = records.relabel({identity: each.labels for identity, each in identities.items()})
        if different:
            self._observe(LabelsChanged(self._account, self._opened.name, different))
        return [each for identity, each in identities.items() if identity not in recorded]


def _during(seconds: float) -> Iterator[float]:
    """What is left of so many seconds, until they are over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield left
