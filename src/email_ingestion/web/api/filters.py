"""The filters of `GET /api/v1/emails`, from the query of a request to the conditions of the ledger."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Query, Request

from email_ingestion.ledger.mail_pages import PagePlace
from email_ingestion.ledger.search_filter import SearchFilter
from email_ingestion.web.api_errors import WebError

MAX_LIMIT = 1000
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class MailQuery:
    """What is asked for: words, conditions, how many messages, and where the page before ended."""

    words: str
    only: SearchFilter
    limit: int
    after: PagePlace | None
    names: tuple[str, ...]  # of the filters that are used, for the audit log

    def of_account(self, account: str | None) -> SearchFilter:
        """Return the conditions for mail of this account only, None for that of all."""
        values = {name: getattr(self.only, name) for name in SearchFilter.__slots__}
        return SearchFilter(**{**values, "account": account})


MAX_WORDS, MAX_TEXT, MAX_REPEATED = 4000, 1000, 20  # characters, characters, times
REPEATABLE = ("label", "tag")

Text = Annotated[str | None, Query(max_length=MAX_TEXT)]
Texts = Annotated[list[Annotated[str, Query(max_length=MAX_TEXT)]] | None, Query(max_length=MAX_REPEATED)]
Bytes = Annotated[int | None, Query(ge=0, le=LARGEST)]


def _refuse_unknown_filters(request: Request) -> None:
    refuse_unknown_names(request, _NAMES)


def mail_query(
    _known: Annotated[None, Depends(_refuse_unknown_filters)],
    *,
    q: Annotated[
        str | None,
        Query(
            max_length=MAX_WORDS, description='Words in subject, sender, text, file names: word "a phrase" begin* -not'
        ),
    ] = None,
    sender: Annotated[Text, Query(alias="from", description="Part of the sender's name or address.")] = None,
    to: Annotated[Text, Query(description="Part of a To or Cc name or address.")] = None,
    subject: Annotated[Text, Query(description="Part of the subject; with a `*` the whole.")] = None,
    account: Annotated[Text, Query(description="An account, by its configured name.")] = None,
    label: Annotated[Texts, Query(description="A label it has; may be repeated.")] = None,
    tag: Annotated[Texts, Query(description="A tag that a route gave it; may be repeated.")] = None,
    after: Annotated[Text, Query(description="Received then or later: 2026-01-31, with a time, or 7d.")] = None,
    before: Annotated[Text, Query(description="Received before then.")] = None,
    has_attachment: Annotated[str | None, Query(description="true or false.")] = None,
    filename: Annotated[Text, Query(description="Part of an attachment's name, or a pattern: *.pdf")] = None,
    list_id: Annotated[Text, Query(alias="list", description="Part of a mailing list's List-Id.")] = None,
    bounce: Annotated[str | None, Query(description="true or false: reports of failed delivery.")] = None,
    min_size: Annotated[Bytes, Query(description="Bytes of the raw message, at least.")] = None,
    max_size: Annotated[Bytes, Query(description="Bytes of the raw message, at most.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most messages of a page.")] = 50,
    cursor: Annotated[Text, Query(description="`next` of the page before.")] = None,
) -> MailQuery:
    """Return what a request asks for. Raises WebError 400."""
    only = SearchFilter(
        sender=sender or None,
        recipient=to or None,
        subject=subject or None,
        after=_instant(after, "after"),
        before=_instant(before, "before"),
        labels=tuple(filter(None, label or ())),
        tags=tuple(filter(None, tag or ())),
        account=account or None,
        has_attachment=_answer(has_attachment, "has_attachment"),
        filename=filename or None,
        list_id=list_id or None,
        bounce=_answer(bounce, "bounce"),
        min_size=min_size,
        max_size=max_size,
    )
    given = (q, sender, to, subject, account, label, tag, after, before, has_attachment, filename, list_id, bounce)
    used = (
        name for name, value in zip(FILTERS, (*given, min_size, max_size), strict=True) if value not in (None, "", [])
    )
    return MailQuery((q or "").strip(), only, limit, _place(cursor), tuple(used))


FILTERS = (
    *("q", "from", "to", "subject", "account", "label", "tag", "after", "before", "has_attachment", "filename"),
    *("list", "bounce", "min_size", "max_size"),
)
_NAMES = (*FILTERS, "limit", "cursor")
AskedMail = Annotated[MailQuery, Depends(mail_query)]


def _page_query(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most messages of a page.")] = 50,
    cursor: Annotated[Text, Query(description="`next` of the page before.")] = None,
) -> MailQuery:
    """Return what a request asks for that takes no filters. Raises WebError 400."""
    refuse_unknown_names(request, ("limit", "cursor"))
    return MailQuery("", SearchFilter(), limit, _place(cursor), ())


AskedPage = Annotated[MailQuery, Depends(_page_query)]


def refuse_unknown_names(request: Request, known: tuple[str, ...]) -> None:
    """Raise WebError 400 for a parameter that is not `known`: a misspelt filter would let everything pass.

    So would one that is given twice, of which somebody reads the first and somebody the last.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    for name in dict.fromkeys(given):
        if name not in known:
            rest = f"; there are {', '.join(known)}" if known else ""
            raise WebError(400, f"{name[:40]} is no parameter here{rest}")
        if name not in REPEATABLE and given.count(name) > 1:
            raise WebError(400, f"{name} is given more than once")


def check_lengths(given: Mapping[str, str], repeated: Mapping[str, Sequence[str]]) -> None:
    """Raise WebError 400 for filters of a form that are longer, or more, than those of the API may be."""
    for name, texts in (*((name, (text,)) for name, text in given.items()), *repeated.items()):
        longest = MAX_WORDS if name == "q" else MAX_TEXT
        if any(len(text) > longest for text in texts):
            raise WebError(400, f"{name} has {longest} characters at most")
        if len(texts) > MAX_REPEATED:
            raise WebError(400, f"{name} is given {MAX_REPEATED} times at most")


def _answer(text: str | None, name: str) -> bool | None:
    answers: dict[str, bool | None] = {"": None, "true": True, "1": True, "yes": True}
    answers |= {"false": False, "0": False, "no": False}
    try:
        return answers[(text or "").lower()]
    except KeyError:
        raise WebError(400, f"{name} is true or false") from None


def _instant(text: str | None, name: str) -> datetime | None:
    """Parse a date, a date with a time, or how long ago; without an offset it is UTC."""
    if not text:
        return None
    try:
        if span := re.fullmatch(r"([0-9]{1,6})([smhdw])", text):
            return datetime.now(UTC) - timedelta(**{UNITS[span[2]]: int(span[1])})
        plus_was_blank = re.sub(r" (\d\d:?\d\d)$", r"+\1", text)  # as a URL has it where + was not encoded
        found = datetime.fromisoformat(plus_was_blank if "T" in text or text.count(" ") > 1 else text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        message = f"{name} is a date like 2026-01-31 or 2026-01-31T08:00:00Z, or a span like 7d"
        raise WebError(400, message) from None


def _place(cursor: str | None) -> PagePlace | None:
    if not cursor:
        return None
    try:
        return PagePlace.from_cursor(cursor)
    except ValueError:
        raise WebError(400, "cursor is no `next` of a page") from None
