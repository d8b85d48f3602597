"""`/api/v1/emails`: delivered mail."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from email_ingestion.email_json import as_json
from email_ingestion.ops.mail_reads import record_read
from email_ingestion.web.api.authorization import AnyCaller
from email_ingestion.web.api.filters import AskedMail, page_answer
from email_ingestion.web.context import context_of
from email_ingestion.web.ledger_access import SEARCH_SECONDS

NO_CONTENTS = -1  # bytes: no attachment is so small
router = APIRouter(prefix="/api/v1", tags=["mail"])


@router.get("/emails")
async def emails(request: Request, asked: AskedMail, caller: AnyCaller) -> dict[str, Any]:
    """Delivered mail, newest first, a page at a time; `total` is null above 1,000.

    The items are records without the contents of attachments. A page may be shorter than `limit` though `next` is not
    null: where messages are large.
    """
    web = context_of(request)
    only = asked.of_account(caller.allowed_account(asked.only.account))

    def read() -> dict[str, Any]:
        pages = web.access.ledger.pages
        entries = pages.page(asked.words, only, asked.limit, asked.after)
        total = pages.count(asked.words, only)
        records = web.records.page(entries)
        more = len(records) < len(entries) or len(entries) == asked.limit
        after = entries[len(records) - 1].place.cursor if records and more else None
        found = [record.email_id for record in records]
        log_dir, names = web.settings.log_dir, list(asked.names)
        record_read(log_dir, "api", caller.name, "search", messages=len(found), email_ids=found, filters=names)
        return page_answer([as_json(record, NO_CONTENTS) for record in records], after, total)

    return await web.access.within(SEARCH_SECONDS, read, "the database")
