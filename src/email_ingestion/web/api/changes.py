"""`/api/v1/changes`: what happened to delivered mail, in the order of the commits."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from email_ingestion.ledger.change_feed import PAGE, ChangePage, ChangesGone, NumberedChange
from email_ingestion.web.api.answers import ERRORS, ChangesAnswer, ErrorAnswer, page_answer
from email_ingestion.web.api.authorization import AnyCaller
from email_ingestion.web.api.filters import LARGEST, Text, refuse_unknown_names
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.context import context_of

MAX_WAIT = 60.0  # seconds
START = "Change-Feed-Start"  # the header that says behind which number a reader goes on that must start again
_NAMES = ("after", "wait", "limit", "account")
_GONE: dict[int | str, dict[str, Any]] = {
    410: {"model": ErrorAnswer, "description": "Start again, behind the number in the header Change-Feed-Start."}
}
router = APIRouter(prefix="/api/v1", tags=["changes"], responses=ERRORS)


@router.get("/changes", response_model=None, responses=_GONE | {200: {"model": ChangesAnswer}})
async def changes(
    request: Request,
    caller: AnyCaller,
    *,
    after: Annotated[int, Query(ge=0, le=LARGEST, description="`next` of the answer before; 0 at first.")] = 0,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT, description="Seconds to wait for a change where none is.")] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE, description="Most changes of an answer.")] = PAGE,
    account: Text = None,
) -> dict[str, Any]:
    """Changes behind `after`, in their order; `next` is the `after` of the next request, also where there is none.

    410 when what comes behind `after` is not kept any more, or the database is another one: note the number in the
    header Change-Feed-Start, read the list of e-mails again, and go on with `after` set to that number.
    """
    refuse_unknown_names(request, _NAMES)
    web = context_of(request)
    wanted = caller.allowed_account(account or None)
    accounts = None if wanted is None else [wanted]
    end = time.monotonic() + wait
    while True:
        page = await _page(request, after, limit, accounts)
        came_on, after = page.next_seq > after, page.next_seq
        if page.changes or time.monotonic() >= end:
            break
        if not came_on and not await web.feed.wait(
            after,
            end - time.monotonic(),
            lambda: web.access.ask(lambda ledger: ledger.changes.last()),
            request.is_disconnected,
        ):
            break
    return page_answer([_item(each) for each in page.changes], page.next_seq, None)


async def _page(request: Request, after: int, limit: int, accounts: list[str] | None) -> ChangePage:
    access = context_of(request).access

    def read() -> ChangePage:
        access.ledger.changes.number()
        return access.ledger.changes.read(after, limit, accounts)

    try:
        return await access.ask(lambda _: read())
    except ChangesGone as gone:
        raise WebError(410, str(gone), {START: str(gone.start_from)}) from gone


def _item(change: NumberedChange) -> dict[str, Any]:
    return {
        "seq": change.seq,
        "at": change.at.isoformat(),
        "kind": change.kind.value,
        "account": change.account,
        "email_id": change.email_id,
        "details": change.details,
    }
