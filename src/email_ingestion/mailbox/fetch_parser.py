"""Reads FETCH answers as servers usually write them: one line for a message, or a line and one literal.

imapclient's parser goes through an answer letter by letter, a third of all the CPU time that fetching takes. What is
unusual is left to it.
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
    rb'(\d+|"[^"\\]*"|\([^()"{}]*(?:"(?:[^"\\]|\\.)*"[^()"{}]*)*\))(?: |\Z)'  # a number, a text or a list
)
_LISTED = re.compile(rb'"((?:[^"\\]|\\.)*)"|([^\s()"{}]+)')
_LITERAL = re.compile(rb"\d+ \(UID (\d+) (BODY\[\](?:<\d+>)?) \{\d+\}")
_DATE = re.compile(r"[ \d]\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d [+-]\d{4}", re.ASCII)
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"

Found = dict[int, dict[bytes, Any]]


class _Unusual(Exception):
    """Somebody else must read this."""


def read(answers: Sequence[Any]) -> Found:
    """What FETCH answers say, by UID; raises imapclient's ProtocolError for what is none."""
    found = usual(answers)
    return dict(parse_fetch_response(answers, normalise_times=False)) if found is None else found


def usual(answers: Sequence[Any]) -> Found | None:
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
    items = _ITEM.findall(line[1]) if line else ()
    if not line or sum(len(name) + len(value) + 2 for name, value in items) != len(line[1]) + 1:  # something between
        raise _Unusual
    return {name: _value(name, value) for name, value in items}


def _value(name: bytes, said: bytes) -> Any:
    if said.isdigit():
        return int(said)
    if said.startswith(b"("):
        return _list(said)
    text = said[1:-1]
    return _date(text.decode()) if name == b"INTERNALDATE" else text


@lru_cache(maxsize=1024)
def _list(items: bytes) -> tuple[bytes, ...]:
    """Most messages have the same few flags and labels."""
    return tuple(_listed(items))


def _listed(items: bytes) -> Iterator[bytes]:
    for quoted, atom in _LISTED.findall(items):
        if atom.isdigit() or atom.upper() == b"NIL":
            raise _Unusual  # imapclient makes numbers of some, and None
        yield atom or re.sub(rb"\\(.)", rb"\1", quoted)


def _date(text: str) -> datetime:
    """RFC 3501's date-time, as the server's zone has it."""
    month, between = divmod(_MONTHS.find(text[3:6]), 3)
    if between or not _DATE.fullmatch(text):
        raise _Unusual
    day, year, clock, zone = text[:2].replace(" ", "0"), text[7:11], text[12:20], text[21:]
    return datetime.fromisoformat(f"{year}-{month + 1:02}-{day}T{clock}{zone}")
