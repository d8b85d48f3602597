"""All checks in their order, the checks of the stores among them; an unforeseen error in a check is a finding too."""

from __future__ import annotations

import time
from collections.abc import Callable

from email_ingestion.app.account_list import AccountList, accounts_in_files, look_up_accounts
from email_ingestion.blobs import open_blobs
from email_ingestion.doctor.account_checks import check_account
from email_ingestion.doctor.alert_checks import check_alerts
from email_ingestion.doctor.findings import Finding, Findings
from email_ingestion.doctor.machine_checks import (
    check_erasure,
    check_folders,
    check_modes,
    check_ports,
    check_processes,
)
from email_ingestion.doctor.redis_checks import check_redis
from email_ingestion.doctor.service_checks import database_refusals
from email_ingestion.errors import ConfigurationError, EmailIngestionError, SinkUnavailable
from email_ingestion.fleet.managed_processes import find_processes
from email_ingestion.ledger.maintenance import describe_ledger, refers_outside
from email_ingestion.ops.redaction import describe_unforeseen
from email_ingestion.routing import Router
from email_ingestion.settings import Settings, load_settings
from email_ingestion.settings.plaintext import plaintext_connections
from email_ingestion.sinks import close_sink, load_sink, ping_sink

UNFORESEEN_REMEDY = (
    "docs/runbooks/incident_response.md, section 2.23; report it with `email-ingestion evidence collect`"
)


def run_checks(clock: Callable[[], float] = time.time) -> Findings:
    """Run all checks; yield every finding as soon as it is known."""
    try:
        settings = load_settings()
        accounts = settings.all_accounts
        stored, problem = _stored_accounts(settings)
        accounts = stored.accounts or (() if stored.stored else accounts)
    except ConfigurationError as error:
        yield Finding("settings", "failed", str(error), "mend it; config/.env.example has every name")
        return
    yield Finding("settings", "ok", f"from {settings.origin}")
    yield from _guarded("plaintext", lambda: check_plaintext(settings))
    yield from _guarded("folders", lambda: check_folders(settings))
    yield from _guarded("file modes", lambda: check_modes(settings))
    yield from _guarded("erasure", lambda: check_erasure(settings))
    yield from _guarded("ports", lambda: check_ports(settings))
    yield from _guarded("redis", lambda: check_redis(settings, clock, [each.name for each in stored.known or accounts]))
    yield from _guarded("processes", lambda: check_processes(settings))
    yield from _guarded("stores", lambda: check_stores(settings))
    yield from _guarded("alerts", lambda: check_alerts(settings))
    yield from _guarded("accounts", lambda: check_stored_accounts(stored, problem))
    for account in accounts:
        yield from _guarded(f"account {account.name}", lambda account=account: check_account(account, settings, clock))  # type: ignore[misc]


def _guarded(name: str, checks: Callable[[], Findings]) -> Findings:
    """Turn an unforeseen error into a finding: it must not hide the other checks."""
    try:
        yield from checks()
    except Exception as error:  # noqa: BLE001 - any text may quote mail or a secret, so only class and place are shown
        cause = f"an answer or a state that nobody foresaw: {describe_unforeseen(error)}"
        yield Finding(name, "failed", cause, UNFORESEEN_REMEDY)


def _stored_accounts(settings: Settings) -> tuple[AccountList, str]:
    """Return all accounts, or those of the settings and why the database could not be asked for others."""
    try:
        return look_up_accounts(settings), ""
    except (SinkUnavailable, ConfigurationError) as error:  # the settings were right before
        return AccountList(accounts_in_files(settings)), str(error)


def check_stored_accounts(found: AccountList, problem: str) -> Findings:
    """Say of the accounts of the database which are not read, and why."""
    if problem:
        yield Finding("accounts", "unknown", f"those of the database could not be looked at: {problem}", "see database")
    for name, why in found.broken.items():
        yield Finding(f"account {name}", "failed", why, f"`email-ingestion accounts change {name}`, or remove it")
    for name in found.hidden:
        cause = "it stands in the settings and in the database: what the settings say holds"
        yield Finding(f"account {name}", "degraded", cause, f"`email-ingestion accounts remove {name}`, or rename one")
    for account in found.paused:
        yield Finding(f"account {account.name}", "ok", "paused; `email-ingestion accounts resume` lets it go on")


def check_plaintext(settings: Settings) -> Findings:
    """Check that no mail and no secret travels to another machine without TLS."""
    for plain in plaintext_connections(settings):
        cause = f"{plain.setting} leads to {plain.host} without TLS: {plain.exposed} can be read on the way"
        yield Finding("plaintext", "ok" if plain.is_internal else "degraded", cause, f"set {plain.remedy}")


def check_stores(settings: Settings) -> Findings:
    """Check the database without creating it; open and ping the other sinks; check the routes."""
    yield _database(settings)
    yield _blobs(settings.blob_url, settings.database_url)
    for name in settings.sinks[1:]:  # the first is the database
        yield _sink(name, settings)
        if "relabelled" in settings.changes_told(name) and not settings.imap_track_labels:
            cause = f"{name} is to be told of labels and flags, and nobody follows them"
            yield Finding(f"changes {name}", "degraded", cause, "set IMAP_TRACK_LABELS=true; docs/changes.md")
    if settings.routes:
        yield _routes(settings)


def _database(settings: Settings) -> Finding:
    try:
        found = describe_ledger(settings.database_url)
    except EmailIngestionError as error:
        return Finding("database", "failed", str(error), "mend that, or set DATABASE_URL; then run this again")
    if refusals := database_refusals({each.stem: each.status() or {} for each in find_processes(settings)}):
        remedy = "mend that (room on its disk, a lock, a read-only server); delivery then goes on by itself"
        return Finding("database", "failed", f"{found}, and takes no mail: {refusals[0]}", remedy)
    return Finding("database", "ok", found)


def _blobs(url: str, database_url: str) -> Finding:
    try:
        store = open_blobs(url)
        store.ping()
        if store.is_empty() and refers_outside(database_url):
            cause = f"{url} is empty, and the database refers to contents there: it is not mounted, or lost"
            return Finding("blobs", "failed", cause, "mount it; if all is lost: email-ingestion blobs verify --refill")
    except EmailIngestionError as error:
        return Finding("blobs", "failed", str(error), "mend that, or set BLOB_URL; then run this again")
    return Finding("blobs", "ok", "it takes a write")


def _sink(name: str, settings: Settings) -> Finding:
    try:
        sink = load_sink(name, settings)
        try:
            ping_sink(sink)
        finally:
            close_sink(sink)
    except EmailIngestionError as error:
        return Finding(f"sink {name}", "failed", str(error), f"mend that, or take {name} out of SINKS")
    return Finding(f"sink {name}", "ok", "it answers")


def _routes(settings: Settings) -> Finding:
    try:
        Router(settings.routes, settings.sinks[1:])
    except EmailIngestionError as error:
        return Finding("routes", "failed", str(error), "mend [[routes]] in config/settings.toml")
    return Finding("routes", "ok", f"{len(settings.routes)} routes")
