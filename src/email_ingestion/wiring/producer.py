"""Builds the producer: one watcher for each account, all of them on one Redis."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from email_ingestion.blobs import Blobs, open_blobs
from email_ingestion.breaker import Breaker
from email_ingestion.control import Control
from email_ingestion.errors import (
    ConfigurationError,
    EmailIngestionError,
    IMAPConnectionError,
    OperationFailed,
    TokenRefreshError,
)
from email_ingestion.events import Observe
from email_ingestion.ledger import Ledger, open_ledger
from email_ingestion.mailbox import ImapMailbox, TokenSource
from email_ingestion.mailbox.imap import Opened
from email_ingestion.mailbox.replies import TokenRejected
from email_ingestion.ops.compose import compose
from email_ingestion.ops.records import Names
from email_ingestion.producer import Budget, Connector, Fetch, History, Keeper, Patience, Picker, Sync, Watcher
from email_ingestion.producer.again import Again
from email_ingestion.producer.backfill import Backfill
from email_ingestion.producer.choice import Rules
from email_ingestion.producer.tenure import BEAT_SECONDS, Tenure
from email_ingestion.producer.tenure import LOOP as LEASES
from email_ingestion.producer.tokens import Tokens
from email_ingestion.producer.watch import Pace
from email_ingestion.reconcile import Accounted, Audit, Underway
from email_ingestion.settings import Account, Settings, start_of
from email_ingestion.stream import Allowance, Census, Gaps, Intake, Leases, Link, Lockout, Quarantine, connect
from email_ingestion.stream.leases import LEASE_SECONDS
from email_ingestion.wiring.alerts import AlertWatch
from email_ingestion.wiring.bars import Bars
from email_ingestion.wiring.process import Breakers, Parts, common_folders, common_loops, identify, run_process
from email_ingestion.wiring.seat import seat_of

# Beyond the poll interval a watcher may sit in one command, in a token refresh and in an append.
SLACK_SECONDS = 90.0
LEASES_SILENCE = 30.0
MAILBOXES_MOST = 3  # of an account: Gmail allows 15 connections, which the owner's own programs need too
ROUNDS_MISSED = 3  # poll intervals without anything achieved, after which a watcher is given up


def run_producer(settings: Settings, *, once: bool) -> int:
    """Run the producer until it is stopped, or for one pass; returns the exit code."""
    check_accounts(settings)
    breakers = Breakers(settings)
    allowed = settings.imap_poll_seconds + settings.imap_timeout_seconds + SLACK_SECONDS
    watchers = {f"watch:{account.name}": allowed for account in settings.all_accounts}
    names = Names(
        dependencies={"redis": True, "imap": False},
        loops=common_loops() | {LEASES: LEASES_SILENCE} | ({} if once else watchers),
        accounts=tuple(account.name for account in settings.all_accounts),
        breakers=("redis", "imap", "oauth2"),
        stream="{email_ingestion}:stream",
        dlq="{email_ingestion}:dlq",
        folders=common_folders(settings),
    )
    return run_process(
        settings, identify("producer", folder=settings.pid_dir), names, breakers, partial(ProducerBody, once=once)
    )


def check_accounts(settings: Settings) -> None:
    """Refuse to start where only an operator can help; later on the same only holds up the account."""
    for account in settings.all_accounts:
        _check(account)


def _check(account: Account) -> None:
    if not 1 <= len(account.by_mailbox) <= MAILBOXES_MOST:
        raise ConfigurationError(f"IMAP_MAILBOX names one to {MAILBOXES_MOST} mailboxes: each has its own connection")
    if not account.imap_user:
        raise ConfigurationError("set IMAP_USER in .env to the address of the mailbox; see config/.env.example")
    if account.imap_auth == "password":
        if not account.imap_password:
            raise ConfigurationError("IMAP_AUTH=password needs IMAP_PASSWORD or IMAP_PASSWORD_FILE")
    else:
        token = TokenSource(account).describe()
        if token.state == "missing":
            raise ConfigurationError(token.problem or "there is no token")


class ProducerBody:
    """All watchers, each in a thread."""

    def __init__(self, parts: Parts, *, once: bool) -> None:
        self._parts = parts
        self._once = once
        self._fatal: EmailIngestionError | None = None
        settings = parts.settings
        imap = parts.breakers.make("imap", IMAPConnectionError)
        oauth = parts.breakers.make("oauth2", TokenRefreshError)
        ledger = LedgerOnDemand(settings.database_url)
        blobs = open_blobs(settings.blob_url)

        # A connection of its own: the leases of hundreds of accounts must not wait for one of theirs.
        own = Link(
            connect(settings.redis_address, f"{parts.identity.instance}-leases"), parts.link.keys, parts.link.breaker
        )
        leases = Leases(own, seat_of(settings, parts.identity), secrets.token_hex(4))
        names = [account.name for account in settings.all_accounts]
        self._bars = Bars()
        observe = compose(parts.ops.observe, self._bars) if once else parts.ops.observe
        self._tenure = Tenure(leases, names, parts.ops.observe)

        by_name = {account.name: account for account in settings.all_accounts}

        def keeper(account: Account) -> Keeper:
            patience = Patience(random.Random())  # noqa: S311 - jitter
            several = len(by_name[account.name].by_mailbox) > 1

            def watcher() -> Watcher:
                source = Source(
                    account,
                    settings,
                    parts.link,
                    Intake(parts.link, leases.holder),
                    ledger,
                    blobs,
                    observe,
                    leases.holder,
                    parts.control,
                    several=several,
                )
                return watcher_of(source, patience, imap=imap, oauth=oauth, give_up=self._give_up)

            missed = ROUNDS_MISSED * settings.imap_poll_seconds
            return Keeper(account.name, watcher, missed, self._tenure, parts.ops.observe)

        self._keepers = [keeper(each) for account in settings.all_accounts for each in account.by_mailbox]
        self._alerts = AlertWatch(settings, parts.ops.metrics, parts.ops.observe)
        parts.front.pings["imap"] = self._reach_imap
        parts.front.pings["oauth2"] = self._get_tokens

    def run(self) -> int:
        """See `Body`."""
        self._tenure.start()
        try:
            return self._pass() if self._once else self._watch()
        finally:
            self._alerts.close()
            self._tenure.close()

    def _pass(self) -> int:
        """One pass over every mailbox."""
        for account in self._parts.settings.all_accounts:
            if not self._tenure.holds(account.name, LEASE_SECONDS + 2 * BEAT_SECONDS):
                holder = self._tenure.holder(account.name)
                if holder:  # without one Redis is away, which the pass itself tells
                    raise OperationFailed(f"the account {account.name} is read by the producer {holder}: stop it first")
        with self._bars:
            results = [keeper.watcher.once() for keeper in self._keepers]
        return 0 if all(results) else 1

    def _watch(self) -> int:
        """Every account that is ours, until `stop`."""
        self._alerts.start()
        threads = [
            threading.Thread(target=keeper.run, name=f"keep-{number}", daemon=True)
            for number, keeper in enumerate(self._keepers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._fatal:
            raise self._fatal
        return 0

    def stop(self) -> None:
        """See `Body`."""
        for keeper in self._keepers:
            keeper.stop()

    def abandon(self) -> None:
        """See `Body`; a batch is in the stream or it is fetched again."""

    def _reach_imap(self) -> None:
        for account in self._parts.settings.all_accounts:
            ImapMailbox(account, self._parts.settings.imap_timeout_seconds).close()

    def _get_tokens(self) -> None:
        for account in self._parts.settings.all_accounts:
            if account.imap_auth == "oauth2":
                TokenSource(account).access()

    def _give_up(self, error: EmailIngestionError) -> None:
        """A watcher cannot even begin: with a single account there is nothing left to run for."""
        if len(self._keepers) == 1:
            self._fatal = error
            self.stop()


class LedgerOnDemand:
    """The ledger, opened when it is first asked for: mail is fetched while the database is away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None

    def __call__(self) -> Ledger:
        """The ledger; raises SinkUnavailable or ConfigurationError."""
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
    link: Link
    intake: Intake  # one for each thread
    ledger: Callable[[], Ledger]
    blobs: Blobs
    observe: Observe
    holder: str = ""  # as whom it writes, see `stream.leases`; a command writes as nobody in particular
    control: Control = field(default_factory=partial(Control, "producer"))  # what operators ask of it
    several: bool = False  # whether more than one mailbox of the account is read

    def sync(self, connection: ImapMailbox, opened: Opened, wait_for_room: Callable[[int], bool]) -> Sync:
        """What brings new mail into the stream."""
        return Sync(
            self.account.name,
            connection,
            opened,
            intake=self.intake,
            picker=self._picker(connection, opened),
            look=partial(self._accounted, opened),
            wait_for_room=wait_for_room,
            observe=self.observe,
        )

    def history(self, connection: ImapMailbox, opened: Opened, room: Callable[[int], float]) -> History:
        """What brings the mail that was there before into the stream."""
        return History(
            self.account.name,
            connection,
            opened,
            intake=self.intake,
            picker=self._picker(connection, opened),
            look=partial(self._accounted, opened),
            room=room,
            observe=self.observe,
        )

    def backfill(self, connection: ImapMailbox, opened: Opened, room: Callable[[int], None]) -> Backfill:
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

    def _picker(self, connection: ImapMailbox, opened: Opened, rules: Rules | None = None) -> Picker:
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
            self.account.name, Allowance(self.link, self.account.name), self.settings.imap_bytes_per_day, self.observe
        )

    def depth(self) -> int:
        """How many messages are in the stream."""
        return self.intake.load().depth

    def again(self, connection: ImapMailbox, opened: Opened) -> Again:
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

    def audit(self, connection: ImapMailbox, opened: Opened, has_room: Callable[[], bool] | None) -> Audit:
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

    def full(self) -> str | None:
        """Why nothing more should be fetched now, or None: Gmail is the buffer, Redis is not."""
        if self.control.paused():
            return "paused by an operator"
        load, settings = self.intake.load(), self.settings
        if load.depth >= settings.stream_max_depth:
            return f"{load.depth} messages in the stream, STREAM_MAX_DEPTH is {settings.stream_max_depth}"
        if load.volume >= settings.stream_max_bytes:
            return f"{load.volume} bytes in the stream, STREAM_MAX_BYTES is {settings.stream_max_bytes}"
        return None

    def relieved(self) -> bool:
        """Whether operators want new mail to be fetched and nothing else."""
        return self.control.serves_at_most("DEGRADED")

    def renewed(self) -> object:
        """The time the token file was written."""
        try:
            return self.account.google_token_file.stat().st_mtime_ns
        except OSError:
            return None

    def _quarantine(self, opened: Opened) -> Quarantine:
        return Quarantine(self.link, self.account.name, opened.name, opened.uidvalidity)

    def _fetch(self, connection: ImapMailbox, opened: Opened) -> Fetch:
        threshold = self.settings.blob_threshold_bytes
        return Fetch(
            self.account.name,
            connection,
            opened,
            blobs=self.blobs,
            blob_threshold=threshold,
            observe=self.observe,
        )

    def _rules(self) -> Rules:
        account = self.account
        most = self.settings.imap_message_max_bytes
        return Rules(frozenset(account.imap_exclude_labels), start_of(account), most, account.imap_start == "now")

    def _accounted(self, opened: Opened) -> Accounted:
        return Accounted(self.account.name, opened, self.ledger, Underway(Census(self.link), self.account.name))


def log_in(account: Account, timeout: float) -> ImapMailbox:
    """A connection of its own for a command; raises AuthenticationFailed, IMAPConnectionError, TokenRefreshError."""
    tokens = TokenSource(account) if account.imap_auth == "oauth2" else None
    token = tokens.access().token if tokens else None
    connection = ImapMailbox(account, timeout)
    try:
        try:
            connection.login(token)
        except TokenRejected:
            if not tokens:
                raise
            connection.close()
            connection = ImapMailbox(account, timeout)
            connection.login(tokens.access(rejected=token).token)
    except BaseException:
        connection.close()
        raise
    return connection


def watcher_of(
    source: Source,
    patience: Patience,
    *,
    imap: Breaker,
    oauth: Breaker,
    give_up: Callable[[EmailIngestionError], None],
) -> Watcher:
    """The watcher of one account."""
    account, settings = source.account, source.settings
    tokens = None
    if account.imap_auth == "oauth2":
        tokens = Tokens(account.name, TokenSource(account), oauth, source.observe)
    return Watcher(
        account,
        Pace(
            settings.imap_poll_seconds,
            settings.imap_idle_seconds,
            settings.imap_session_seconds,
            settings.reconcile_seconds,
        ),
        connector=Connector(
            account,
            settings.imap_timeout_seconds,
            tokens=tokens,
            imap_breaker=imap,
            observe=source.observe,
        ),
        imap_breaker=imap,
        work=source,
        budget=source.budget(),
        lockout=Lockout(source.link, account.name),
        patience=patience,
        give_up=give_up,
        observe=source.observe,
    )
