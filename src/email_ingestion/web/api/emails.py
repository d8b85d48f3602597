"""`/api/v1/emails` and `/api/v1/threads`: delivered mail, and every read of it in the audit log."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response

from email_ingestion.email_json import as_json
from email_ingestion.identity import MIN_PART
from email_ingestion.ledger.mail_pages import PageEntry, PagePlace
from email_ingestion.ledger.store import content_of
from email_ingestion.ops.mail_reads import ReadAction, record_read
from email_ingestion.web.api.answers import ERRORS, EmailAnswer, PageAnswer, page_answer
from email_ingestion.web.api.authorization import AnyCaller, Caller, account_of
from email_ingestion.web.api.filters import AskedMail, AskedPage
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.context import WebContext, context_of
from email_ingestion.web.ledger_access import COUNT_SECONDS, SEARCH_SECONDS

NO_CONTENTS = -1  # bytes: no attachment is so small
CONTENT_BYTES = 262_144  # of an attachment that still travels inside a record
MESSAGE_TYPE = "message/rfc822"
BYTES_TYPE = "application/octet-stream"
# What a browser might run, whatever else says that it must not: the sender chose the type.
ACTIVE_TYPE = re.compile(r"html|xml|svg|script|css|flash|java|pdf\+|x-msdownload", re.IGNORECASE)
PLAIN_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}/[a-z0-9][a-z0-9.+-]{0,100}", re.IGNORECASE)
FILE_HEADERS = {"Content-Security-Policy": "default-src 'none'; sandbox", "X-Content-Type-Options": "nosniff"}
THREAD = re.compile(r"[0-9]{1,20}")

EmailId = Annotated[str, Path(max_length=512, description="An identity, or a beginning that means one message only.")]
router = APIRouter(prefix="/api/v1", tags=["mail"], responses=ERRORS)


@router.get("/emails", response_model=None, responses={200: {"model": PageAnswer}})
async def emails(request: Request, asked: AskedMail, caller: AnyCaller) -> Response:
    """Delivered mail, newest first, a page at a time; `total` is null above 1,000, and where counting takes too long.

    The items are records without the contents of attachments. A page may be shorter than `limit` though `next` is not
    null: where messages are large.
    """
    web = context_of(request)
    only = asked.of_account(caller.allowed_account(asked.only.account))

    def read() -> dict[str, Any]:
        pages = web.access.ledger.pages
        entries = pages.page(asked.words, only, asked.limit + 1, asked.after, seconds=SEARCH_SECONDS)
        items = _records(web, caller, entries[: asked.limit], "search", filters=list(asked.names))
        count = pages.count(asked.words, only, seconds=COUNT_SECONDS)
        return page_answer(items, _next(entries, len(items)), count.number if count.is_exact else None)

    return JSONResponse(await web.access.within(SEARCH_SECONDS, read, "the database"))


@router.get("/emails/{email_id}", response_model=None, responses={200: {"model": EmailAnswer}})
async def email(request: Request, email_id: EmailId, caller: AnyCaller) -> Response:
    """The record of a message; the contents of attachments of more than 256 KiB are null in it."""
    web = context_of(request)

    def read() -> dict[str, Any]:
        entry = find_message(web, caller, email_id)
        record = web.records.record(entry)
        _audit(web, caller, "export", [entry.email_id])
        return as_json(record, CONTENT_BYTES)

    return JSONResponse(await web.access.within(SEARCH_SECONDS, read, "the database"))


@router.get("/emails/{email_id}/raw", response_model=None, responses={200: {"content": {MESSAGE_TYPE: {}}}})
async def raw(request: Request, email_id: EmailId, caller: AnyCaller) -> Response:
    """The message as its server has it, to the byte."""
    web = context_of(request)

    def read() -> Response:
        entry = find_message(web, caller, email_id)
        data = web.records.raw(entry)
        _audit(web, caller, "export", [entry.email_id])
        return file_answer(data, f"{entry.email_id.replace(':', '-')}.eml", MESSAGE_TYPE)

    return await web.access.within(SEARCH_SECONDS, read, "the database")


@router.get(
    "/emails/{email_id}/attachments/{position}", response_model=None, responses={200: {"content": {BYTES_TYPE: {}}}}
)
async def attachment(request: Request, email_id: EmailId, position: int, caller: AnyCaller) -> Response:
    """An attachment, decoded; its position, from 1 on, stands in the record."""
    web = context_of(request)

    def read() -> Response:
        entry = find_message(web, caller, email_id)
        inside = 1 <= position < 2**31
        found = web.access.ledger.views.attachment(entry.email_id, position) if inside else None
        if found is None:
            raise WebError(404, "this message has no attachment of that position")
        data = content_of(found.content_ref, web.access.ledger, web.access.blobs)
        _audit(web, caller, "export", [entry.email_id], attachment=position)
        return file_answer(data, found.filename or f"attachment-{position}", found.content_type)

    return await web.access.within(SEARCH_SECONDS, read, "the database")


@router.get("/threads/{thread_id}", response_model=None, responses={200: {"model": PageAnswer}})
async def thread(
    request: Request,
    thread_id: Annotated[
        str, Path(max_length=512, description="A `gm_thrid`, or the identity of one of its messages.")
    ],
    asked: AskedPage,
    caller: AnyCaller,
) -> Response:
    """A conversation, oldest message first: Gmail's thread, else the messages that name each other in References."""
    web = context_of(request)

    def read() -> dict[str, Any]:
        ids = _conversation(web, caller, thread_id)
        start = ids.index(asked.after.email_id) + 1 if asked.after and asked.after.email_id in ids else 0
        entries = web.access.ledger.pages.entries(ids[start : start + asked.limit + 1])
        items = _records(web, caller, entries[: asked.limit], "export")
        return page_answer(items, _next(entries, len(items)), len(ids))

    return JSONResponse(await web.access.within(SEARCH_SECONDS, read, "the database"))


def find_message(web: WebContext, caller: Caller, part: str) -> PageEntry:
    """Return the message that `part` means among those the caller may see. Raises WebError 403, 404 or 409."""
    caller.allowed_account(account_of(part))
    ledger = web.access.ledger
    found = [part] if ledger.known_ids([part]) else []
    if not found and len(part) >= MIN_PART:
        found = ledger.mail_search.matching_ids(part, account=caller.account)
    if len(found) > 1:
        raise WebError(409, f"this may mean {len(found):,} messages: give more of the one")
    entry = next(iter(ledger.pages.entries(found)), None)
    if entry is None or caller.account not in {None, entry.facts.envelope.account}:
        raise WebError(404, f"there is no such message; beginnings of {MIN_PART} characters or more are taken too")
    return entry


def file_answer(data: bytes, name: str, content_type: str) -> Response:
    """Return bytes that a sender chose, to be saved and never shown."""
    passive = PLAIN_TYPE.fullmatch(content_type) and not ACTIVE_TYPE.search(content_type)
    headers = {**FILE_HEADERS, "Content-Disposition": _disposition(name)}
    return Response(data, headers=headers, media_type=content_type.lower() if passive else BYTES_TYPE)


def _conversation(web: WebContext, caller: Caller, thread_id: str) -> list[str]:
    conversations = web.access.ledger.conversations
    if THREAD.fullmatch(thread_id):
        of_gmail = conversations.of_thread(int(thread_id), caller.account)
        if of_gmail:
            return of_gmail
    entry = find_message(web, caller, thread_id)
    return [each.email_id for each in conversations.of_message(entry.email_id)]


def _records(
    web: WebContext, caller: Caller, entries: Sequence[PageEntry], action: ReadAction, **details: Any
) -> list[dict[str, Any]]:
    """Return the records of the first of these messages, after writing down who reads them."""
    records = web.records.page(entries)
    _audit(web, caller, action, [record.email_id for record in records], **details)
    return [as_json(record, NO_CONTENTS) for record in records]


def _audit(web: WebContext, caller: Caller, action: ReadAction, email_ids: list[str], **details: Any) -> None:
    log_dir = web.settings.log_dir
    record_read(log_dir, "api", caller.name, action, messages=len(email_ids), email_ids=email_ids, **details)


def _next(entries: Sequence[PageEntry], shown: int) -> str | None:
    place: PagePlace | None = entries[shown - 1].place if 0 < shown < len(entries) else None
    return place.cursor if place else None


def _disposition(name: str) -> str:
    """Return the header that makes a browser save a file under its name, without folders (RFC 6266)."""
    letters = "".join(" " if unicodedata.category(each)[0] == "C" else each for each in name)
    clean = re.sub(r'[\\/:*?"<>|]', "_", letters).strip(" .")[:150] or "file"
    ascii_name = clean.encode("ascii", "replace").decode().replace("?", "_")
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(clean, safe='')}"
