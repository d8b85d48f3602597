"""What new mail and old mail of one opened mailbox need alike on their way into the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from email_ingestion.email import Cursor, Message
from email_ingestion.events import Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap import Opened
from email_ingestion.producer.choice import Portion
from email_ingestion.producer.picker import Accounted, Picker
from email_ingestion.stream import Intake, Load

# Told how many bytes are to come, and what is in hand and not in the stream yet: 0, or the seconds to wait.
AskRoom = Callable[[int, Load], float]


@dataclass(frozen=True, slots=True)
class Feed:
    """Made anew for each connection."""

    account: str
    connection: ImapMailbox
    opened: Opened
    intake: Intake
    picker: Picker
    look: Callable[[], Accounted]
    observe: Observe

    def cursor(self) -> Cursor | None:
        """How far the mailbox was read, perhaps under another UIDVALIDITY."""
        return self.intake.cursor(self.account, self.opened.name)

    def ask_ahead(self, following: Portion, messages: Sequence[Message], ask_room: AskRoom) -> bool:
        """Have the server send the next portion while `messages` go into the stream, if there is room for both."""
        in_hand = Load(len(messages), sum(message.envelope.size for message in messages))
        if not following.wanted or ask_room(following.size, in_hand):
            return False
        self.picker.ask_ahead(following)
        return True

    def append(self, cursor: Cursor, upto: int, messages: Sequence[Message]) -> Cursor:
        """New mail into the stream, and the cursor up to this UID."""
        added, moved = self.intake.append(self.account, self.opened.name, cursor, upto, messages)
        self.picker.published(messages, added)
        return moved

    def append_history(self, cursor: Cursor, downto: int, messages: Sequence[Message]) -> Cursor:
        """Old mail into the stream, and the cursor's other end down to this UID."""
        added, moved = self.intake.append_history(self.account, self.opened.name, cursor, downto, messages)
        self.picker.published(messages, added)
        return moved
