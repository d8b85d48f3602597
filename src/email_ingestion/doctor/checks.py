"""All checks in their order; an unforeseen error in a check is a finding too."""

from __future__ import annotations

import time
from collections.abc import Callable

from email_ingestion.doctor.account_checks import check_account
from email_ingestion.doctor.findings import Finding, Findings
from email_ingestion.doctor.machine_checks import check_folders, check_ports
from email_ingestion.doctor.redis_checks import check_redis
from email_ingestion.doctor.storage_checks import check_stores
from email_ingestion.errors import ConfigurationError
from email_ingestion.settings import load_settings


def run_checks(clock: Callable[[], float] = time.time) -> Findings:
    """Run all checks; yield every finding as soon as it is known."""
    try:
        settings = load_settings()
        accounts = settings.all_accounts
    except ConfigurationError as error:
        yield Finding("settings", "failed", str(error), "mend it; config/.env.example has every name")
        return
    yield Finding("settings", "ok", f"from {settings.origin}")
    yield from _guarded("folders", lambda: check_folders(settings))
    yield from _guarded("ports", lambda: check_ports(settings))
    yield from _guarded("redis", lambda: check_redis(settings, clock))
    yield from _guarded("stores", lambda: check_stores(settings))
    for account in accounts:
        yield from _guarded(f"account {account.name}", lambda account=account: check_account(account, settings, clock))  # type: ignore[misc]


def _guarded(name: str, checks: Callable[[], Findings]) -> Findings:
    """Turn an unforeseen error into a finding: it must not hide the other checks."""
    try:
        yield from checks()
    except Exception as error:  # noqa: BLE001 - any text may quote mail or a secret, so only the class is told
        yield Finding(name, "failed", f"this check itself broke off: {type(error).__name__}", "please report it")
