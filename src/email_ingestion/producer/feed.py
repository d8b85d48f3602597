"""What new mail and old mail of one opened mailbox need alike on their way into the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from email_ingestion.aside import Aside
from email_ingestion.email import Cursor, Message
from email_ingestion.events import Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap import Opened
from email_ingestion.producer.choice import Portion, with_next
from email_ingestion.producer.picker import Accounted, Picker
from email_ingestion.stream import NO_LOAD, Intake, Load

# Told how many bytes are to come, and what is in hand and not in the stream yet: 0, or the seconds to wait.
AskRoom = Callable[[int, Load], float]
# Puts messages into the stream and moves an end of the cursor to a UID; returns how many were new, and the cursor.
Append = Callable[[str, str, Cursor, int, Sequence[Message]], tuple[int, Cursor]]


@dataclass(frozen=True, slots=True)
class Feed:
    """Made anew for each connection. Messages are appended in the thread `beside` while the next ones are fetched."""

    account: str
    connection: ImapMailbox
    opened: Opened
    intake: Intake
    picker: Picker
    beside: Aside
    look: Callable[[], Accounted]
    observe: Observe

    def cursor(self) -> Cursor | None:
        """How far the mailbox was read, perhaps under another UIDVALIDITY."""
        return self.intake.cursor(self.account, self.opened.name)

    def carry(
        self, portions: Iterable[Portion], cursor: Cursor, accounted: Accounted, ask_room: AskRoom, append: Append
    ) -> Iterator[Cursor | float]:
        """Fetch and append portion by portion: yields the cursor whenever it has moved, else the seconds to wait.

        While one is compressed and appended, the next one is fetched, if there is room for both.
        """
        ahead: list[Message] | None = None
        for portion, following in with_next(portions):
            while portion.wanted and ahead is None and (pause := ask_room(portion.size, NO_LOAD)):
                yield pause
            messages = self.picker.messages(portion, cursor, accounted) if ahead is None else ahead
            job = partial(append, self.account, self.opened.name, cursor, portion.upto, messages)
            if following.wanted and not ask_room(following.size, _load(messages)):
                appending = self.beside.begin(job)
                try:
                    ahead = self.picker.messages(following, cursor, accounted)
                finally:
                    cursor = self._appended(messages, *appending.result())
            else:
                ahead, cursor = None, self._appended(messages, *job())
            del messages, job  # a wait for room may follow
            yield cursor

    def _appended(self, messages: Sequence[Message], added: int, cursor: Cursor) -> Cursor:
        self.picker.published(messages, added)
        return cursor


def _load(messages: Sequence[Message]) -> Load:
    return Load(len(messages), sum(message.envelope.size for message in messages))
