"""Builds and runs the producer: one watcher per mailbox, all of them on one Redis."""

from __future__ import annotations

import random
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from email_ingestion.app.account import AccountServices, LedgerOnDemand, check_accounts, credentials_version, reread
from email_ingestion.app.account_list import AccountList, accounts_in_files, look_up_accounts
from email_ingestion.app.account_runs import AccountRuns, ServerBreakers, breaker_names
from email_ingestion.app.account_watch import AccountWatch
from email_ingestion.app.certificate_watch import CertificateWatch
from email_ingestion.app.nightly_retention import NightlyRetention
from email_ingestion.app.nightly_scrub import NightlyScrub
from email_ingestion.app.runner import ProcessContext, ProcessRunner, common_folders, common_loops, identify
from email_ingestion.atomic_files import write_private
from email_ingestion.background import PeriodicThread
from email_ingestion.blobs import open_blobs
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    EmailIngestionError,
    OperationFailed,
    SinkUnavailable,
    TokenRefreshError,
)
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.oauth2 import TokenSource
from email_ingestion.oauth2.token_refresher import TokenRefresher
from email_ingestion.ops.alert_monitor import AlertThread
from email_ingestion.ops.observers import combine
from email_ingestion.ops.status_records import Identity, Names
from email_ingestion.producer import AccountBackoff, Connector, Intervals, Watcher, WatcherSupervisor
from email_ingestion.producer.canary import Canary
from email_ingestion.producer.lease_renewer import LOOP as LEASES
from email_ingestion.producer.lease_renewer import RENEW_SECONDS, LeaseRenewer
from email_ingestion.producer.ledger_watch import LedgerWatch
from email_ingestion.routing import Router
from email_ingestion.settings import Account, Settings
from email_ingestion.stream import Appender, Leases, Lockout, RedisLink, check_reachable, connect
from email_ingestion.stream.leases import LEASE_SECONDS

if TYPE_CHECKING:
    from email_ingestion.ops.progress import HistoryProgress

# Beyond the poll interval a watcher may sit in one command, in a token refresh and in an append.
SLACK_SECONDS = 90.0
LEASES_SILENCE = 30.0
ROUNDS_MISSED = 3  # poll intervals without progress, after which a watcher is replaced
LEAST_MISSED = 10.0  # seconds, with a short interval: Redis takes a few to fail, for which no mail server can help


def run_producer(settings: Settings, *, once: bool, wait_for_consent: bool = False) -> int:
    """Run the producer until it is stopped, or for one pass; return the exit code.

    With `wait_for_consent` an account without a token is one that an operator must authorize, not a reason to end: a
    container that ends is started again and again.
    """
    accounts = accounts_at_start(settings, once=once)
    check_accounts(accounts_in_files(settings) or accounts, tokens=not wait_for_consent)
    Router(settings.routes, settings.sinks[1:])  # raises ConfigurationError for a wrong route
    watchers = {watch_loop(account): allowed_silence(settings) for account in accounts}
    names = Names(
        dependencies={"redis": True, "imap": False},
        loops=common_loops() | {LEASES: LEASES_SILENCE} | ({} if once else watchers),
        accounts=tuple(account.name for account in accounts),
        breakers=("redis", *dict.fromkeys(("imap", *breaker_names(accounts).values())), "oauth2"),
        stream="{email_ingestion}:stream",
        dlq="{email_ingestion}:dlq",
        folders=common_folders(settings),
    )
    identity = identify("producer", folder=settings.pid_dir)
    build = partial(ProducerService, accounts=accounts, once=once)
    return ProcessRunner(settings, identity, names, build).run()


def accounts_at_start(settings: Settings, *, once: bool) -> tuple[Account, ...]:
    """Return the accounts to begin with; those of the database are taken up later, except for a single pass.

    Raises ConfigurationError where there is no account at all. Where the database cannot be asked, there may be.
    """
    in_files = accounts_in_files(settings)
    if in_files and not once:
        return in_files
    try:
        found = look_up_accounts(settings)
    except SinkUnavailable:
        return in_files
    if not found.stored:
        return settings.all_accounts
    return found.accounts if once else ()


def watch_loop(account: Account) -> str:
    """Return the name of the loop of an account's watchers."""
    return f"watch:{account.name}"


def allowed_silence(settings: Settings) -> float:
    """Return for how many seconds a watcher may be silent."""
    return settings.imap_poll_seconds + settings.imap_timeout_seconds + SLACK_SECONDS


class ProducerService:
    """All watchers of the producer, every one in a thread of its own."""

    def __init__(self, context: ProcessContext, *, accounts: Sequence[Account], once: bool) -> None:
        self._context = context
        self._once = once
        self._fatal: EmailIngestionError | None = None
        self._in_files = frozenset(account.name for account in accounts_in_files(context.settings))
        self._imap_breakers = ServerBreakers(context.breakers)
        self._oauth2_breaker = context.breakers.add("oauth2", TokenRefreshError, open_from_start=True)
        self._ledger = LedgerOnDemand(context.settings.database_url)
        self._blobs = open_blobs(context.settings.blob_url)
        self._progress = _history_progress() if once else None
        observe = context.ops.observe
        self._observe = combine(observe, self._progress) if self._progress else observe
        link = self._second_link()
        self._leases = Leases(link, instance_id(context.settings, context.identity), secrets.token_hex(4))
        self._lease_renewer = LeaseRenewer(self._leases, (), context.ops.observe)
        self._runs = AccountRuns(self._make_supervisors, self._lease_renewer)
        self._read(accounts)
        self._monitors = [*self._optional_threads(link)]
        context.admin_actions.pings["oauth2"] = self._ping_oauth2

    def _read(self, accounts: Sequence[Account]) -> None:
        """Read these accounts from now on, and no others."""
        status, before = self._context.ops.status, self._runs.accounts
        for account in accounts:
            if account.name not in {each.name for each in before}:
                status.loops.watch(watch_loop(account), allowed_silence(self._context.settings))
        for name in self._imap_breakers.serve(accounts):
            self._context.admin_actions.pings[name] = partial(self._ping_imap, name)
        self._runs.apply(accounts)
        for account in before:
            if account.name not in {each.name for each in accounts}:
                status.loops.forget(watch_loop(account))
        nothing = "there is none left: `email-ingestion accounts add`"
        status.set_condition("no account", None if accounts or not before else nothing)

    def _make_supervisors(self, account: Account) -> list[WatcherSupervisor]:
        return [self._supervisor(each, account.other_mailboxes(each)) for each in account.by_mailbox]

    def _second_link(self) -> RedisLink:
        """Connect once more: the leases of hundreds of accounts must not wait for the traffic of one."""
        settings, link = self._context.settings, self._context.link
        client = connect(settings.redis_address, f"{self._context.identity.instance}-leases")
        second = RedisLink(client, link.keys, link.breaker, settings.redis_partitions)
        second.on_set_aside = link.on_set_aside
        return second

    def _supervisor(self, account: Account, other_mailboxes: tuple[str, ...]) -> WatcherSupervisor:
        context = self._context
        backoff = AccountBackoff(random.Random(), context.settings.cb_recovery_timeout)  # noqa: S311 - jitter
        current: Watcher | None = None
        give_up = self._give_up if account.name in self._in_files else lambda _: None

        def watcher() -> Watcher:
            nonlocal account, current
            if current and current.is_outdated:
                account = reread(account)
            services = AccountServices(
                account,
                context.settings,
                context.link,
                Appender(context.link, self._leases.owner),
                self._ledger,
                self._blobs,
                self._observe,
                self._leases.owner,
                context.overrides,
                other_mailboxes=other_mailboxes,
            )
            imap = self._imap_breakers.of(account)
            current = watcher_of(services, backoff, imap=imap, oauth2=self._oauth2_breaker, give_up=give_up)
            return current

        missed = max(LEAST_MISSED, ROUNDS_MISSED * context.settings.imap_poll_seconds)
        return WatcherSupervisor(account.name, watcher, missed, self._lease_renewer, context.ops.observe)

    def _optional_threads(
        self, link: RedisLink
    ) -> Iterator[PeriodicThread | NightlyScrub | NightlyRetention | LedgerWatch | AccountWatch]:
        """Yield the built-in alerts and the canary, where they are configured, and what looks at stores and servers."""
        settings, ops = self._context.settings, self._context.ops
        yield AlertThread(settings, ops.metrics, ops.observe, self._context.admin_actions.incidents).make()
        if settings.canary_seconds:
            yield Canary(settings.canary_seconds, link, self._canary_waits, ops.observe)
        yield CertificateWatch(settings, lambda: self._runs.accounts, ops.observe)
        yield LedgerWatch(
            link,
            self._ledger,
            self._compare_all,
            ops.status.set_condition,
            ops.observe,
            is_comparing=lambda: any(each.watcher.owes_comparison for each in self._runs.supervisors),
        )
        yield AccountWatch(
            settings,
            self._ledger,
            AccountList(self._runs.accounts),
            apply=lambda found: self._read(found.accounts),
            show=ops.status.set_condition,
            observe=ops.observe,
        )
        yield NightlyScrub(settings, link, self._ledger, self._blobs, ops.observe)
        yield NightlyRetention(settings, link, self._ledger, ops.observe)

    def _canary_waits(self) -> bool:
        overrides = self._context.overrides
        return overrides.active_pause() is not None or overrides.is_off("canary")

    def run(self) -> int:
        """Read every account until `stop` is called, or once; return the exit code."""
        self._lease_renewer.start()
        try:
            return self._run_once() if self._once else self._watch()
        finally:
            for monitor in self._monitors:
                monitor.close()
            self._lease_renewer.close()

    def _run_once(self) -> int:
        # One pass does not wait for Redis: it fails, and says why.
        check_reachable(self._context.settings.redis_address)
        for account in self._runs.accounts:
            if not self._lease_renewer.owns(account.name, LEASE_SECONDS + 2 * RENEW_SECONDS):
                owner = self._lease_renewer.owner(account.name)
                if owner:  # without one Redis is away, and the pass itself says so
                    raise OperationFailed(f"the account {account.name} is read by the producer {owner}: stop it first")
        with self._progress or nullcontext():
            results = [supervisor.watcher.once() for supervisor in self._runs.supervisors]
        return 0 if all(results) else 1

    def _watch(self) -> int:
        for monitor in self._monitors:
            monitor.start()
        self._runs.start()
        self._runs.wait()
        if self._fatal:
            raise self._fatal
        return 0

    def _compare_all(self) -> None:
        for supervisor in self._runs.supervisors:
            supervisor.watcher.compare_soon()

    def stop(self) -> None:
        """End all watchers."""
        self._runs.stop()

    def abandon(self) -> None:
        """Do nothing: a batch is in the stream, or it is fetched again."""

    def _ping_imap(self, breaker: str) -> None:
        for account in self._imap_breakers.accounts_behind(breaker):
            ImapMailbox(account, self._context.settings.imap_timeout_seconds).close()

    def _ping_oauth2(self) -> None:
        for account in self._runs.accounts:
            if account.imap_auth == "oauth2":
                TokenSource(account).get_token()

    def _give_up(self, error: EmailIngestionError) -> None:
        """End the process if the only watcher cannot even begin."""
        if len(self._runs.supervisors) == 1:
            self._fatal = error
            self.stop()


def _history_progress() -> HistoryProgress | None:
    """Return progress bars for a pass on a terminal."""
    if not sys.stderr.isatty():
        return None
    from email_ingestion.ops.progress import HistoryProgress  # noqa: PLC0415 - rich: 4 MB that a daemon never shows

    return HistoryProgress()


def instance_id(settings: Settings, identity: Identity) -> str:
    """Return the id under which this process owns leases; it is the same after a restart, even of a killed process.

    It is kept beside the PID file, and not made of host names alone: two containers may have the same host name. The
    caller holds the lock of the PID file, so no other process uses the id.
    """
    path = settings.pid_dir / f"{identity.stem}.seat"
    try:
        name = path.read_text().strip()
    except OSError:
        name = ""
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        name = secrets.token_hex(8)
        write_private(path, f"{name}\n")
    return f"{identity.instance}/{name}"


def watcher_of(
    services: AccountServices,
    backoff: AccountBackoff,
    *,
    imap: Breaker,
    oauth2: Breaker,
    give_up: Callable[[EmailIngestionError], None],
) -> Watcher:
    """Make the watcher of one mailbox."""
    account, settings = services.account, services.settings
    tokens = None
    if account.imap_auth == "oauth2":
        tokens = TokenRefresher(account.name, TokenSource(account), oauth2, services.observe)
    return Watcher(
        account,
        Intervals(
            settings.imap_poll_seconds,
            settings.imap_idle_seconds,
            settings.imap_session_seconds,
            settings.reconcile_seconds,
            settings.cb_recovery_timeout,
        ),
        connector=Connector(
            account,
            settings.imap_timeout_seconds,
            tokens=tokens,
            imap_breaker=imap,
            on_login=backoff.count_login,
            credentials_version=partial(credentials_version, account),
            follow_deletions=settings.imap_track_labels,
            observe=services.observe,
        ),
        imap_breaker=imap,
        make_tasks=services.tasks,
        capacity=services.capacity(),
        budget=services.budget(),
        lockout=Lockout(services.link, account.name),
        backoff=backoff,
        give_up=give_up,
        observe=services.observe,
    )
