"""`/api/v1/accounts`, `dead-letters` and `stats`: the state of the system. What is not known is null, and says why."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from email_ingestion.app.account_list import merge_accounts
from email_ingestion.ledger.mail_pages import COUNTED
from email_ingestion.ledger.store import Ledger
from email_ingestion.ops import status_json
from email_ingestion.ops.redaction import redact
from email_ingestion.ops.status_records import AccountState
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.stream.dead_letters import DeadLetter, DeadLetterFilter
from email_ingestion.web.api.answers import ERRORS, ListAnswer, page_answer
from email_ingestion.web.api.authorization import AnyCaller
from email_ingestion.web.api.filters import MAX_LIMIT, refuse_unknown_names
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.context import WebContext, context_of
from email_ingestion.web.ledger_access import QUICK_SECONDS
from email_ingestion.web.live_system import LiveSystem

ANSWER_SECONDS = 0.9
SCAN_SECONDS = 0.3  # for counting dead letters one by one; a queue without filter is counted by Redis
STATS_SECONDS = 5.0
DAY = timedelta(days=1)
ENTRY_ID = re.compile(r"(?:[0-9]{1,2}:)?[0-9]{1,19}-[0-9]{1,19}")
NOT_SHOWN = ("traceback", "raw_ref")
router = APIRouter(prefix="/api/v1", tags=["state"], responses=ERRORS)


@router.get("/accounts", response_model=None, responses={200: {"model": ListAnswer}})
async def accounts(request: Request, caller: AnyCaller) -> Response:
    """The accounts and what the producers say of each; `running` is null where no producer could be asked."""
    refuse_unknown_names(request, ())
    web = context_of(request)
    live: LiveSystem = request.app.state.live_system
    reading = (await web.access.within(ANSWER_SECONDS, live.read, "a process of this machine")).processes
    bodies = [each.body for each in reading.value or () if each.component == "producer" and each.body]
    reported = {str(each["name"]): each for body in bodies for each in body["accounts"]}
    configured = await web.access.ask(lambda ledger: _names(web, ledger))
    names = [name for name in dict.fromkeys((*configured, *reported)) if caller.account in {None, name}]
    problem = reading.problem or (None if bodies else "no producer answers on this machine")
    items = [_account(name, reported.get(name), problem, is_known=bool(bodies)) for name in names]
    return JSONResponse(page_answer(items, None, len(items)))


def _names(web: WebContext, ledger: Ledger) -> list[str]:
    """Return the names of the accounts of settings and database, the paused and the broken ones too."""
    found = merge_accounts(web.settings, ledger.accounts.rows())
    names = [account.name for account in found.known] or [account.name for account in web.settings.all_accounts]
    return [*names, *found.broken]


def _account(name: str, reported: dict[str, Any] | None, problem: str | None, *, is_known: bool) -> dict[str, Any]:
    if reported is not None:
        return {**reported, "running": True, "problem": None}
    unknown: dict[str, Any] = dict.fromkeys(status_json.account(AccountState(name), time.time()))
    reason = problem or "no producer reads it"
    return {**unknown, "name": name, "running": False if is_known else None, "problem": reason}


@router.get("/dead-letters", response_model=None, responses={200: {"model": ListAnswer}})
async def dead_letters(
    request: Request,
    *,
    caller: AnyCaller,
    reason: Annotated[str | None, Query(max_length=100, description="max_retries, permanent, poison, …")] = None,
    error_type: Annotated[str | None, Query(max_length=200)] = None,
    fingerprint: Annotated[str | None, Query(max_length=100, description="Of failures that are alike.")] = None,
    account: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """Dead letters, oldest first, without their bytes; `total` is null where counting takes too long."""
    refuse_unknown_names(request, ("reason", "error_type", "fingerprint", "account", "limit", "cursor"))
    if cursor and not ENTRY_ID.fullmatch(cursor):
        raise WebError(400, "cursor is no `next` of a page")
    web = context_of(request)
    live: LiveSystem = request.app.state.live_system
    only = DeadLetterFilter(
        reason or None, error_type or None, fingerprint or None, caller.allowed_account(account or None)
    )

    def read() -> dict[str, Any]:
        queue = DeadLetterQueue(live.link)
        until = time.monotonic() + SCAN_SECONDS
        found: list[DeadLetter] = []
        last, more = "", False
        for letter in queue.letters(after=cursor or ""):
            if len(found) == limit or (time.monotonic() > until and last):
                more = True
                break
            last = letter.id
            found += [letter] if only.matches(letter) else []
        total = _count(queue, only) if more or cursor else len(found)
        return page_answer([_dead_letter(each) for each in found], last if more else None, total)

    return JSONResponse(await web.access.within(ANSWER_SECONDS, read, "Redis"))


def _count(queue: DeadLetterQueue, only: DeadLetterFilter) -> int | None:
    """Count the letters that `only` lets pass; None above COUNTED, and where it takes too long."""
    if only == DeadLetterFilter():
        depth = queue.depth()
        return depth if depth <= COUNTED else None
    until, count = time.monotonic() + SCAN_SECONDS, 0
    for letter in queue.letters():
        count += only.matches(letter)
        if count > COUNTED or time.monotonic() > until:
            return None
    return count


def _dead_letter(letter: DeadLetter) -> dict[str, Any]:
    shown = {name: value for name, value in asdict(letter).items() if name not in NOT_SHOWN}
    return {**shown, "error": redact(letter.error)}


@router.get("/stats", response_model=None)
async def stats(request: Request, caller: AnyCaller) -> Response:
    """Numbers: delivered messages by account, of the last 24 hours too; the queue and the dead letters.

    With a token of one account only that account's; the queue belongs to all, and is null then.
    """
    refuse_unknown_names(request, ())
    web = context_of(request)
    live: LiveSystem = request.app.state.live_system
    since = datetime.now(UTC) - DAY
    counts = await web.access.ask(lambda ledger: ledger.pages.counts(since, caller.account), STATS_SECONDS)
    emails = {name: {"messages": all_, "received_last_24_hours": new} for name, (all_, new) in counts.items()}
    answer: dict[str, Any] = {
        "emails": {"messages": sum(all_ for all_, _ in counts.values()), "accounts": emails},
        "stream": None,
        "dead_letters": None,
        "problems": [],
    }
    if caller.account is None:
        answer |= await _of_redis(web, live)
    return JSONResponse(answer)


async def _of_redis(web: WebContext, live: LiveSystem) -> dict[str, Any]:
    reading = await web.access.within(QUICK_SECONDS, lambda: live.redis.get(QUICK_SECONDS / 2), "Redis")
    gauges = reading.value
    if gauges is None:
        return {"problems": [f"Redis: {reading.problem}"]}
    now = time.time()
    oldest = None if gauges.oldest is None else round(max(0.0, now - gauges.oldest), 3)
    stream = {"depth": gauges.depth, "pending": gauges.pending, "oldest_age_seconds": oldest}
    return {"stream": stream, "dead_letters": {"depth": gauges.dlq_depth}}
