"""Reads FETCH answers as servers usually write them: one line for a message, or a line and one literal.

imapclient's parser goes through an answer letter by letter, a third of all the CPU time that fetching takes. What is
unusual is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

_LINE = re.compile(rb"\d+ \((.*)\)")
_ITEM = re.compile(
    rb"(?P<name>[A-Z][A-Z0-9.-]*) "
    rb'(?:(?P<number>\d+)|"(?P<text>[^"\\]*)"|\((?P<list>(?:"(?:[^"\\]|\\.)*"|[^()"{}])*)\))(?: |$)'
)
_LISTED = re.compile(rb'"((?:[^"\\]|\\.)*)"|([^\s()"{}]+)')
_LITERAL = re.compile(rb"\d+ \(UID (\d+) (BODY\[\](?:<\d+>)?) \{\d+\}")
_DATE = re.compile(rb"([ \d]\d)-([A-Z][a-z]{2})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-]\d{4})")
_MONTHS = {name: number for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}

Found = dict[int, dict[bytes, Any]]


class _Unusual(Exception):
    """Somebody else must read this."""


def read(answers: Sequence[Any]) -> Found | None:
    """What imapclient's parser would return but for the sequence numbers, or None: it must be asked."""
    found: Found = {}
    try:
        for data in _messages(answers):
            found.setdefault(data.pop(b"UID"), {}).update(data)
    except (_Unusual, KeyError, ValueError):
        return None
    return found


def _messages(answers: Sequence[Any]) -> Iterator[dict[bytes, Any]]:
    rest = iter(answers)
    for answer in rest:
        if isinstance(answer, tuple):
            head = _LITERAL.fullmatch(answer[0])
            if not head or next(rest, None) != b")":
                raise _Unusual
            yield {b"UID": int(head[1]), head[2]: answer[1]}
        elif answer is not None:
            yield _line(answer)


def _line(answer: bytes) -> dict[bytes, Any]:
    line = _LINE.fullmatch(answer)
    if not line:
        raise _Unusual
    said = line[1]
    data, position = {}, 0
    while position < len(said):
        item = _ITEM.match(said, position)
        if not item:
            raise _Unusual
        name, number, text, listed = item.groups()
        data[name] = int(number) if number is not None else _value(name, text, listed)
        position = item.end()
    return data


def _value(name: bytes, text: bytes | None, listed: bytes) -> Any:
    if text is None:
        return _list(listed)
    return _date(text) if name == b"INTERNALDATE" else text


@lru_cache(maxsize=1024)
def _list(items: bytes) -> tuple[bytes, ...]:
    """Most messages have the same few flags and labels."""
    return tuple(_listed(items))


def _listed(items: bytes) -> Iterator[bytes]:
    for quoted, atom in _LISTED.findall(items):
        if atom.isdigit() or atom.upper() == b"NIL":
            raise _Unusual  # imapclient makes numbers of some, and None
        yield atom or re.sub(rb"\\(.)", rb"\1", quoted)


def _date(text: bytes) -> datetime:
    """RFC 3501's date-time, as the server's zone has it."""
    date = _DATE.fullmatch(text)
    if not date:
        raise _Unusual
    day, month, year, hour, minute, second, zone = date.groups()
    return datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second), tzinfo=_zone(zone))


@lru_cache(maxsize=64)
def _zone(text: bytes) -> timezone:
    return timezone(timedelta(hours=int(text[1:3]), minutes=int(text[3:])) * (-1 if text[:1] == b"-" else 1))
