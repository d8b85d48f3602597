"""The part of Gmail's search language that X-GM-RAW is used for: operators, words and negation, without OR.

Known: `label:` `in:` `is:` `has:attachment` `from:` `to:` `subject:` `rfc822msgid:` `larger:` `smaller:`
`after:` `before:`, plain words and quoted phrases, each with a leading minus.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

from gmail_sandbox import folders
from gmail_sandbox.message import Message, MessageLocation
from gmail_sandbox.searchable_text import SearchableText

Query: TypeAlias = Callable[[Message, SearchableText], bool]

_TERM = re.compile(r'(-?)(?:([a-z0-9]+):)?(?:"([^"]*)"|(\S+))', re.IGNORECASE)
_UNITS = {"k": 1024, "m": 1024**2}
_PLACES = {
    "inbox": folders.INBOX,
    "sent": folders.SENT,
    "drafts": folders.DRAFT,
    "draft": folders.DRAFT,
    "important": folders.IMPORTANT,
    "starred": folders.STARRED,
}


def parse(text: str) -> Query:
    """Return a test for messages that match the query."""
    terms = [_term(*match.groups()) for match in _TERM.finditer(text)]
    return lambda message, content: all(term(message, content) for term in terms)


def _term(minus: str, operator: str | None, phrase: str | None, word: str | None) -> Query:
    value = phrase if phrase is not None else word or ""
    query = _operator((operator or "").lower(), value)
    return (lambda message, content: not query(message, content)) if minus else query


def _operator(name: str, value: str) -> Query:  # noqa: PLR0911 (one line per operator)
    folded = value.casefold()
    match name:
        case "":
            return lambda _message, content: folded in content.text()
        case "from" | "to" | "cc" | "subject":
            return lambda _message, content: folded in content.header(name)
        case "label":
            return _label(folded)
        case "in" | "is":
            return _place(folded)
        case "has":
            return (lambda _m, content: content.has_attachment()) if folded == "attachment" else _never
        case "rfc822msgid":
            return lambda message, _content: message.message_id.strip("<>") == value.strip("<>")
        case "larger" | "smaller":
            return _size(name, folded)
        case "after" | "before":
            return _when(name, value)
        case _:
            literal = f"{name}:{folded}"
            return lambda _message, content: literal in content.text()


def _never(_message: Message, _content: SearchableText) -> bool:
    return False


def _hyphenated(label: str) -> str:
    """Spell a label as the search box does: `Work/Project x` is `work-project-x`."""
    return re.sub(r"[ /&]", "-", label.removeprefix("\\").casefold())


def _label(value: str) -> Query:
    label_name = _hyphenated(value)
    return lambda message, _content: any(_hyphenated(label) == label_name for label in message.labels)


def _place(value: str) -> Query:
    match value:
        case "unread" | "unseen":
            return lambda message, _content: "\\Seen" not in message.flags
        case "read":
            return lambda message, _content: "\\Seen" in message.flags
        case "anywhere":
            return lambda _message, _content: True
        case "spam" | "trash":
            return lambda message, _content: message.location is MessageLocation(value)
        case _:
            label = _PLACES.get(value)
            return (lambda message, _content: label in message.labels) if label else _label(value)


def _size(name: str, value: str) -> Query:
    match = re.fullmatch(r"(\d+)([km]?)b?", value)
    if match is None:
        return _never
    limit = int(match[1]) * _UNITS.get(match[2], 1)
    if name == "larger":
        return lambda message, _content: message.size > limit
    return lambda message, _content: message.size < limit


def _when(name: str, value: str) -> Query:
    try:
        year, month, day = (int(part) for part in re.split(r"[/-]", value))
        limit = datetime(year, month, day, tzinfo=UTC).timestamp() * 1000
    except ValueError:
        return _never
    if name == "after":
        return lambda message, _content: message.internaldate >= limit
    return lambda message, _content: message.internaldate < limit
