"""The orders about one message: send it again to a sink, and erase it. Operators give them; each is audited."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from email_ingestion.errors import EmailIngestionError, OperationFailed
from email_ingestion.ops.audit_log import audited_action
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.context import WebContext, context_of
from email_ingestion.web.jobs import Job
from email_ingestion.web.message_resend import resend_message
from email_ingestion.web.pages.message import PATIENT, patience
from email_ingestion.web.pages.orders import begin_order, not_done, refuse_order
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentOperator, WebUser

if TYPE_CHECKING:
    from email_ingestion.erasure.eraser import ErasureSummary
    from email_ingestion.stream import RedisLink

PATH = "/mail/{email_id}"
SECONDS = 10.0
SEE_OTHER, NOT_FOUND, CONFLICT, UNAVAILABLE = 303, 404, 409, 503
PLACES = {
    "messages": "messages in the database",
    "attachments": "attachments",
    "contents": "contents in the database",
    "blobs": "contents in the blob store",
    "stream": "entries of the stream",
    "dead_letters": "dead letters",
    "sink_stream": "entries of the sink stream",
    "quarantine": "messages in quarantine",
    "deliveries": "deliveries",
    "places": "further places of it",
    "purged": "notes that it was given up",
}

router = APIRouter(include_in_schema=False)


@router.post(PATH + "/resend")
async def resend(
    request: Request, user: CurrentOperator, email_id: str, sink: Annotated[str, Form(max_length=200)]
) -> Response:
    """Owe a message to one sink again, whatever the routes say; the workers deliver it."""
    web = context_of(request)
    if sink not in web.settings.sinks[1:]:
        reason = f"There is no sink {sink!r} beside the database."
        return await run_in_threadpool(refuse_order, request, user, reason, action="resend")
    try:
        found = await web.access.within(SECONDS, lambda: resend_message(web, user, email_id, sink), "the database")
    except (WebError, EmailIngestionError) as error:
        reason = error.message if isinstance(error, WebError) else str(error)
        return not_done(request, user, f"It is not known whether it is sent again: {reason}.", UNAVAILABLE)
    if found.failed:
        return not_done(request, user, f"It is not sent again: {'; '.join(found.failed.values())}.", CONFLICT)
    if not (found.owed or found.waiting or found.dead_letters):
        return not_done(request, user, "There is no such message.", NOT_FOUND)
    outcome = "owed" if found.owed else "waiting" if found.waiting else "dead"
    query = urlencode({"resent": sink, "outcome": outcome})
    return RedirectResponse(f"/mail/{quote(email_id)}?{query}", SEE_OTHER)


@router.get(PATH + "/erase")
async def erase_page(request: Request, user: CurrentOperator, email_id: str) -> Response:
    """Show what an erasure would remove, and ask."""
    web, link = context_of(request), request.app.state.live_system.link
    found, problem = None, ""
    try:
        seconds = patience(request, SECONDS)
        found = await web.access.within(seconds, lambda: _preview(web, link, email_id), "Redis or the database")
    except (WebError, EmailIngestionError) as error:
        problem = error.message if isinstance(error, WebError) else str(error)
    return render(
        request,
        "mail_erase.html",
        user,
        status=UNAVAILABLE if problem else 200,
        email_id=email_id,
        places=_places(found.removed) if found else [],
        problem=problem,
        may_wait=not request.query_params.get(PATIENT),
        held=bool(found and found.held),
    )


@router.post(PATH + "/erase")
def erase(request: Request, user: CurrentOperator, email_id: str) -> Response:
    """Begin to erase a message for good, and lead to its progress."""
    web, link = context_of(request), request.app.state.live_system.link

    def work(job: Job) -> str:
        return _erase(web, link, user, email_id, job)

    return begin_order(request, user, f"Erase {email_id}", "/mail", work, action="erase")


def _places(removed: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(PLACES.get(name, name), count) for name, count in removed.items() if count > 0]


def _preview(web: WebContext, link: RedisLink, email_id: str) -> ErasureSummary:
    from email_ingestion.app.erasures import new_run, open_eraser  # noqa: PLC0415 - with it come the sinks
    from email_ingestion.erasure.mail_selector import MailSelector  # noqa: PLC0415

    with open_eraser(web.settings, link, web.access.ledger, new_run()) as eraser:
        for _ in eraser.preview(MailSelector(email_ids=(email_id,))):
            pass
        return eraser.summary


def _erase(web: WebContext, link: RedisLink, user: WebUser, email_id: str, job: Job) -> str:
    """Erase, with a connection to the database that waits as long as the command does; return what was removed.

    Raises OperationFailed when some of it is still there, and the errors of the eraser.
    """
    from email_ingestion.app.erasures import new_run, open_eraser, report_erasure  # noqa: PLC0415
    from email_ingestion.erasure.mail_selector import MailSelector  # noqa: PLC0415
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415

    settings, selector = web.settings, MailSelector(email_ids=(email_id,))
    job.begin("erasing", 0)
    with (
        closing(open_ledger(settings.database_url)) as ledger,
        open_eraser(settings, link, ledger, new_run()) as eraser,
        _audited(web, user, "erase", {"run": eraser.name, **selector.describe(), "scrub": False}) as outcome,
    ):
        for done in eraser.erase(selector):
            job.advance(done)
        found = eraser.summary
        outcome |= {"matched": found.matched, "removed": dict(+found.removed)}
        outcome.update(report_erasure(settings, eraser, selector, scrubbed=False))
    report = f"What stays elsewhere, and until when, is in the signed report {outcome['report']}."
    if left := list(found.open_points()):
        raise OperationFailed(f"Not all of it is erased: {'; '.join(left)}. {report}")
    if not found.matched:
        return "There was nothing of it left to erase."
    removed = ", ".join(f"{count:,} {name}" for name, count in _places(found.removed))
    return f"It is erased: {removed}. {report}"


def _audited(
    web: WebContext, user: WebUser, action: str, details: Mapping[str, Any]
) -> AbstractContextManager[dict[str, Any]]:
    return audited_action(web.settings.log_dir, user.audit_record(action, **details))
