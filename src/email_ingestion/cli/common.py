"""Shared by the commands: parsing of values, choice of accounts, the connection to Redis, and the audit log."""

from __future__ import annotations

import getpass
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from email_ingestion.cli.exit_codes import FAILED, OK
from email_ingestion.cli.output import printable, say
from email_ingestion.errors import ConfigurationError, OperationFailed, SinkUnavailable
from email_ingestion.ops.audit_log import audited_action
from email_ingestion.ops.mail_reads import ReadAction, record_read
from email_ingestion.settings import Account, Settings, load_settings

if TYPE_CHECKING:
    from email_ingestion.incidents.incident_log import Incident
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.stream import RedisLink

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
POLL_SECONDS = 0.2


def parse_duration(text: str, option: str) -> timedelta:
    """Parse `text` like 90s, 30m, 12h, 7d, 2w; raise BadParameter naming the option."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if match is None:
        raise typer.BadParameter(f"{option} is a number and a unit: 90s, 30m, 12h, 7d, 2w")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def parse_instant(text: str | None, option: str) -> datetime | None:
    """Parse a date, a date with a time, or how long ago; without an offset it is UTC. Raises BadParameter."""
    if text is None:
        return None
    if text[-1:] in UNITS and text[:1].isdigit():
        try:
            return datetime.now(UTC) - parse_duration(text, option)
        except OverflowError:
            raise typer.BadParameter(f"{option} {text} is before all dates") from None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{option} takes a date like 2026-01-31 or 2026-01-31T08:00, or a span like 7d, not {printable(text)!r}"
        ) from None


def all_accounts(settings: Settings) -> tuple[Account, ...]:
    """Return the accounts of the settings and of the database, the paused ones too.

    Where the database cannot be asked, it is said, and those of the settings are returned.
    """
    from email_ingestion.app.account_list import look_up_accounts  # noqa: PLC0415 - help comes without SQLAlchemy

    try:
        return look_up_accounts(settings).known or settings.all_accounts
    except SinkUnavailable as error:
        say(f"only the accounts of the settings are known here: {error}")
        return settings.all_accounts


def pick_account(settings: Settings, name: str) -> Account:
    """Return the account called `name`, or the only one. Raises BadParameter."""
    accounts = all_accounts(settings)
    if not name and len(accounts) == 1:
        return accounts[0]
    for account in accounts:
        if account.name == name:
            return account
    names = ", ".join(account.name for account in accounts)
    if name:
        raise typer.BadParameter(f"there is no account {printable(name)!r}; configured: {names}")
    raise typer.BadParameter(f"name one of the accounts with --account: {names}")


def pick_accounts(settings: Settings, name: str) -> tuple[Account, ...]:
    """Return the account called `name`, or all accounts if `name` is empty. Raises BadParameter."""
    return (pick_account(settings, name),) if name else all_accounts(settings)


def refuse_unknown_account(settings: Settings, name: str, was_known: Callable[[], object]) -> None:
    """Raise BadParameter for an account that is not configured, unless `was_known` finds something of it."""
    names = [each.name for each in all_accounts(settings)]
    if name not in names and not was_known():
        raise typer.BadParameter(f"there is no account {printable(name)!r}; configured: {', '.join(names)}")


@contextmanager
def open_delivered(settings: Settings, account: str | None) -> Iterator[Ledger]:
    """Open the ledger for a look at the delivered mail of an account, or of all; where there is none, none is made.

    Raises BadParameter for an account that is neither configured nor has mail, and the errors of the ledger.
    """
    from email_ingestion.ledger.store import open_existing_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    try:
        ledger = open_existing_ledger(settings.database_url)
    except OperationFailed:
        if account is not None:
            refuse_unknown_account(settings, account, lambda: False)
        raise
    with closing(ledger):
        if account is not None:
            refuse_unknown_account(settings, account, lambda: ledger.count(account))
        yield ledger


def open_redis(name: str) -> tuple[Settings, RedisLink]:
    """Return the settings and a link to their Redis, named `email-ingestion-NAME` in CLIENT LIST."""
    from email_ingestion.stream import open_link  # noqa: PLC0415 - not every command needs Redis

    settings = load_settings()
    return settings, open_link(settings.redis_address, f"email-ingestion-{name}")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll `condition` until it holds, for at most `seconds`; return whether it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def audit_read(log_dir: Path, action: ReadAction, messages: int, email_ids: Sequence[str], **details: Any) -> None:
    """Write into the audit log that the user of this command reads mail, before any of it is shown.

    Raises ConfigurationError when the log cannot be written: mail is not read unseen.
    """
    record_read(log_dir, "cli", current_user(), action, messages=messages, email_ids=email_ids, **details)


@contextmanager
def audited(
    log_dir: Path, action: str, details: dict[str, Any], *, dry_run: bool = False, unwritten: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Write the start and the end of a command into the audit log, as `audited_action` does.

    A `dry_run` does nothing, and is not written. With `unwritten` a full disk does not stop the command.
    """
    if dry_run:
        yield {}
        return
    common = {"user": current_user(), "pid": os.getpid(), "action": action, **details}
    with audited_action(log_dir, common, unwritten) as outcome:
        yield outcome


class Unkept:
    """What could not be written: it is said after all that can be shown, for on a full disk people still need that."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Let the command go on after what cannot be written."""
        try:
            yield
        except (ConfigurationError, OperationFailed) as error:
            self.reasons.append(str(error))

    def keep(self, found: Incident, name: str, content: str) -> None:
        """Write a file into the incident's folder."""
        from email_ingestion.incidents.incident_log import keep  # noqa: PLC0415 - slow to load

        with self.tolerated():
            keep(found, name, content)

    def exit_code(self) -> int:
        """Say what was not kept and return the exit code: 2 if something was not."""
        for reason in dict.fromkeys(self.reasons):
            say(f"shown, and not kept: {reason}")
        return FAILED if self.reasons else OK


def current_user() -> str:
    """Return the name of the user who gives the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid:{os.getuid()}"


class OrderTurns:
    """Tells when a process has read an order for all: by its second reading after the order at the latest.

    The first one that is seen may have begun before the order. Until then nobody knows whether it obeys; then what it
    is not, another order keeps it from.
    """

    def __init__(self) -> None:
        self._readings: dict[str, set[object]] = {}

    def has_read(self, process: str, reading: object) -> bool:
        """Count a reading, told from others by its time; return whether the process must have read the order."""
        seen = self._readings.setdefault(process, set())
        seen.add(reading)
        return len(seen) > 2  # noqa: PLR2004 - one before the order, and two after it
