"""The page of one message: what it says, what came with it, where it went, and who looked at it.

Its HTML is a document of its own (`message_html`), its files are saved and never shown (`downloads`). Every read stands
in the audit log before anything is handed out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from email_ingestion.errors import EmailIngestionError
from email_ingestion.ops.audit_log import read_audit
from email_ingestion.ops.mail_reads import record_read
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.context import WebContext, context_of
from email_ingestion.web.downloads import content_chunks, download, safe_name
from email_ingestion.web.ledger_access import QUICK_SECONDS
from email_ingestion.web.message_html import (
    SANDBOX,
    clean,
    document,
    has_remote_pictures,
    inline_pictures,
    response_headers,
)
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentUser, WebUser

if TYPE_CHECKING:
    from email_ingestion.ledger.conversations import ConversationEntry
    from email_ingestion.ledger.message_views import MessageView
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.records import Attachment

Answer = TypeVar("Answer")
PATH = "/mail/{email_id}"
PATIENT = "patient"
NOT_FOUND, UNAVAILABLE = 404, 503
MAX_SHOWN = 200_000  # characters of a text or a source on the page
READ_SECONDS = 10.0  # for bytes, which may lie in a bucket
PARSE_SECONDS = 5.0
AUDIT_SECONDS = 5.0
MAX_AUDIT = 200  # lines, the newest

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class MessagePage:
    """What the page needs of the database."""

    message: MessageView
    conversation: tuple[ConversationEntry, ...] | None  # None: not known


@router.get(PATH)
async def message(request: Request, user: CurrentUser, email_id: str) -> Response:
    """Show a message; a beginning of an identity leads to the whole."""
    found = await _ask(request, user, lambda ledger: _page(ledger, email_id))
    if isinstance(found, Response):
        return found
    if found is None:
        return await _not_found(request, user, email_id)
    await run_in_threadpool(_record, request, user, email_id, "page")
    return show_message(request, user, found)


def show_message(request: Request, user: WebUser, found: MessagePage) -> Response:
    """Render the page of a message."""
    seen, settings = found.message, context_of(request).settings
    remote = request.query_params.get("remote") == "1"
    return render(
        request,
        "mail_message.html",
        user,
        policy={"frame-src": "'self'"},
        message=seen,
        files=[(part, safe_name(part.filename or "", f"attachment-{part.position}")) for part in seen.attachments],
        conversation=found.conversation,
        text=seen.text[:MAX_SHOWN],
        text_is_cut=len(seen.text) > MAX_SHOWN,
        sandbox=SANDBOX,
        remote=remote,
        has_remote=bool(seen.html and has_remote_pictures(seen.html)),
        sinks=settings.sinks[1:],
        resent=request.query_params.get("resent", ""),
        outcome=request.query_params.get("outcome", ""),
    )


@router.get(PATH + "/html")
async def html(
    request: Request, user: CurrentUser, email_id: str, remote: Annotated[str, Query(max_length=1)] = ""
) -> Response:
    """Answer with the harmless document made from the HTML of a message."""
    web = context_of(request)
    found = await _ask(request, user, lambda ledger: ledger.views.html(email_id))
    if isinstance(found, Response):
        return found
    if found is None:
        return await _not_found(request, user, email_id)
    await run_in_threadpool(_record, request, user, email_id, "html", messages=0)
    inline = {}
    if "cid:" in found.lower():
        parts = await _parts(web, email_id)
        inline = inline_pictures(parts)
    allowed = remote == "1"
    made = await run_in_threadpool(clean, found, inline, remote=allowed)
    return Response(document(made), headers=response_headers(remote=allowed))


async def _parts(web: WebContext, email_id: str) -> tuple[Attachment, ...]:
    """Return the parts of a message; none where it cannot be parsed again just now: its pictures are left out then."""

    def parse() -> tuple[Attachment, ...]:
        entries = web.access.ledger.pages.entries([email_id])
        return web.records.record(entries[0]).attachments if entries else ()

    try:
        return await web.access.within(PARSE_SECONDS, parse, "the parser")
    except (WebError, EmailIngestionError):
        return ()


@router.get(PATH + "/raw")
async def raw(request: Request, user: CurrentUser, email_id: str) -> Response:
    """Answer with the message as its server has it, to be saved."""
    return await _download(request, user, email_id, 0)


@router.get(PATH + "/attachments/{position}")
async def attachment(request: Request, user: CurrentUser, email_id: str, position: int) -> Response:
    """Answer with one attachment, to be saved."""
    return await _download(request, user, email_id, position)


async def _download(request: Request, user: WebUser, email_id: str, position: int) -> Response:
    web = context_of(request)

    def read() -> Response | None:
        ledger = web.access.ledger
        part = ledger.views.attachment(email_id, position) if position else None
        ref = part.content_ref if part else None if position else ledger.raw_ref(email_id)
        if ref is None:
            return None
        chunks = content_chunks(ref, ledger, web.access.blobs)
        _record(request, user, email_id, f"attachment {position}" if part else "raw")
        if part:
            return download(chunks, part.filename, part.content_type, part.size, f"attachment-{position}")
        return download(chunks, f"{email_id.replace(':', '-')}.eml", "message/rfc822", None, "message.eml")

    found = await _within(request, user, READ_SECONDS, read)
    return await _not_found(request, user, email_id) if found is None else found


@router.get(PATH + "/source")
async def source(request: Request, user: CurrentUser, email_id: str) -> Response:
    """Show the beginning of the raw message as text."""
    web = context_of(request)

    def read() -> bytes | None:
        ledger = web.access.ledger
        ref = ledger.raw_ref(email_id)
        if ref is None:
            return None
        head = b""
        for chunk in content_chunks(ref, ledger, web.access.blobs):
            head += chunk[: MAX_SHOWN + 1 - len(head)]
            if len(head) > MAX_SHOWN:
                break
        _record(request, user, email_id, "source")
        return head

    found = await _within(request, user, patience(request, READ_SECONDS), read)
    if isinstance(found, Response):
        return found
    if found is None:
        return await _not_found(request, user, email_id)
    text = found[:MAX_SHOWN].decode("utf-8", "replace")
    return render(
        request, "mail_source.html", user, email_id=email_id, source=text, source_is_cut=len(found) > MAX_SHOWN
    )


@router.get(PATH + "/audit")
async def audit(request: Request, user: CurrentUser, email_id: str) -> Response:
    """Show the lines of the audit log that name a message."""
    web = context_of(request)

    def read() -> list[dict[str, Any]]:
        named = (record for record in read_audit(web.settings.log_dir) if _names(record, email_id))
        return list(named)[-MAX_AUDIT:]

    found = await _within(request, user, patience(request, AUDIT_SECONDS), read, "the audit log")
    if isinstance(found, Response):
        return found
    return render(request, "mail_audit.html", user, email_id=email_id, lines=[_line(each) for each in reversed(found)])


def _names(record: dict[str, Any], email_id: str) -> bool:
    return any(
        email_id == value or (isinstance(value, (list, dict)) and email_id in value) for value in record.values()
    )


def _line(record: dict[str, Any]) -> dict[str, str]:
    what = str(record.get("form") or record.get("sink") or "")
    names = ("timestamp", "user", "via", "action", "result")
    return {name: str(record.get(name, "")) for name in names} | {"what": what}


def _page(ledger: Ledger, email_id: str) -> MessagePage | Response | None:
    found = ledger.views.message(email_id)
    if found is None:
        meant = ledger.mail_search.matching_ids(email_id, 2)
        return RedirectResponse(f"/mail/{meant[0]}", 303) if len(meant) == 1 else None
    try:
        conversation = tuple(islice(ledger.conversations.of_message(email_id), 200))
    except EmailIngestionError:
        return MessagePage(found, None)
    return MessagePage(found, conversation)


def _record(request: Request, user: WebUser, email_id: str, form: str, messages: int = 1) -> None:
    """Write who is about to read the message. Raises ConfigurationError: mail is not read unseen."""
    log_dir, details = context_of(request).settings.log_dir, {"form": form, "from": user.address}
    record_read(log_dir, "web", user.name, "export", messages=messages, email_ids=[email_id], **details)


async def _ask(request: Request, user: WebUser, question: Callable[[Ledger], Answer]) -> Answer | Response:
    access = context_of(request).access
    return await _within(request, user, patience(request, READ_SECONDS), lambda: question(access.ledger))


async def _within(
    request: Request, user: WebUser, seconds: float, read: Callable[[], Answer], whose: str = "the database"
) -> Answer | Response:
    """Return what `read` returns, or a page that says what is not known and why."""
    try:
        return await context_of(request).access.within(seconds, read, whose)
    except WebError as error:
        return _unknown(request, user, error.message, error.status)
    except EmailIngestionError as error:
        return _unknown(request, user, str(error), UNAVAILABLE)


def patience(request: Request, seconds: float) -> float:
    """Return how long this page may take: a page answers at once, unless somebody has chosen to wait for it."""
    return seconds if request.query_params.get(PATIENT) else QUICK_SECONDS


def _unknown(request: Request, user: WebUser, reason: str, status: int) -> Response:
    may_wait = request.method == "GET" and not request.query_params.get(PATIENT)
    url = request.url.include_query_params(**{PATIENT: "1"})
    once_more = f"{url.path}?{url.query}"
    return render(
        request, "mail_unknown.html", user, reason=reason, may_wait=may_wait, once_more=once_more, status=status
    )


async def _not_found(request: Request, user: WebUser, email_id: str) -> Response:
    erased = await _ask(request, user, lambda ledger: ledger.erasure.erased([email_id]))
    if isinstance(erased, Response):
        return erased
    what = "It was erased." if erased else "The search finds what is in the database."
    return render(
        request, "message.html", user, title="Not found", text=f"There is no such message. {what}", status=NOT_FOUND
    )
