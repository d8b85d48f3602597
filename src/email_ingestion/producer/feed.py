"""What new mail and old mail of one opened mailbox need alike on their way into the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from email_ingestion.events import Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.choice import Portion, with_next
from email_ingestion.producer.fetch import Storing
from email_ingestion.producer.picker import Accounted, Picker
from email_ingestion.records import Cursor, RawMessage
from email_ingestion.stream import EMPTY_BACKLOG, Appender, CursorEnd, PackedEntries, StreamBacklog

# Told how many bytes are to come, and what is in hand and not in the stream yet: 0, or the seconds to wait.
AskRoom = Callable[[int, StreamBacklog], float]
# Sends an append, once what it names is stored; what that returns waits for the answer: the cursor as it then stands.
Begin = Callable[[], Callable[[], Cursor]]


class Fetched(NamedTuple):
    """A portion that was taken in."""

    upto: int  # the last UID that is accounted for once these are in the stream
    messages: list[RawMessage]
    storing: Storing  # what they refer to


@dataclass(frozen=True, slots=True)
class Feed:
    """Made anew for each connection."""

    account: str
    connection: ImapMailbox
    opened: SelectedMailbox
    intake: Appender
    picker: Picker
    look: Callable[[], Accounted]
    observe: Observe

    def cursor(self) -> Cursor | None:
        """How far the mailbox was read, perhaps under another UIDVALIDITY."""
        return self.intake.cursor(self.account, self.opened.name)

    def carry(
        self, portions: Iterable[Portion], cursor: Cursor, accounted: Accounted, ask_room: AskRoom, end: CursorEnd
    ) -> Iterator[Cursor | float]:
        """Fetch and append portion by portion: yields the cursor whenever it has moved, else the seconds to wait.

        While one is taken in, Redis appends the one before, or the blob store takes what that is to name. Nothing is
        on its way to Redis when it yields.
        """
        begin: Begin | None = None
        answer: Callable[[], Cursor] | None = None
        try:
            for fetched in self._fetched(portions, cursor, accounted, ask_room):
                if begin:
                    stored, begin = begin, None
                    answer = stored()
                entries = self.intake.pack(fetched.messages) if isinstance(fetched, Fetched) else []
                if answer:
                    ended, answer = answer, None
                    yield (cursor := ended())
                if not isinstance(fetched, Fetched):
                    yield fetched
                elif fetched.storing:
                    begin = self._append(cursor, end, fetched, entries)
                else:
                    answer = self._append(cursor, end, fetched, entries)()
        finally:
            if begin:
                answer = begin()
            if answer:
                cursor = answer()
        if answer:
            yield cursor

    def _fetched(
        self, portions: Iterable[Portion], cursor: Cursor, accounted: Accounted, ask_room: AskRoom
    ) -> Iterator[Fetched | float]:
        """While one portion is taken in, the server gets the next one ready, if there is room for both."""
        expected, before = False, EMPTY_BACKLOG
        for portion, following in with_next(portions):
            while portion.wanted and not expected and (pause := ask_room(portion.size, before)):
                yield pause
                before = EMPTY_BACKLOG
            load = StreamBacklog(len(portion.wanted), portion.size)
            expected = bool(following.wanted) and not ask_room(following.size, before + load)
            if expected:
                self.picker.expect(portion)
                self.picker.expect(following)
            storing: Storing = []
            yield Fetched(portion.upto, self.picker.messages(portion, cursor, accounted, storing), storing)
            before = load

    def _append(self, cursor: Cursor, end: CursorEnd, fetched: Fetched, entries: PackedEntries) -> Begin:
        def begin() -> Callable[[], Cursor]:
            for each in fetched.storing:
                each.result()
            answer = self.intake.append_later(self.account, self.opened.name, cursor, fetched.upto, entries, end=end)

            def ended() -> Cursor:
                added, moved = answer()
                self.picker.published(fetched.messages, added)
                return moved

            return ended

        return begin
