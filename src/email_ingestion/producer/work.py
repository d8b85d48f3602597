"""What is done on a watcher's connection, and how long things last."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.again import Again
from email_ingestion.producer.feed import AskRoom
from email_ingestion.producer.history import History
from email_ingestion.producer.labels import Labels
from email_ingestion.producer.sync import Sync
from email_ingestion.stream import EMPTY_BACKLOG, StreamBacklog


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things last, in seconds."""

    poll: float
    idle: float
    session: float
    audit: float  # infinite: never


class Audit(Protocol):
    """A comparison of the mailbox with what became of its mail."""

    def steps(self) -> Iterator[None]:
        """Compare, pausing often."""


class Work(Protocol):
    """Makes what is done on a connection; `rest` waits so many seconds, and says whether to go on."""

    def sync(
        self, connection: ImapMailbox, opened: SelectedMailbox, ask_room: AskRoom, rest: Callable[[float], bool]
    ) -> Sync:
        """What brings new mail into the stream."""

    def history(self, connection: ImapMailbox, opened: SelectedMailbox, room: AskRoom) -> History:
        """What brings older mail into the stream."""

    def labels(self, connection: ImapMailbox, opened: SelectedMailbox, room: Callable[[int], float]) -> Labels:
        """What brings changed labels into the database."""

    def again(self, connection: ImapMailbox, opened: SelectedMailbox) -> Again:
        """What asks again for messages that were refused."""

    def audit(self, connection: ImapMailbox, opened: SelectedMailbox, room: Callable[[], bool]) -> Audit:
        """What compares the mailbox with what became of its mail."""

    def full(self, in_hand: StreamBacklog = EMPTY_BACKLOG, most: int = sys.maxsize) -> str | None:
        """Why nothing more should be fetched now, or None; `in_hand` is to go into the stream, of `most` messages."""

    def relieved(self) -> bool:
        """Whether new mail should be fetched and nothing else."""

    def renewed(self) -> object:
        """Changes when a person has renewed the authorization."""
