"""Read the fields about a message's origin: mailing list, automatic mail, priority, Gmail's authentication results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Final

from email_ingestion.parsing import limits
from email_ingestion.records import NORMAL_PRIORITY, AuthenticationResults, MailingList

Values = Mapping[str, list[str]]  # decoded, by lower-case name

_URI: Final = re.compile(r"<\s*([^<>\s]{1,2000})\s*>")
_LIST_ID: Final = re.compile(r"<\s*([^<>\s]{1,255})\s*>")
_KEYWORD: Final = re.compile(r"[a-z-]{1,40}")
_PRIORITIES: Final = {"high": 7, "urgent": 7, "1": 7, "2": 7, "normal": 5, "3": 5, "low": 3, "non-urgent": 3} | {
    "4": 3,
    "5": 3,
}
_GMAIL: Final = "mx.google.com"  # the authserv-id of the Gmail that receives
# A quote inside a comment opens nothing, but nobody has written one: at worst a verdict is missing.
_PIECE: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|\\.|[()]|[^"\\()]++|\\', re.DOTALL)
_METHOD: Final = re.compile(r"(spf|dkim|dmarc)\s*=\s*([a-z]{1,20})")
# RFC 8601, section 2.7; `hardfail` is an old name that some still write.
_RESULTS: Final = frozenset(
    ("none", "pass", "fail", "policy", "neutral", "softfail", "hardfail", "temperror", "permerror")
)


def parse_mailing_list(values: Values) -> MailingList | None:
    """Read the List-… fields (RFC 2919, RFC 2369, RFC 8058); None when there are none."""
    if not any(name.startswith("list-") for name in values):
        return None
    found = _LIST_ID.search(_first(values, "list-id"))
    return MailingList(
        list_id=found[1] if found else _first(values, "list-id") or None,
        post=_uris(values, "list-post"),
        subscribe=_uris(values, "list-subscribe"),
        unsubscribe=_uris(values, "list-unsubscribe"),
        one_click=_first(values, "list-unsubscribe-post").lower() == "list-unsubscribe=one-click",
        archive=_uris(values, "list-archive"),
        owner=_uris(values, "list-owner"),
        help=_uris(values, "list-help"),
    )


def parse_auto_submitted(values: Values) -> str | None:
    """Return the keyword of Auto-Submitted (RFC 3834, section 5); None for `no`."""
    keyword = _KEYWORD.match(_first(values, "auto-submitted").lower())
    return keyword[0] if keyword and keyword[0] != "no" else None


def is_auto_reply(values: Values) -> bool:
    """Tell whether a machine answered: by RFC 3834, or by the fields that programs used before it."""
    return (
        parse_auto_submitted(values) == "auto-replied"
        or bool(_first(values, "x-autoreply") or _first(values, "x-autorespond"))
        or _first(values, "precedence").lower() == "auto_reply"
    )


def parse_priority(values: Values) -> int:
    """Return the sender's priority as 3, 5 or 7, from the fields of RFC 2156 or of older programs."""
    for name in ("importance", "priority", "x-priority", "x-msmail-priority"):
        word = _first(values, name).lower().partition(" ")[0]
        if word in _PRIORITIES:
            return _PRIORITIES[word]
    return NORMAL_PRIORITY


def parse_authentication_results(values: Values) -> AuthenticationResults | None:
    """Read the topmost Authentication-Results field (RFC 8601) if Gmail wrote it; None otherwise.

    The fields below it came with the message: anybody may have written them. Of several signatures, one that passes
    counts.
    """
    server, _, results = _without_comments(_first(values, "authentication-results")).partition(";")
    if server.split(None, 1)[:1] != [_GMAIL]:
        return None
    found: dict[str, str] = {}
    for result in results.lower().split(";"):
        match = _METHOD.match(result.strip())
        if match and match[2] in _RESULTS and (match[1] not in found or match[2] == "pass"):
            found[match[1]] = match[2]
    return AuthenticationResults(found.get("spf"), found.get("dkim"), found.get("dmarc"))


def _first(values: Values, name: str) -> str:
    return next(iter(values.get(name, ())), "")[: limits.LIST_CHARS]


def _uris(values: Values, name: str) -> tuple[str, ...]:
    return tuple(match[1] for match in islice(_URI.finditer(_first(values, name)), limits.LIST_URIS))


def _without_comments(value: str) -> str:
    """Remove comments and quoted strings, which may contain a semicolon and a result."""
    kept: list[str] = []
    depth = 0
    for match in _PIECE.finditer(value):
        piece = match[0]
        if piece == "(" or (piece == ")" and depth):
            depth += 1 if piece == "(" else -1
        elif not depth and not piece.startswith('"'):
            kept.append(piece)
    return "".join(kept)
