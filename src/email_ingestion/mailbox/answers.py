"""Reads FETCH answers as servers usually write them: one line for a message, or a line and one literal.

imapclient's parser goes through an answer letter by letter, a third of all the CPU time that fetching takes. What is
unusual is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

_LINE = re.compile(rb"\d+ \((.*)\)")
_ITEM = re.compile(
    rb"(?P<name>[A-Z][A-Z0-9.-]*) "
    rb'(?:(?P<number>\d+)|"(?P<text>[^"\\]*)"|\((?P<list>(?:"(?:[^"\\]|\\.)*"|[^()"{}])*)\))(?: |$)'
)
_LISTED = re.compile(rb'"((?:[^"\\]|\\.)*)"|([^\s()"{}]+)')
_LITERAL = re.compile(rb"\d+ \(UID (\d+) (BODY\[\](?:<\d+>)?) \{\d+\}")
_DATE = re.compile(rb"([ \d]\d)-([A-Z][a-z]{2})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)")
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
    data, position = {}, 0
    while position < len(line[1]):
        item = _ITEM.match(line[1], position)
        if not item:
            raise _Unusual
        data[item["name"]] = _value(item)
        position = item.end()
    return data


def _value(item: re.Match[bytes]) -> Any:
    if item["number"] is not None:
        return int(item["number"])
    if item["text"] is None:
        return tuple(_listed(item["list"]))
    return _date(item["text"]) if item["name"] == b"INTERNALDATE" else item["text"]


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
    day, month, year, hour, minute, second, sign, hours, minutes = date.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == b"-" else 1)
    zone = timezone(offset)
    return datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second), tzinfo=zone)
