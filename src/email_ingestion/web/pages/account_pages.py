"""The accounts: how each is, those of the database added, paused and removed, and their consents given anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

import anyio.from_thread
from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from email_ingestion.app.account_list import (
    TOKENS,
    AccountList,
    encrypted_consent,
    forget_token,
    make_row,
    merge_accounts,
)
from email_ingestion.errors import EmailIngestionError, OperationFailed
from email_ingestion.ledger.accounts import AccountRow, StoredAccounts
from email_ingestion.oauth2.token_file import Consent
from email_ingestion.ops.audit_log import audited_action, read_audit
from email_ingestion.settings import Account, Settings
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.consent_renewals import CALLBACK, ConsentRenewals, check_web_client
from email_ingestion.web.flow_judgement import TOKEN, accounts_of
from email_ingestion.web.ledger_access import QUICK_SECONDS, LedgerAccess
from email_ingestion.web.live_system import LiveSystem
from email_ingestion.web.pages.runbooks import section_link
from email_ingestion.web.readings import Reading, Source
from email_ingestion.web.rendering import page_headers, render
from email_ingestion.web.sessions import CurrentOperator, CurrentUser, WebUser

Answer = TypeVar("Answer")
PATH = "/accounts"
DATABASE_SECONDS, AUDIT_SECONDS = 2.0, 5.0
WAIT_SECONDS = 0.3  # each for the database and the audit log
AUDIT_LINES = 20  # of each account
REFRESH_SECONDS = 15
NOT_FOUND, WRONG, UNAVAILABLE = 404, 400, 503
HIDDEN = "the database has an account of this name too, which the one of the settings hides"
DONE = {
    "added": "is added; a running producer takes it up within 10 s",
    "paused": "is paused: mail stays on its server; a running producer stops within 10 s",
    "resumed": "goes on where it was, within 10 s",
    "removed": "is removed with its secrets. Its delivered mail and its cursor stay",
    "authorized": "is authorized; its producer goes on within seconds",
    "authorized_here": "is authorized, but only the token file of this machine has the consent, not the database",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account as a page shows it; `live` is what a producer says of it, None where none does."""

    name: str
    state: str  # active, paused, wrong
    stored: bool  # in the database
    problem: str
    account: Account | None
    live: dict[str, Any] | None


class AccountPages:
    """What these pages share: the table of accounts, the audit log, and consents under way."""

    def __init__(self, settings: Settings, system: LiveSystem) -> None:
        """Raises ConfigurationError when the client of type Web lacks its secret."""
        check_web_client(settings)
        self.settings = settings
        self.system = system
        self.access = LedgerAccess(settings)
        self.renewals = ConsentRenewals(settings)
        self.rows: Source[tuple[AccountRow, ...]] = Source("the database", self._read_rows, DATABASE_SECONDS)
        self.audit: Source[dict[str, list[dict[str, Any]]]] = Source("the audit log", self._read_audit, AUDIT_SECONDS)

    def close(self) -> None:
        """Close the connections."""
        self.access.close()

    def views(self) -> tuple[list[AccountView], Reading[tuple[AccountRow, ...]]]:
        """Return all accounts by name, and what the database said; without it those of the settings."""
        reading = self.rows.get(WAIT_SECONDS)
        found = merge_accounts(self.settings, reading.value or ())
        live: dict[str, dict[str, Any]] = {}
        for each in accounts_of(self.system.read(WAIT_SECONDS)):
            if each["watch"] != "standby" or each["name"] not in live:
                live[str(each["name"])] = each
        return sorted(_views(found, live), key=lambda view: view.name), reading

    def find(self, name: str) -> AccountView | None:
        """Return the account of this name."""
        return next((view for view in self.views()[0] if view.name == name), None)

    def change(self, write: Callable[[], Answer]) -> Answer:
        """Write to the database. Raises OperationFailed when it is not known in time whether that is done."""
        try:
            return anyio.from_thread.run(self.access.within, QUICK_SECONDS, write, "the database")
        except WebError as error:
            raise OperationFailed(f"not known, whether it is done: {error.message}; look again in a minute") from error

    def keep(self, account: Account, consent: Consent, user: WebUser) -> bool:
        """Keep a new consent in the database too, for producers on other machines; return whether all of them get it.

        Without a key, or while the database is away, only the token file of this machine has it.
        """
        if account.google_token_file.parent != TOKENS:
            return True
        if not self.settings.token_encryption_key:
            return False
        try:
            text = encrypted_consent(account, consent)
            return self.access.ledger.accounts.store_consent(account.name, text, f"{user.name} (web)")
        except EmailIngestionError:
            return False

    def _read_rows(self) -> tuple[AccountRow, ...]:
        return self.access.ledger.accounts.rows()

    def _read_audit(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, deque[dict[str, Any]]] = {}
        for record in read_audit(self.settings.log_dir):
            names = record.get("accounts") if isinstance(record.get("accounts"), list) else [record.get("account")]
            for name in names or ():
                if isinstance(name, str) and name:
                    found.setdefault(name, deque(maxlen=AUDIT_LINES)).append(record)
        return {name: list(reversed(records)) for name, records in found.items()}


def _views(found: AccountList, live: dict[str, dict[str, Any]]) -> list[AccountView]:
    def view(account: Account, state: str) -> AccountView:
        stored = account.name in found.stored and account.name not in found.hidden
        problem = HIDDEN if account.name in found.hidden else ""
        return AccountView(account.name, state, stored, problem, account, live.get(account.name))

    return [
        *(view(account, "active") for account in found.accounts),
        *(view(account, "paused") for account in found.paused),
        *(
            AccountView(name, "wrong", stored=True, problem=why, account=None, live=live.get(name))
            for name, why in found.broken.items()
        ),
    ]


@router.get(PATH)
def list_page(request: Request, user: CurrentUser, done: str = "", account: str = "") -> Response:
    """Show all accounts."""
    return _list(request, user, done=_sentence(request, account, done))


@router.get(PATH + "/{name}")
def account_page(request: Request, user: CurrentUser, name: str) -> Response:
    """Show one account."""
    pages: AccountPages = request.app.state.account_pages
    views, reading = pages.views()
    view = next((view for view in views if view.name == name), None)
    if view is None and reading.value is None:
        text = f"Not known, whether there is an account {name}: {reading.problem}."
        return render(request, "message.html", user, title="Not known", text=text, status=UNAVAILABLE)
    if view is None:
        text = f"There is no account {name}."
        return render(request, "message.html", user, title="No such account", text=text, status=NOT_FOUND)
    audit = pages.audit.get(WAIT_SECONDS)
    return render(
        request, "account.html", user, refresh=REFRESH_SECONDS, view=view, audit=audit, help_link=section_link(TOKEN)
    )


@router.post(PATH)
def add(
    request: Request,
    user: CurrentOperator,
    *,
    name: Annotated[str, Form()] = "",
    address: Annotated[str, Form()] = "",
    auth: Annotated[str, Form()] = "oauth2",
    host: Annotated[str, Form()] = "",
    port: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    mailbox: Annotated[str, Form()] = "",
    start: Annotated[str, Form()] = "",
) -> Response:
    """Add an account to the database.

    The mail server of an account with a consent is that of the settings: its tokens go nowhere else.
    """
    pages: AccountPages = request.app.state.account_pages
    settings = pages.settings
    given = {"imap_user": address, "imap_auth": auth, "imap_mailbox": mailbox, "imap_start": start}
    if auth == "password":
        given |= {"imap_host": host, "imap_port": port}
    table = {key: value.strip() for key, value in given.items() if value.strip()}
    name = name.strip()
    try:
        if pages.find(name):
            return _list(request, user, problem=f"There is an account {name} already.", status=WRONG)
        row, _ = make_row(settings, name, table, {"imap_password": password} if auth == "password" else {})
        with audited_action(settings.log_dir, _record(user, "accounts add", name)) as outcome:
            outcome["added"] = pages.change(lambda: pages.access.ledger.accounts.add(row, f"{user.name} (web)"))
    except EmailIngestionError as error:
        return _list(request, user, problem=str(error), status=WRONG)
    return _see(pages, name, "added")


@router.post(PATH + "/{name}/{order}")
def give_order(request: Request, user: CurrentOperator, name: str, order: str) -> Response:
    """Pause, resume or remove an account of the database, or begin to renew a consent."""
    pages: AccountPages = request.app.state.account_pages
    if order == "authorize":
        return _authorize(request, pages, user, name)
    stored = {"pause": "paused", "resume": "resumed", "remove": "removed"}
    if order not in stored:
        return _list(request, user, problem="There is no such order.", status=NOT_FOUND)
    try:
        with audited_action(pages.settings.log_dir, _record(user, f"accounts {order}", name)) as outcome:
            found = pages.change(
                lambda: _change_account(pages.access.ledger.accounts, name, order, f"{user.name} (web)")
            )
            outcome["found"] = found
    except EmailIngestionError as error:
        return _list(request, user, problem=str(error), status=WRONG)
    if not found:
        return _list(request, user, problem=f"There is no account {name} in the database.", status=NOT_FOUND)
    return _see(pages, name, stored[order])


def _change_account(book: StoredAccounts, name: str, order: str, by: str) -> bool:
    if order != "remove":
        return book.set_state(name, "paused" if order == "pause" else "active", by)
    found = book.remove(name, by)
    if found:
        forget_token(name)
    return found


@router.post("/oauth2/pasted")
def take_pasted(request: Request, user: CurrentOperator, address: Annotated[str, Form()] = "") -> Response:
    """Take the redirect that a person copied from the address bar."""
    return _finish(request, user, address)


@router.get(CALLBACK)
def callback(request: Request, user: CurrentOperator) -> Response:
    """Take the redirect by which the browser comes back."""
    return _finish(request, user, str(request.url))


def _authorize(request: Request, pages: AccountPages, user: WebUser, name: str) -> Response:
    views, reading = pages.views()
    view = next((view for view in views if view.name == name), None)
    if view is None and reading.value is None:
        problem = f"Not known, whether there is an account {name}: {reading.problem}."
        return _list(request, user, problem=problem, status=UNAVAILABLE)
    if view is None or view.account is None or view.account.imap_auth != "oauth2":
        return _list(request, user, problem=f"There is no account {name} that needs a consent.", status=NOT_FOUND)
    try:
        consent = pages.renewals.begin(view.account, user.csrf)
    except EmailIngestionError as error:
        return _list(request, user, problem=str(error), status=WRONG)
    return render(request, "account_consent.html", user, view=view, consent=consent)


def _finish(request: Request, user: WebUser, address: str) -> Response:
    pages: AccountPages = request.app.state.account_pages
    name = pages.renewals.account_behind(address)
    try:
        with audited_action(pages.settings.log_dir, _record(user, "accounts authorize", name)):
            account, consent = pages.renewals.finish(address, user.csrf)
    except EmailIngestionError as error:
        return _list(request, user, problem=f"Not authorized: {error}.", status=WRONG)
    return _see(pages, account.name, "authorized" if pages.keep(account, consent, user) else "authorized_here")


def _list(request: Request, user: WebUser, *, done: str = "", problem: str = "", status: int = 200) -> Response:
    pages: AccountPages = request.app.state.account_pages
    views, reading = pages.views()
    return render(
        request,
        "accounts.html",
        user,
        status=status,
        refresh=0 if problem else REFRESH_SECONDS,
        views=views,
        reading=reading,
        done=done,
        problem=problem,
        has_key=bool(pages.settings.token_encryption_key),
    )


def _sentence(request: Request, name: str, done: str) -> str:
    """Return what was done, for an account that there is or was; a link of somebody else says nothing here."""
    pages: AccountPages = request.app.state.account_pages
    if done not in DONE or (done != "removed" and pages.find(name) is None):
        return ""
    return f"{name} {DONE[done]}."


def _see(pages: AccountPages, name: str, done: str) -> Response:
    pages.rows.forget()
    return RedirectResponse(f"{PATH}?{urlencode({'done': done, 'account': name})}", 303, page_headers())


def _record(user: WebUser, action: str, name: str) -> dict[str, Any]:
    return {**user.identity, "action": action, "account": name}
