"""`accounts`: the accounts of the database, beside those of config/settings.toml; a producer takes up what changes."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer

from email_ingestion.cli.common import audited, current_user
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, printable, report, say, show
from email_ingestion.errors import ConfigurationError
from email_ingestion.settings import Account, Settings, environment, load_settings

if TYPE_CHECKING:
    from email_ingestion.ledger.accounts import AccountRow, StoredAccounts

accounts = typer.Typer(no_args_is_help=True, help="Add, change, pause and remove accounts while the producer runs.")
SOON = "a running producer takes it up within 10 s"

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name in metrics and logs; never an address.")]
User = Annotated[str | None, typer.Option("--user", metavar="ADDRESS", help="The mailbox's address, IMAP_USER.")]
Auth = Annotated[str | None, typer.Option("--auth", metavar="KIND", help="oauth2 or password, IMAP_AUTH.")]
Host = Annotated[str | None, typer.Option("--host", metavar="HOST", help="Its mail server, IMAP_HOST.")]
Port = Annotated[int | None, typer.Option("--port", metavar="PORT", help="IMAP_PORT.")]
Mailbox = Annotated[str | None, typer.Option("--mailbox", metavar="NAME", help="IMAP_MAILBOX.")]
Start = Annotated[str | None, typer.Option("--start", metavar="WHAT", help="all, now or a date, IMAP_START.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of an account, such as imap_tls=false."),
]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", metavar="FILE", help="Its password is in this file; - is stdin.")
]
PasswordVariable = Annotated[
    str | None, typer.Option("--password-env", metavar="VARIABLE", help="Its password is in this variable.")
]
SecretFile = Annotated[
    Path | None, typer.Option("--client-secret-file", metavar="FILE", help="The secret of its own OAuth client.")
]
SecretVariable = Annotated[
    str | None, typer.Option("--client-secret-env", metavar="VARIABLE", help="The same, in this variable.")
]


@dataclass(frozen=True, slots=True)
class _Given:
    """What the options of `add` and `change` say."""

    table: dict[str, Any]
    secrets: dict[str, str]


@accounts.command()
def add(
    *,
    name: Name,
    user: User = None,
    auth: Auth = None,
    host: Host = None,
    port: Port = None,
    mailbox: Mailbox = None,
    start: Start = None,
    more: Set = None,
    password_file: PasswordFile = None,
    password_env: PasswordVariable = None,
    client_secret_file: SecretFile = None,
    client_secret_env: SecretVariable = None,
    as_json: Json = False,
) -> int:
    """Add an account to the database. What is not said comes from the general settings, but for the password.

    Passwords and secrets are asked for, or read from a file or a variable, and kept encrypted with
    TOKEN_ENCRYPTION_KEY. Exit code 1 when there is an account of that name.

    Examples:
      email-ingestion accounts add sales --user sales@example.com
      email-ingestion accounts add support --user support@example.com --host imap.example.com --auth password
      email-ingestion accounts add depot --user depot@example.com --auth password --password-file /run/secrets/depot
    """
    from email_ingestion.app.account_list import make_row  # noqa: PLC0415 - help comes without SQLAlchemy

    settings = load_settings()
    options = {"user": user, "auth": auth, "host": host, "port": port, "mailbox": mailbox, "start": start}
    given = _given(options, more, (password_file, password_env), (client_secret_file, client_secret_env))
    _refuse_named_in_settings(settings, name)
    if _needs_password(settings, given):
        given.secrets["imap_password"] = _ask_for_password(name)
    row, account = make_row(settings, name, given.table, given.secrets)
    with _open(settings) as stored, audited(settings.log_dir, "accounts add", {"account": name}) as outcome:
        added = stored.add(row, current_user())
        outcome["added"] = added
    if not added:
        say(f"there is an account {name} already; `email-ingestion accounts change {name}` changes it")
        return NEGATIVE
    report(
        {"account": name, "added": True, "next": _next(account)}, f"{name} is added; {_next(account)}", as_json=as_json
    )
    return OK


@accounts.command()
def change(
    *,
    name: Name,
    user: User = None,
    auth: Auth = None,
    host: Host = None,
    port: Port = None,
    mailbox: Mailbox = None,
    start: Start = None,
    more: Set = None,
    password_file: PasswordFile = None,
    password_env: PasswordVariable = None,
    ask_password: Annotated[bool, typer.Option("--ask-password", help="Ask for a new password.")] = False,
    client_secret_file: SecretFile = None,
    client_secret_env: SecretVariable = None,
    as_json: Json = False,
) -> int:
    """Change an account of the database; what is not said stays as it is. Exit code 1 when there is none of that name.

    Examples:
      email-ingestion accounts change support --host imap2.example.com
      email-ingestion accounts change depot --password-file /run/secrets/depot
      email-ingestion accounts change sales --set imap_exclude_labels=Sent,Drafts
    """
    from email_ingestion.app.account_list import make_row, secrets_of, settings_of  # noqa: PLC0415 - help comes without SQLAlchemy

    settings = load_settings()
    options = {"user": user, "auth": auth, "host": host, "port": port, "mailbox": mailbox, "start": start}
    given = _given(options, more, (password_file, password_env), (client_secret_file, client_secret_env))
    if ask_password:
        given.secrets["imap_password"] = _ask_for_password(name)
    if not given.table and not given.secrets:
        raise typer.BadParameter("say what to change")
    with _open(settings) as stored:
        before = _find(stored, name)
        if before is None:
            return _unknown(settings, name)
        secrets = {} if given.secrets.keys() >= {"imap_password"} else secrets_of(settings, before)
        row, _ = make_row(settings, name, {**settings_of(before), **given.table}, {**secrets, **given.secrets})
        with audited(settings.log_dir, "accounts change", {"account": name, "settings": sorted(given.table)}):
            changed = stored.replace(replace(row, state=before.state, consent=before.consent), current_user())
    report({"account": name, "changed": changed}, f"{name} is changed; {SOON}", as_json=as_json)
    return OK


@accounts.command("list")
def list_accounts(as_json: Json = False) -> int:
    """Show all accounts: where they stand, whether they are read, and what is wrong with them. No secret is shown.

    Exit code 0 when all can be read, 1 when one is wrong or paused, or the database cannot be asked.

    Examples:
      email-ingestion accounts list
      email-ingestion accounts list --json
    """
    from email_ingestion.app.account_list import AccountList, accounts_in_files, look_up_accounts  # noqa: PLC0415
    from email_ingestion.errors import SinkUnavailable  # noqa: PLC0415

    settings = load_settings()
    problem = ""
    try:
        found = look_up_accounts(settings)
    except SinkUnavailable as error:
        found, problem = AccountList(accounts_in_files(settings)), str(error)
    rows = [
        *(_row(account, "active", found) for account in found.accounts),
        *(_row(account, "paused", found) for account in found.paused),
        *({**dict.fromkeys(_COLUMNS), "account": name, "stands in": "database", "state": "wrong", "problem": why}
          for name, why in found.broken.items()),
        *({**dict.fromkeys(_COLUMNS), "account": name, "stands in": "database", "state": "hidden",
           "problem": "the settings have one of this name, which holds"} for name in found.hidden),
    ]  # fmt: skip
    show(rows, as_json=as_json)
    if problem:
        say(f"accounts of the database are not known: {problem}")
    elif not rows:
        say("there is no account: set IMAP_USER in .env, or `email-ingestion accounts add`")
    return NEGATIVE if problem or found.paused or found.broken or found.hidden or not rows else OK


@accounts.command()
def pause(name: Name, as_json: Json = False) -> int:
    """Let the producer read an account no more, until `resume`. Exit code 1 when there is none of that name.

    Examples:
      email-ingestion accounts pause support
    """
    return _set_state(name, "paused", "mail stays on its server", as_json=as_json)


@accounts.command()
def resume(name: Name, as_json: Json = False) -> int:
    """Let a paused account go on where it was. Exit code 1 when there is none of that name.

    Examples:
      email-ingestion accounts resume support
    """
    return _set_state(name, "active", "it goes on where it was", as_json=as_json)


@accounts.command()
def remove(name: Name, as_json: Json = False) -> int:
    """Remove an account and its secrets. Its delivered mail and its cursor stay. Exit code 1: none of that name.

    Examples:
      email-ingestion accounts remove support
    """
    from email_ingestion.app.account_list import forget_token  # noqa: PLC0415 - help comes without SQLAlchemy

    settings = load_settings()
    with _open(settings) as stored, audited(settings.log_dir, "accounts remove", {"account": name}) as outcome:
        removed = stored.remove(name, current_user())
        outcome["removed"] = removed
    if not removed:
        return _unknown(settings, name)
    forget_token(name)
    sentence = (
        f"{name} is removed with its secrets; {SOON}. Its delivered mail stays in the database, and its cursor in "
        "Redis: added again under this name it goes on where it was."
    )
    report({"account": name, "removed": True, "kept": ["mail", "cursor"]}, sentence, as_json=as_json)
    return OK


def _set_state(name: str, state: str, meaning: str, *, as_json: bool) -> int:
    settings = load_settings()
    order = "pause" if state == "paused" else "resume"
    with _open(settings) as stored, audited(settings.log_dir, f"accounts {order}", {"account": name}) as outcome:
        outcome["found"] = found = stored.set_state(name, state, current_user())
    if not found:
        return _unknown(settings, name)
    report({"account": name, "state": state}, f"{name} is {state}: {meaning}; {SOON}", as_json=as_json)
    return OK


@contextmanager
def _open(settings: Settings) -> Iterator[StoredAccounts]:
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    with closing(open_ledger(settings.database_url)) as ledger:
        yield ledger.accounts


def _find(stored: StoredAccounts, name: str) -> AccountRow | None:
    return next((row for row in stored.rows() if row.name == name), None)


def _unknown(settings: Settings, name: str) -> int:
    _refuse_named_in_settings(settings, name)
    say(f"there is no account {printable(name)!r} in the database; `email-ingestion accounts list` shows all")
    return NEGATIVE


def _refuse_named_in_settings(settings: Settings, name: str) -> None:
    from email_ingestion.app.account_list import accounts_in_files  # noqa: PLC0415 - help comes without SQLAlchemy

    if name in {account.name for account in accounts_in_files(settings)}:
        raise ConfigurationError(f"the account {name} stands in {settings.origin}: change it there; names are unique")


def _given(
    options: Mapping[str, Any],
    more: Sequence[str] | None,
    password: tuple[Path | None, str | None],
    client_secret: tuple[Path | None, str | None],
) -> _Given:
    """Read the options; secrets come from files and variables. Raises BadParameter."""
    table = {f"imap_{key}": value for key, value in options.items() if value is not None}
    table |= dict(map(_assignment, more or ()))
    secrets = {"imap_password": _read_secret("password", *password)}
    secrets["google_client_secret"] = _read_secret("client-secret", *client_secret)
    return _Given(table, {key: value for key, value in secrets.items() if value})


def _assignment(text: str) -> tuple[str, Any]:
    from email_ingestion.app.account_list import SECRETS, SETTINGS  # noqa: PLC0415 - help comes without SQLAlchemy

    name, equals, value = text.partition("=")
    name = name.strip().lower()
    if name in SECRETS:
        raise typer.BadParameter(
            "secrets are not for the command line: --password-file, --client-secret-file, or a prompt"
        )
    if not equals or name not in SETTINGS:
        raise typer.BadParameter(f"--set takes NAME=VALUE; the names are {', '.join(SETTINGS)}")
    if get_origin(Account.model_fields[name].annotation) is tuple:
        return name, [part.strip() for part in value.split(",") if part.strip()]
    return name, value.strip() or None


def _read_secret(what: str, file: Path | None, variable: str | None) -> str:
    if file and variable:
        raise typer.BadParameter(f"give one of --{what}-file and --{what}-env")
    if variable:
        found = environment().get(variable, "")
        if not found:
            raise typer.BadParameter(f"--{what}-env: {printable(variable)} is not set, or empty")
        return found
    if not file:
        return ""
    try:
        found = (sys.stdin.read() if str(file) == "-" else file.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--{what}-file: {file} cannot be read: {error}") from error
    if not found:
        raise typer.BadParameter(f"--{what}-file: {file} is empty")
    return found


def _needs_password(settings: Settings, given: _Given) -> bool:
    auth = given.table.get("imap_auth", settings.imap_auth)
    return auth == "password" and "imap_password" not in given.secrets


def _ask_for_password(name: str) -> str:
    if not sys.stdin.isatty():
        raise typer.BadParameter("give the password with --password-file or --password-env, or at a terminal")
    return getpass.getpass(f"Password of {name}: ")


def _next(account: Account) -> str:
    from email_ingestion.oauth2 import TokenSource  # noqa: PLC0415 - help comes without it

    if account.imap_auth == "oauth2" and TokenSource(account).describe().state == "missing":
        return f"it needs a consent: `python producer.py --auth-setup --account {account.name}`"
    return SOON


_COLUMNS = ("account", "stands in", "state", "user", "server", "auth", "problem")


def _row(account: Account, state: str, found: Any) -> dict[str, Any]:
    where = "database" if account.name in found.stored and account.name not in found.hidden else "settings"
    server = f"{account.imap_host}:{account.imap_port}"
    values = (account.name, where, state, account.imap_user, server, account.imap_auth, _problem(account))
    return dict(zip(_COLUMNS, values, strict=True))


def _problem(account: Account) -> str | None:
    from email_ingestion.app.account import check_account  # noqa: PLC0415 - help comes without it

    try:
        check_account(account)
    except ConfigurationError as error:
        return str(error)
    return None
