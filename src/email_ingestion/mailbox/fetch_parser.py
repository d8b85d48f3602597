"""Parsing of FETCH responses: fast for the usual forms (one line for a message, or a line and one literal).

imapclient's parser reads a response letter by letter, which is a third of all CPU time of a fetch. It still reads
every form that `parse_fast` does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from imapclient.response_parser import parse_fetch_response

_LINE = re.compile(rb"\d+ \((.*)\)")
_ITEM = re.compile(
    rb"([A-Z][A-Z0-9.-]*) "
    rb'(\d+|"[^"\\]*"|\([^()"{}]*(?:"(?:[^"\\]|\\.)*"[^()"{}]*)*\))(?: |\Z)'  # a number, a string or a list
)
_LIST_ITEM = re.compile(rb'"((?:[^"\\]|\\.)*)"|([^\s()"{}]+)')
_LITERAL = re.compile(rb"\d+ \(UID (\d+) (BODY\[\](?:<\d+>)?) \{\d+\}")
_DATE = re.compile(r"[ \d]\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d [+-]\d{4}", re.ASCII)
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"

FetchData = dict[int, dict[bytes, Any]]  # by UID: values by item name, as b"RFC822.SIZE"


class _UnknownForm(Exception):
    """imapclient's parser must read this response."""


def parse(responses: Sequence[Any]) -> FetchData:
    """Parse FETCH responses as imaplib stores them. Raises imapclient's ProtocolError for malformed ones."""
    found = parse_fast(responses)
    return dict(parse_fetch_response(responses, normalise_times=False)) if found is None else found


def parse_fast(responses: Sequence[Any]) -> FetchData | None:
    """Parse responses of the usual forms; return None when one has another form.

    The result is imapclient's, without sequence numbers.
    """
    found: FetchData = {}
    try:
        for data in _messages(responses):
            found.setdefault(data.pop(b"UID"), {}).update(data)
    except (_UnknownForm, KeyError, ValueError):
        return None
    return found


def _messages(responses: Sequence[Any]) -> Iterator[dict[bytes, Any]]:
    rest = iter(responses)
    for response in rest:
        if isinstance(response, tuple):
            head = _LITERAL.fullmatch(response[0])
            if not head or next(rest, None) != b")":
                raise _UnknownForm
            yield {b"UID": int(head[1]), head[2]: response[1]}
        elif response is not None:
            yield _parse_line(response)


def _parse_line(response: bytes) -> dict[bytes, Any]:
    line = _LINE.fullmatch(response)
    items = _ITEM.findall(line[1]) if line else ()
    if not line or sum(len(name) + len(value) + 2 for name, value in items) != len(line[1]) + 1:  # something between
        raise _UnknownForm
    return {name: _parse_value(name, value) for name, value in items}


def _parse_value(name: bytes, value: bytes) -> Any:
    if value.isdigit():
        return int(value)
    if value.startswith(b"("):
        return _parse_list(value)
    text = value[1:-1]
    return _parse_date(text.decode()) if name == b"INTERNALDATE" else text


@lru_cache(maxsize=1024)
def _parse_list(items: bytes) -> tuple[bytes, ...]:
    """Cached: most messages have the same few flags and labels."""
    return tuple(_list_items(items))


def _list_items(items: bytes) -> Iterator[bytes]:
    for quoted, atom in _LIST_ITEM.findall(items):
        if atom.isdigit() or atom.upper() == b"NIL":
            raise _UnknownForm  # imapclient turns some of them into numbers, and NIL into None
        yield atom or re.sub(rb"\\(.)", rb"\1", quoted)


def _parse_date(text: str) -> datetime:
    """Parse RFC 3501's date-time; the result has the server's time zone."""
    month, remainder = divmod(_MONTHS.find(text[3:6]), 3)
    if remainder or not _DATE.fullmatch(text):
        raise _UnknownForm
    day, year, clock, zone = text[:2].replace(" ", "0"), text[7:11], text[12:20], text[21:]
    return datetime.fromisoformat(f"{year}-{month + 1:02}-{day}T{clock}{zone}")
