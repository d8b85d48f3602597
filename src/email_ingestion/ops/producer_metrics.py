"""The metrics only a producer has, and the events that move them: IMAP, OAuth2, production, reconciliation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

from email_ingestion import events
from email_ingestion.errors import AuthenticationFailed, IMAPLockedOut, IMAPThrottledError, OAuth2AuthenticationError
from email_ingestion.events import Event
from email_ingestion.ops.collectors import FreshnessGauge
from email_ingestion.ops.metric_factory import MetricFactory, label_value
from email_ingestion.ops.status_records import CONSENT_WARNING, Names, RedisView, TokenState

SKIP_REASONS = ("excluded_label", "before_start", "known", "vanished", "too_large")
CONNECTION_RESULTS = ("connected", "refused", "throttled", "failed")
INCIDENTS = ("session_ended", "transient", "throttled", "locked_out", "operator", "quarantined")
CANARIES = {True: "delivered", False: "failed", None: "missing"}
REFRESH_RESULTS = ("success", "error", "refused")
TOKEN_STATES: tuple[TokenState, ...] = get_args(TokenState)


class ProducerMetrics:
    """Declared once per process; `reactions` maps a kind of event to its effect."""

    def __init__(self, factory: MetricFactory, names: Names, redis: RedisView, clock: Callable[[], float]) -> None:
        self._accounts = set(names.accounts)
        self._freshness = FreshnessGauge(redis)
        factory.registry.register(self._freshness)
        self._clock = clock
        self._missing: dict[tuple[str, str], int] = {}
        self._declare_mail(factory)
        self._declare_imap(factory)
        self._declare_oauth2(factory)
        self._declare_reconcile(factory)
        self._declare_canary(factory)

    def reactions(self) -> dict[type[Event], Callable[[Any], None]]:
        """Return the effect of every kind of event."""
        return {
            events.Published: lambda event: self._produced.inc(event.count),
            events.Skipped: lambda event: self._skipped.labels(event.reason).inc(event.count),
            events.Probed: self._probed,
            events.Connected: self._connected,
            events.ConnectionFailed: self._failed,
            events.SessionEnded: lambda _event: self._incidents.labels("session_ended").inc(),
            events.LockedOut: lambda event: self._locked_out.labels(self._account(event)).set(event.until),
            events.Slowed: lambda event: self._slowed.labels(self._account(event)).set(event.seconds),
            events.Quarantined: self._quarantined,
            events.QuarantineCounted: self._quarantine_counted,
            events.WatcherRebuilt: lambda event: self._rebuilt.labels(self._account(event)).inc(),
            events.Downloaded: lambda event: self._fetched.inc(event.size),
            events.HistoryWalked: lambda event: self._history.labels(self._account(event)).set(event.remaining),
            events.LabelsChanged: lambda event: self._labels.labels(self._account(event)).inc(event.count),
            events.BytesSpent: lambda event: self._budget.labels(self._account(event)).set(
                max(0, event.budget - event.today)
            ),
            events.Synced: self._synced,
            events.AccountUpdated: self._account_updated,
            events.LeaseChanged: self._lease_changed,
            events.NewMailWaiting: lambda event: self._freshness.waiting(self._account(event), event.since),
            events.MailboxChanged: lambda _event: self._changes.inc(),
            events.MailboxContradicted: lambda _event: self._contradictions.inc(),
            events.AlteredOnServer: lambda _event: self._altered.inc(),
            events.TokenRefreshed: self._refreshed,
            events.TokenRefreshFailed: self._refresh_failed,
            events.ConsentEnding: lambda event: self._set_token_state(event, "expiring"),
            events.NeedsOperator: self._needs_operator,
            events.Reconciled: self._reconciled,
            events.ContentsVerified: self._verified,
            events.ErasuresLookedAt: lambda event: self._set_unfinished(event.unfinished),
            events.CanarySeen: self._canary_seen,
            events.Notified: lambda event: self._notices.labels("sent" if event.sent else "failed").inc(),
        }

    def _declare_mail(self, factory: MetricFactory) -> None:
        self._produced = factory.counter("emails_produced_total", "Messages appended to the stream.")
        self._skipped = factory.counter(
            "emails_skipped_total", "Messages left out on purpose, by reason.", reason=SKIP_REASONS
        )

    def _declare_imap(self, factory: MetricFactory) -> None:
        self._success = factory.gauge(
            "imap_last_success_timestamp_seconds", "Unix time of the last successful synchronization.", "account"
        )
        self._up = factory.gauge(
            "imap_up",
            "Whether the mail server of the account served it at the last look (1) or failed (0).",
            "account",
        )
        self._backlog = factory.gauge(
            "imap_backlog_messages", "Messages on the server above the cursor at the last synchronization.", "account"
        )
        self._lease = factory.gauge(
            "account_lease_held", "Whether this process reads the account (1) or stands by (0).", "account"
        )
        self._connections = factory.counter(
            "imap_connections_total", "Attempts to connect and log in, by result.", result=CONNECTION_RESULTS
        )
        self._history = factory.gauge(
            "imap_history_remaining_messages", "Older messages still to be read, by estimate.", "account"
        )
        self._labels = factory.counter(
            "imap_label_changes_total", "Delivered messages whose labels changed later.", account=self._accounts
        )
        self._fetched = factory.counter("imap_fetched_bytes_total", "Bytes of messages downloaded over IMAP.")
        self._budget = factory.gauge(
            "imap_bytes_budget_remaining", "Bytes the account may still download within its daily budget.", "account"
        )
        self._incidents = factory.counter(
            "imap_incidents_total", "What mail servers did to us, by how grave it is.", kind=INCIDENTS
        )
        self._locked_out = factory.gauge(
            "imap_locked_out_until_timestamp_seconds",
            "Unix time until which the server refuses; 0 if not.",
            "account",
        )
        self._throttled = factory.gauge(
            "imap_throttled_timestamp_seconds",
            "Unix time at which the server last refused a connection or login because it throttles.",
            "account",
        )
        self._slowed = factory.gauge(
            "imap_command_delay_seconds", "Seconds each command waits because the server throttles.", "account"
        )
        self._quarantine = factory.gauge(
            "imap_quarantined_messages",
            "Messages the server lists but does not send, without those that an operator has accepted as lost.",
            "account",
        )
        self._accepted = factory.gauge(
            "imap_quarantine_accepted_messages",
            "Messages the server does not send that an operator has accepted as lost.",
            "account",
        )
        self._quarantines: dict[str, dict[str, events.QuarantineCounted]] = {}  # by account and mailbox
        self._rebuilt = factory.counter(
            "imap_watcher_rebuilds_total", "Watchers that got nothing done and were replaced.", account=self._accounts
        )
        self._changes = factory.counter("imap_uidvalidity_changes_total", "Times a mailbox got a new UIDVALIDITY.")

        self._contradictions = factory.counter(
            "imap_contradictions_total", "Times a mailbox was not as it was read, with the same UIDVALIDITY."
        )
        self._altered = factory.counter(
            "imap_altered_messages_total", "Delivered messages found with other bytes on the server."
        )

    def _declare_oauth2(self, factory: MetricFactory) -> None:
        self._expiry = factory.gauge(
            "oauth2_token_expiry_timestamp_seconds", "Unix time at which the access token expires.", "account"
        )
        self._refreshes = factory.counter(
            "oauth2_refreshes_total", "Attempts to refresh the access token, by result.", result=REFRESH_RESULTS
        )
        self._reauth = factory.gauge(
            "oauth2_reauth_required", "Whether an operator must authorize the account again (1) or not (0).", "account"
        )
        self._consent = factory.gauge(
            "oauth2_consent_expiry_timestamp_seconds",
            "Unix time at which the consent ends, where an end is known.",
            "account",
        )
        self._token_state = factory.gauge(
            "oauth2_token_state", "Which of the states the account's token is in (1).", "account", "state"
        )
        for account in self._accounts:
            self._reauth.labels(account).set(0)

    def _declare_reconcile(self, factory: MetricFactory) -> None:
        self._notices = factory.counter(
            "notices_total", "Notices of the built-in monitor, by result.", result=("sent", "failed")
        )
        self._set_missing = factory.optional_gauge(
            "reconcile_missing", "Messages on the server that the ledger lacks, at the last comparison."
        )
        self._set_compared = factory.optional_gauge(
            "reconcile_last_success_timestamp_seconds", "Unix time of the last completed comparison with the server."
        )

        self._set_lost = factory.optional_gauge(
            "contents_lost", "Stored contents that are missing or damaged and could not be fetched again."
        )
        self._set_unfinished = factory.optional_gauge(
            "erasures_unfinished", "Erasures and restores that began and have not erased all that they were to."
        )
        self._set_verified = factory.optional_gauge(
            "contents_verified_timestamp_seconds", "Unix time at which all stored bytes had been read and compared."
        )

    def _verified(self, event: events.ContentsVerified) -> None:
        self._set_lost(event.lost)
        self._set_verified(self._clock())

    def _declare_canary(self, factory: MetricFactory) -> None:
        self._canaries = factory.counter(
            "canary_messages_total", "Trial messages, by result.", result=CANARIES.values()
        )
        self._set_canary = factory.optional_gauge(
            "canary_last_success_timestamp_seconds",
            "Unix time of the last trial message that went the way of mail; the first one's attempt before.",
        )
        self._set_canary_took = factory.optional_gauge(
            "canary_latency_seconds", "Time the last of them took from the stream to its end."
        )
        self._canary_flew = False

    def _canary_seen(self, event: events.CanarySeen) -> None:
        self._canaries.labels(CANARIES[event.delivered]).inc()
        if event.delivered or not self._canary_flew:
            self._canary_flew = True
            self._set_canary(self._clock())
        if event.took is not None:
            self._set_canary_took(event.took)

    def _account(self, event: Any) -> str:
        return label_value(event.account, self._accounts)

    def _probed(self, event: events.Probed) -> None:
        if event.account:
            self._up.labels(self._account(event)).set(event.ok)

    def _connected(self, event: events.Connected) -> None:
        self._connections.labels("connected").inc()
        self._reauth.labels(self._account(event)).set(0)

    def _failed(self, event: events.ConnectionFailed) -> None:
        result = _result(event.error)
        self._connections.labels(result).inc()
        if result == "throttled":
            self._throttled.labels(self._account(event)).set(self._clock())
        if result != "refused":  # then an operator is needed, which is counted there
            kind = "locked_out" if isinstance(event.error, IMAPLockedOut) else result
            self._incidents.labels("transient" if kind == "failed" else kind).inc()

    def _synced(self, event: events.Synced) -> None:
        self._success.labels(self._account(event)).set(self._clock())
        self._backlog.labels(self._account(event)).set(event.backlog)
        if event.listed_ago is not None:
            self._freshness.listed(self._account(event), self._clock() - event.listed_ago)

    def _quarantine_counted(self, event: events.QuarantineCounted) -> None:
        account = self._account(event)
        counted = self._quarantines.setdefault(account, {})
        counted[event.mailbox] = event
        self._quarantine.labels(account).set(sum(len(each.messages) for each in counted.values()))
        self._accepted.labels(account).set(sum(each.accepted for each in counted.values()))

    def _quarantined(self, event: events.Quarantined) -> None:
        """Count it now: a conversation that ends over it does not come to the end of a synchronization."""
        self._incidents.labels("quarantined").inc()
        known = self._quarantines.get(self._account(event), {}).get(event.mailbox)
        messages = dict(known.messages if known else ()) | {event.uid: ""}
        accepted = known.accepted if known else 0
        self._quarantine_counted(
            events.QuarantineCounted(event.account, event.mailbox, tuple(messages.items()), accepted)
        )

    def _lease_changed(self, event: events.LeaseChanged) -> None:
        """Forget the values of an account that another process reads now: they would look like a silent watcher."""
        account = self._account(event)
        self._lease.labels(account).set(event.holder is None)
        if event.holder:
            self._freshness.forget(account)
            self._quarantines.pop(account, None)
            for gauge in (self._success, self._up, self._backlog, self._quarantine, self._accepted):
                with suppress(KeyError):
                    gauge.remove(account)

    def _account_updated(self, event: events.AccountUpdated) -> None:
        """Extend the set of labels by an account that came; of one that is read no more, keep only what is counted."""
        if event.change in {"added", "resumed"}:
            self._accounts.add(event.account)
            self._reauth.labels(event.account).set(0)
            for counter in (self._labels, self._rebuilt):
                counter.labels(event.account)
        elif event.change in {"paused", "removed"}:
            self._accounts.discard(event.account)
            self._forget(event.account)

    def _forget(self, account: str) -> None:
        self._freshness.forget(account)
        self._quarantines.pop(account, None)
        for key in [key for key in self._missing if key[0] == account]:
            del self._missing[key]
        one_label = (
            *(self._success, self._up, self._backlog, self._lease, self._history, self._budget, self._locked_out),
            self._throttled,
            *(self._slowed, self._quarantine, self._accepted, self._expiry, self._reauth, self._consent),
        )
        for gauge in one_label:
            with suppress(KeyError):
                gauge.remove(account)
        for state in TOKEN_STATES:
            with suppress(KeyError):
                self._token_state.remove(account, state)

    def _refreshed(self, event: events.TokenRefreshed) -> None:
        self._refreshes.labels("success").inc()
        self._expiry.labels(self._account(event)).set(event.expires_at)
        if event.consent_ends_at is not None:
            self._consent.labels(self._account(event)).set(event.consent_ends_at)
        ending = event.consent_ends_at is not None and event.consent_ends_at - self._clock() < CONSENT_WARNING
        self._set_token_state(event, "expiring" if ending else "valid")

    def _refresh_failed(self, event: events.TokenRefreshFailed) -> None:
        of_client = isinstance(event.error, OAuth2AuthenticationError) and event.error.is_of_client
        self._refreshes.labels("refused" if event.permanent or of_client else "error").inc()
        if event.permanent or of_client:
            self._refuse(event)
        else:
            self._set_token_state(event, "refresh failing")

    def _refuse(self, event: events.TokenRefreshFailed | events.NeedsOperator) -> None:
        """Tell a consent that is gone from a client of ours that is refused, which no new consent changes."""
        of_client = isinstance(event.error, OAuth2AuthenticationError) and event.error.is_of_client
        self._reauth.labels(self._account(event)).set(not of_client)
        self._set_token_state(event, "client refused" if of_client else "re-authorize")

    def _set_token_state(self, event: Any, state: TokenState) -> None:
        for each in TOKEN_STATES:
            self._token_state.labels(self._account(event), each).set(each == state)

    def _needs_operator(self, event: events.NeedsOperator) -> None:
        self._incidents.labels("operator").inc()
        with suppress(KeyError):  # nobody connects meanwhile
            self._up.remove(self._account(event))
        if isinstance(event.error, OAuth2AuthenticationError):
            self._refuse(event)

    def _reconciled(self, event: events.Reconciled) -> None:
        self._missing[event.account, event.mailbox] = event.missing
        self._set_missing(sum(self._missing.values()))
        self._set_compared(self._clock())


def _result(error: Exception) -> str:
    if isinstance(error, AuthenticationFailed):
        return "refused"
    return "throttled" if isinstance(error, IMAPThrottledError) else "failed"
