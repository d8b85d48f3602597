"""The page Mail: search delivered mail by words and filters, newest first, a page at a time."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from email_ingestion.errors import EmailIngestionError, PermanentError
from email_ingestion.ops.mail_reads import record_read
from email_ingestion.web.api.filters import FILTERS, REPEATABLE, MailQuery, check_lengths, mail_query
from email_ingestion.web.api_errors import REFUSED_VALUE, WebError
from email_ingestion.web.context import WebContext, context_of
from email_ingestion.web.downloads import safe_name
from email_ingestion.web.ledger_access import COUNT_SECONDS, QUICK_SECONDS, SEARCH_SECONDS
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentUser, WebUser

if TYPE_CHECKING:
    from email_ingestion.ledger.mail_pages import MailCount
    from email_ingestion.ledger.search import Term
    from email_ingestion.ledger.search_hits import Hit
    from email_ingestion.ledger.store import Ledger

PATH = "/mail"
PAGE = 20  # messages
MAX_SHOWN, MAX_FILES = 300, 10  # characters of a subject or a sender, names of attachments
MORE, ALL_COUNTED = "more than", "more than 1,000"
OWN = ("cursor", "first", "patient")  # beside the filters
BAD_REQUEST, UNAVAILABLE = 400, 503
_SIZE = re.compile(r"([0-9]+(?:[.][0-9]+)?)\s*([kKmMgG]?)(?:i?[bB])?")
_FACTORS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class FoundMail:
    """One page of hits."""

    hits: Sequence[Hit]
    terms: Sequence[Term]
    after: str | None  # the cursor of the next page


@router.get(PATH)
async def search(request: Request, user: CurrentUser) -> Response:
    """Show the form, and what is found with it; without any filter the newest mail."""
    web = context_of(request)
    given = {name: request.query_params.get(name, "").strip() for name in (*FILTERS, *OWN)}
    first = int(given["first"]) if given["cursor"] and re.fullmatch(r"[0-9]{1,9}", given["first"]) else 1
    found, count, problem, status = None, "", "", 200
    seconds = SEARCH_SECONDS if given["patient"] else QUICK_SECONDS
    until = time.monotonic() + seconds
    try:
        asked = _asked(request, given)
        found = await web.access.within(seconds, lambda: _find(web.access.ledger, asked, seconds), "the database")
        await run_in_threadpool(_record, request, user, asked, found)
        count = await _count(web, asked, found, first, until, patient=bool(given["patient"]))
    except WebError as error:
        problem, status = error.message, error.status
    except PermanentError:
        problem, status = REFUSED_VALUE, BAD_REQUEST
    except EmailIngestionError as error:
        problem, status = str(error), UNAVAILABLE
    return render(
        request,
        "mail_search.html",
        user,
        status=status,
        given=given,
        filtered=any(given[name] for name in FILTERS if name != "q"),
        accounts=[(account.name, account.name) for account in web.settings.all_accounts],
        found=found,
        results=[_result(hit, found.terms) for hit in found.hits] if found else [],
        range=_range(found, first, count) if found else "",
        uncounted=bool(found) and (not count or (count.startswith(MORE) and count != ALL_COUNTED)),
        problem=problem,
        patient=_address(given, patient="1", cursor=given["cursor"], first=given["first"]),
        may_wait=not given["patient"],
        unavailable=status == UNAVAILABLE,
        next=_address(given, cursor=found.after, first=str(first + PAGE)) if found and found.after else None,
        newest=_address(given) if given["cursor"] else None,
    )


def _asked(request: Request, given: Mapping[str, str]) -> MailQuery:
    """Return what the form asks for. Raises WebError 400."""
    params = request.query_params
    check_lengths(given, {name: params.getlist(name) for name in REPEATABLE})
    return mail_query(
        None,
        q=given["q"],
        sender=given["from"],
        to=given["to"],
        subject=given["subject"],
        account=given["account"],
        label=[each for each in params.getlist("label") if each.strip()],
        tag=[each for each in params.getlist("tag") if each.strip()],
        after=given["after"],
        before=given["before"],
        has_attachment=given["has_attachment"],
        filename=given["filename"],
        list_id=given["list"],
        bounce=given["bounce"],
        min_size=_bytes(given["min_size"], "min_size"),
        max_size=_bytes(given["max_size"], "max_size"),
        limit=PAGE,
        cursor=given["cursor"] or None,
    )


def _bytes(text: str, name: str) -> int | None:
    """Parse a size such as 5000, 20k or 1.5 MB."""
    if not text:
        return None
    match = _SIZE.fullmatch(text)
    if match is None or len(text) > 18:  # noqa: PLR2004 - digits of the largest number of SQL
        raise WebError(BAD_REQUEST, f"{name} is a size like 5000, 20k or 1.5 MB")
    return min(int(float(match[1]) * _FACTORS[match[2].lower()]), 2**63 - 1)


def _find(ledger: Ledger, asked: MailQuery, seconds: float) -> FoundMail:
    from email_ingestion.ledger.mail_pages import PagePlace  # noqa: PLC0415 - with it comes SQLAlchemy
    from email_ingestion.ledger.search import parse  # noqa: PLC0415

    ids = ledger.pages.ids(asked.words, asked.only, PAGE + 1, asked.after, seconds=seconds)
    hits = ledger.mail_search.shown(ids[:PAGE], asked.words)
    after = PagePlace(hits[-1].date, hits[-1].email_id).cursor if hits and len(ids) > PAGE else None
    return FoundMail(hits, parse(asked.words), after)


async def _count(
    web: WebContext, asked: MailQuery, found: FoundMail, first: int, until: float, *, patient: bool
) -> str:
    """Return how many there are, or more than how many; nothing where that is not known."""
    shown = first + len(found.hits) - 1
    if found.after is None:
        return f"{shown:,}"
    left = until - time.monotonic() if patient else min(COUNT_SECONDS, until - time.monotonic())
    seconds = max(0.1, left)

    def count() -> MailCount:
        return web.access.ledger.pages.count(asked.words, asked.only, seconds=seconds)

    try:
        total = await web.access.within(seconds + 0.1, count, "the database")
    except (WebError, EmailIngestionError):
        return ""
    return f"{total.number:,}" if total.is_exact else f"{MORE} {max(total.number, shown):,}"


def _record(request: Request, user: WebUser, asked: MailQuery, found: FoundMail) -> None:
    ids = [hit.email_id for hit in found.hits]
    log_dir = context_of(request).settings.log_dir
    details = {"from": user.address, "filters": list(asked.names)}
    record_read(log_dir, "web", user.name, "search", messages=len(ids), email_ids=ids, **details)


def _range(found: FoundMail, first: int, count: str) -> str:
    """Return which of how many are shown."""
    if not found.hits:
        return "No mail is found" if first == 1 else "There is no more"
    return f"{first:,}–{first + len(found.hits) - 1:,}" + (f" of {count}" if count else "")  # noqa: RUF001 - a range


def _address(given: Mapping[str, str], **further: str | None) -> str:
    kept = {name: given[name] for name in FILTERS if given[name]}
    return f"{PATH}?{urlencode({**kept, **{name: value for name, value in further.items() if value}})}"


def _result(hit: Hit, terms: Sequence[Term]) -> dict[str, Any]:
    names = [list(highlighted(safe_name(name, "without a name"), terms)) for name in hit.attachments if name]
    names.sort(key=lambda parts: not any(is_hit for _, is_hit in parts))  # what was looked for is among the first
    return {
        "email_id": hit.email_id,
        "date": hit.date,
        "sender": list(highlighted(_cut(hit.from_name or hit.from_addr), terms)) or [("(no sender)", False)],
        "subject": list(highlighted(_cut(hit.subject), terms)) or [("(no subject)", False)],
        "snippet": list(highlighted(hit.snippet, terms)),
        "attachments": names[:MAX_FILES],
        "further": len(names[MAX_FILES:]),
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def highlighted(text: str, terms: Sequence[Term]) -> Iterator[tuple[str, bool]]:
    """Yield the text in parts, each with whether it is one of the words looked for, as the search compares them."""
    parts = [_pattern(term) for term in terms if not term.excluded]
    folded, origin = _fold(text)
    position = 0
    for match in re.finditer("|".join(filter(None, parts)), folded) if any(parts) else ():
        start, end = origin[match.start()], origin[match.end() - 1] + 1
        if start < position:
            continue
        if start > position:
            yield text[position:start], False
        yield text[start:end], True
        position = end
    if position < len(text):
        yield text[position:], False


def _pattern(term: Term) -> str:
    words = re.findall(r"\w+", _fold(term.words)[0])
    return r"(?<!\w)" + r"\W+".join(map(re.escape, words)) + ("" if term.prefix else r"(?!\w)") if words else ""


def _fold(text: str) -> tuple[str, list[int]]:
    """Return a text without case and diacritics, and from which of its characters each of these comes."""
    folded: list[str] = []
    origin: list[int] = []
    for position, character in enumerate(text):
        for each in unicodedata.normalize("NFD", character).lower():
            if not unicodedata.combining(each):
                folded.append(each)
                origin.append(position)
    return "".join(folded), origin
