"""Who asks the API: the bearer token of a request, what it may see and order, and how often it may ask."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from email_ingestion.ledger.api_tokens import ApiToken, Scope
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.context import GUESSES_PER_MINUTE, WebContext, context_of
from email_ingestion.web.sessions import UNKNOWN, WebEntry, address_of

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="email-ingestion"'}
VIA = "api"
ADVICE = "`email-ingestion tokens create` makes one"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks; `account` is the only one whose mail it may see, None stands for all."""

    token_id: str
    scope: Scope
    account: str | None
    address: str = UNKNOWN  # where it asks from

    @property
    def name(self) -> str:
        """The name in the audit log."""
        return f"token {self.token_id}"

    def audit_record(self, action: str, **details: Any) -> dict[str, Any]:
        """Return the line of the audit log about an order of this token, without its result."""
        return {"user": self.name, "from": self.address, "via": VIA, "pid": os.getpid(), "action": action, **details}

    def allowed_account(self, wanted: str | None) -> str | None:
        """Return the account to look at, None for all. Raises WebError 403 when another one is wanted."""
        if self.account is None or wanted in {None, self.account}:
            return self.account or wanted
        raise WebError(403, f"this token sees the account {self.account} only")


def account_of(email_id: str) -> str | None:
    """Return the account that an identity, or a beginning of one, names; None where it names none."""
    account, mark, _ = email_id.partition(":")
    return account if mark and account not in {"gm", "sha256"} else None


_bearer = HTTPBearer(auto_error=False, description="`email-ingestion tokens create` prints one.")  # for /openapi.json


async def _caller(request: Request, _: Annotated[object, Security(_bearer)]) -> Caller:
    """Return who asks. Raises WebError 401 without a valid token, 429 when it asks too often, 503 without database."""
    web = context_of(request)
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not text.strip():
        raise WebError(401, f"a token is needed, as `Authorization: Bearer TOKEN`; {ADVICE}", CHALLENGE)
    token = await _valid_token(request, web, text.strip())
    per_minute = web.settings.web_requests_per_minute
    _refuse_for(web.limiter.wait(token.token_id), f"this token may ask {per_minute} times a minute")
    return Caller(token.token_id, token.scope, token.account, address_of(request))


def _refuse_for(wait: float, reason: str) -> None:
    """Raise WebError 429 when there are seconds to wait."""
    if wait:
        seconds = max(1, -(-wait // 1))
        raise WebError(429, f"{reason}; ask again in {seconds:.0f} s", {"Retry-After": f"{seconds:.0f}"})


async def _valid_token(request: Request, web: WebContext, text: str) -> ApiToken:
    """Return a token that is valid. Who tries others is slowed down, and does not slow those who have one."""
    digest, address = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), address_of(request)
    if digest not in web.proven:
        _refuse_for(web.guesses.wait(address), f"{GUESSES_PER_MINUTE} tokens a minute are looked up for an address")
    found = await web.access.ask(lambda ledger: ledger.api_tokens.find(text))
    state = found[0].state(found[1]) if found else "not known"
    web.proven.note(digest, valid=state == "valid")
    if found is None or state != "valid":
        name, reason = (f"token {found[0].token_id}" if found else UNKNOWN), f"this token is {state}"
        entry: WebEntry = request.app.state.entry
        await run_in_threadpool(entry.record, name, address, "api", "refused", via=VIA, reason=reason)
        raise WebError(401, f"{reason}; {ADVICE}", CHALLENGE)
    return found[0]


AnyCaller = Annotated[Caller, Depends(_caller)]


async def refuse(request: Request, caller: Caller, status: int, reason: str, code: str | None = None) -> WebError:
    """Write down that an order was refused; return the error to raise."""
    entry: WebEntry = request.app.state.entry
    action = f"api {request.url.path}"
    await run_in_threadpool(entry.record, caller.name, caller.address, action, "refused", via=VIA, reason=reason)
    return WebError(status, reason, code=code)


async def _operator(request: Request, caller: AnyCaller) -> Caller:
    """Return who gives an order. Raises WebError 403 for a token that only reads."""
    if caller.scope != "operate":
        raise await refuse(request, caller, 403, "this token only reads: `tokens create --scope operate` makes one")
    return caller


async def _operator_of_all(request: Request, caller: Annotated[Caller, Depends(_operator)]) -> Caller:
    """Return who gives an order that concerns every account. Raises WebError 403 for a token of one account."""
    if caller.account is not None:
        raise await refuse(request, caller, 403, f"this token is for the account {caller.account} only")
    return caller


OperatingCaller = Annotated[Caller, Depends(_operator)]
OperatorOfAll = Annotated[Caller, Depends(_operator_of_all)]
