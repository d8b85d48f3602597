"""One account and all that its mail needs on its way into the stream, for a watcher or for a command."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from email_ingestion.blobs import Blobs
from email_ingestion.events import Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.producer import Budget, Fetch, History, Picker, Sync
from email_ingestion.producer.again import Again
from email_ingestion.producer.backfill import Backfill
from email_ingestion.producer.choice import Rules
from email_ingestion.producer.feed import AskRoom, Feed
from email_ingestion.producer.labels import Labels
from email_ingestion.producer.urgency import urgency
from email_ingestion.reconcile import Accounted, Audit, Underway
from email_ingestion.reconcile.labelled import Labelled
from email_ingestion.routing import Router
from email_ingestion.settings import Account, Settings, start_of
from email_ingestion.stream import (
    EMPTY_BACKLOG,
    Appender,
    DownloadQuota,
    EntryScanner,
    Gaps,
    Quarantine,
    RedisLink,
    StreamBacklog,
)

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger

ROOM_SECONDS = 0.5  # between looks whether the stream is still full
LOAD_SECONDS = 0.1  # for which a look at the stream holds: each is a round trip, and there is one before each portion


class LedgerOnDemand:
    """The ledger, opened when it is first asked for: mail is fetched while the database is away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None

    def __call__(self) -> Ledger:
        """The ledger; raises SinkUnavailable or ConfigurationError."""
        from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - SQLAlchemy: 0.15 s, 13 MB

        with self._lock:
            self._ledger = self._ledger or open_ledger(self._url)
            return self._ledger

    def close(self) -> None:
        """Give the connections back, if there are any."""
        with self._lock:
            if self._ledger:
                self._ledger.close()


@dataclass(frozen=True, slots=True)
class Source:
    """One account, and what a sync or an audit of it needs beside a connection."""

    account: Account
    settings: Settings
    link: RedisLink
    intake: Appender  # one for each thread
    ledger: Callable[[], Ledger]
    blobs: Blobs
    observe: Observe = lambda _: None  # what a command counts says it all
    holder: str = ""  # as whom it writes, see `stream.leases`; a command writes as nobody in particular
    control: OperatorOverrides = field(default_factory=partial(OperatorOverrides, "producer"))
    several: bool = False  # whether more than one mailbox of the account is read

    def sync(
        self, connection: ImapMailbox, opened: SelectedMailbox, ask_room: AskRoom, rest: Callable[[float], bool]
    ) -> Sync:
        """What brings new mail into the stream."""
        return Sync(self._feed(connection, opened), ask_room, rest)

    def history(self, connection: ImapMailbox, opened: SelectedMailbox, room: AskRoom) -> History:
        """What brings the mail that was there before into the stream."""
        return History(self._feed(connection, opened), room)

    def labels(self, connection: ImapMailbox, opened: SelectedMailbox, room: Callable[[int], float]) -> Labels:
        """What brings changed labels into the database."""
        name = self.account.name
        return Labels(
            name,
            connection,
            opened,
            intake=self.intake,
            records=lambda: Labelled(
                name, opened, self.ledger, Underway(EntryScanner(self.link, self.link.keys_for(name)), name)
            ),
            room=room,
            every=self.settings.imap_poll_seconds if self.settings.imap_track_labels else math.inf,
            observe=self.observe,
        )

    def _feed(self, connection: ImapMailbox, opened: SelectedMailbox) -> Feed:
        return Feed(
            self.account.name,
            connection,
            opened,
            self.intake,
            picker=self._picker(connection, opened),
            look=partial(self._accounted, opened),
            observe=self.observe,
        )

    def backfill(self, connection: ImapMailbox, opened: SelectedMailbox, room: Callable[[int], None]) -> Backfill:
        """What brings the mail of a period into the stream, whatever the start is."""
        rules = Rules(frozenset(self.account.imap_exclude_labels), None, self.settings.imap_message_max_bytes)
        return Backfill(
            connection,
            opened,
            gaps=Gaps(self.link, self.account.name, self.holder),
            picker=self._picker(connection, opened, rules),
            accounted=self._accounted(opened),
            room=room,
        )

    def _picker(self, connection: ImapMailbox, opened: SelectedMailbox, rules: Rules | None = None) -> Picker:
        return Picker(
            self.account.name,
            opened,
            fetch=self._fetch(connection, opened),
            quarantine=self._quarantine(opened),
            rules=rules or self._rules(),
            several=self.several,
            observe=self.observe,
        )

    def budget(self) -> Budget:
        """The account's download budget, for one thread."""
        return Budget(
            self.account.name,
            DownloadQuota(self.link, self.account.name),
            self.settings.imap_bytes_per_day,
            self.observe,
        )

    def again(self, connection: ImapMailbox, opened: SelectedMailbox) -> Again:
        """What asks again for messages the server refused to send."""
        return Again(
            self.account.name,
            opened,
            quarantine=self._quarantine(opened),
            gaps=Gaps(self.link, self.account.name, self.holder),
            fetch=self._fetch(connection, opened),
            rules=self._rules(),
            look=partial(self._accounted, opened),
            observe=self.observe,
        )

    def audit(self, connection: ImapMailbox, opened: SelectedMailbox, has_room: Callable[[], bool] | None) -> Audit:
        """What compares the mailbox with what became of its mail, and fills gaps while `has_room`."""
        return Audit(
            self.account.name,
            connection,
            opened,
            intake=self.intake,
            gaps=Gaps(self.link, self.account.name, self.holder),
            fetch=self._fetch(connection, opened),
            rules=self._rules(),
            accounted=self._accounted(opened),
            has_room=has_room,
            observe=self.observe,
        )

    def full(self, in_hand: StreamBacklog = EMPTY_BACKLOG, most: int = sys.maxsize) -> str | None:
        """Why nothing more should be fetched now, or None: Gmail is the buffer, Redis is not.

        `in_hand` is on its way into the stream; with `most` messages there it is full for whoever asks.
        """
        if self.control.active_pause():
            return "paused by an operator"
        load, settings = self.intake.backlog(LOAD_SECONDS), self.settings
        soon = load + in_hand
        if soon.depth >= settings.stream_max_depth:
            return f"{load.depth} messages in the stream, STREAM_MAX_DEPTH is {settings.stream_max_depth}"
        if soon.volume >= settings.stream_max_bytes:
            return f"{load.volume} bytes in the stream, STREAM_MAX_BYTES is {settings.stream_max_bytes}"
        return f"{load.depth} messages in the stream come first" if soon.depth >= most else None

    def wait_for_room(self) -> None:
        """Return when more may be fetched: the workers are behind."""
        while self.full():
            time.sleep(ROOM_SECONDS)

    def relieved(self) -> bool:
        """Whether operators want new mail to be fetched and nothing else."""
        return self.control.is_at_or_below("DEGRADED")

    def renewed(self) -> object:
        """The time the token file was written."""
        try:
            return self.account.google_token_file.stat().st_mtime_ns
        except OSError:
            return None

    def _quarantine(self, opened: SelectedMailbox) -> Quarantine:
        return Quarantine(self.link, self.account.name, opened.name, opened.uidvalidity)

    def _fetch(self, connection: ImapMailbox, opened: SelectedMailbox) -> Fetch:
        return Fetch(
            self.account.name,
            connection,
            opened,
            blobs=self.blobs,
            blob_threshold=self.settings.blob_threshold_bytes,
            urgency=urgency(Router(self.settings.routes, self.settings.sinks[1:])),
            observe=self.observe,
        )

    def _rules(self) -> Rules:
        account = self.account
        most = self.settings.imap_message_max_bytes
        return Rules(frozenset(account.imap_exclude_labels), start_of(account), most, account.imap_start == "now")

    def _accounted(self, opened: SelectedMailbox) -> Accounted:
        name = self.account.name
        return Accounted(name, opened, self.ledger, Underway(EntryScanner(self.link, self.link.keys_for(name)), name))
