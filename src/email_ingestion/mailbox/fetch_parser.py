"""Parsing of FETCH responses: fast for the usual forms (one line for a message, or a line and one literal).

imapclient's parser reads a response letter by letter, which is a third of all CPU time of a fetch. It still reads
every form that `parse_fast` does not know. What neither can read is searched for the items we ask for: one message
with a flag like `Junk(1` must keep no other from being read, nor itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from imapclient.exceptions import ProtocolError
from imapclient.response_parser import parse_fetch_response

_LINE = re.compile(rb"\d+ \((.*)\)")
_ITEM = re.compile(
    rb"([A-Z][A-Z0-9.-]{0,40}) "
    rb'(\d+|"[^"\\]*"|\([^()"{}]*(?:"(?:[^"\\]|\\.)*"[^()"{}]*)*\))(?: |\Z)'  # a number, a string or a list
)
_LIST_ITEM = re.compile(rb'"((?:[^"\\]|\\.)*)"|([^\s()"{}]+)')
_LITERAL = re.compile(rb"\d+ \(UID (\d+) (BODY\[\](?:<\d+>)?) \{\d+\}")
_DATE = re.compile(r"[ \d]\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d [+-]\d{4}", re.ASCII)
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
# The beginnings of the items we ask for, in a response that no parser reads.
_WANTED = re.compile(
    rb"(?:(?<=[ (])|\A)"
    rb"(UID|RFC822\.SIZE|INTERNALDATE|FLAGS|X-GM-MSGID|X-GM-THRID|X-GM-LABELS|MODSEQ|BODY\[\](?:<\d+>)?) ",
    re.IGNORECASE,
)
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_LITERAL_END = re.compile(rb"\{\d{1,18}\}\Z")
_SALVAGED_LIST_ITEM = re.compile(rb'"((?:[^"\\]|\\.)*)"(?=[\s)]|\Z)|([^\s"]\S*|")')
_CLEAN_FLAGS = re.compile(rb'\([^()"{}%*]*\)')

# A body is a string or NIL (RFC 3501, section 9), and imapclient takes an atom for one too.
_ATOM_AS_BODY = re.compile(rb"[ (]BODY[.A-Z]{0,9}\[\][<>.\d]{0,50} +(?![\"{\d\s]|NIL\b)", re.IGNORECASE)

LONGEST_ODD_BYTES = 64 * 1024  # without literals: imapclient takes 10 s for a megabyte of it

SALVAGED_FLAGS = b"SALVAGED-FLAGS"  # set in the data of a message whose flags are no list that RFC 3501 knows

FetchData = dict[int, dict[bytes, Any]]  # by UID: values by item name, as b"RFC822.SIZE"


class _UnknownForm(Exception):
    """imapclient's parser must read this response."""


def parse(responses: Sequence[Any]) -> FetchData:
    """Parse FETCH responses as imaplib stores them; responses without a UID, and those without sense, are left out."""
    found = parse_fast(responses)
    if found is not None:
        return found
    found = {}
    for response in _split(responses):
        for uid, data in _parse_odd(response).items():
            _add(found, uid, data)
    return found


def parse_fast(responses: Sequence[Any]) -> FetchData | None:
    """Parse responses of the usual forms; return None when one has another form.

    The result is imapclient's, without sequence numbers.
    """
    found: FetchData = {}
    try:
        for data in _messages(responses):
            _add(found, data.pop(b"UID"), data)
    except (_UnknownForm, KeyError, ValueError):
        return None
    return found


def _add(found: FetchData, uid: int, data: dict[bytes, Any]) -> None:
    """Add what came for a message; of a body that comes twice the longer one counts: some send it once more, empty."""
    known = found.setdefault(uid, data)
    if known is not data:
        shorter = [
            name
            for name, value in data.items()
            if name.startswith(b"BODY[") and _length(value) < _length(known.get(name))
        ]
        known.update((name, value) for name, value in data.items() if name not in shorter)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, bytes) else 0


def _split(responses: Sequence[Any]) -> Iterator[list[Any]]:
    """Cut into single responses: literals and what stands before them, then the last line."""
    response: list[Any] = []
    for part in responses:
        if part is None:
            continue
        response.append(part)
        if isinstance(part, bytes):
            yield response
            response = []


def _parse_odd(response: Sequence[Any]) -> FetchData:
    """Parse one response with imapclient, and by a search for items where that fails."""
    found = parse_fast(response)
    if found is not None:
        return found
    texts = [part[0] if isinstance(part, tuple) else part for part in response]
    if sum(map(len, texts)) > LONGEST_ODD_BYTES or any(map(_ATOM_AS_BODY.search, texts)):
        return _by_uid([_salvage(response)])
    try:
        parsed = parse_fetch_response(list(response), normalise_times=False, uid_is_key=False)
        messages = [dict(data) for data in parsed.values()]
    except (
        ProtocolError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        messages = [_salvage(response)]
    return _by_uid(messages)


def _by_uid(messages: Sequence[dict[bytes, Any]]) -> FetchData:
    return {data.pop(b"UID"): data for data in messages if data.get(b"UID")}


def _salvage(response: Sequence[Any]) -> dict[bytes, Any]:
    """Return the items that can be told apart in a response that is damaged."""
    texts: list[bytes] = []
    literals: list[bytes] = []
    for part in response:
        if isinstance(part, tuple):
            literals.append(part[1])
            texts.append(_LITERAL_END.sub(b"\0%d\0" % (len(literals) - 1), part[0]))
        else:
            texts.append(part)
    text = b"".join(texts)
    found: dict[bytes, Any] = {}
    starts = list(_item_starts(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    for match, end in zip(starts, ends, strict=False):
        name, value = match[1].upper(), text[match.end() : end].strip()
        if end == len(text):
            value = value.removesuffix(b")")  # of the whole response
        found |= _salvaged_item(name, value, literals)
    return found


def _item_starts(text: bytes) -> Iterator[re.Match[bytes]]:
    """Yield where items begin that are not inside a quoted string; takes a time that is linear in the text."""
    outside, quote = 0, text.find(b'"')
    for match in _WANTED.finditer(text):
        while 0 <= quote < match.start():
            quoted = _QUOTED.match(text, quote)
            if quoted:
                outside = quoted.end()
            quote = text.find(b'"', outside) if quoted else -1  # where one is open to the end, all behind it are
        if match.start() >= outside:
            yield match


def _salvaged_item(name: bytes, value: bytes, literals: Sequence[bytes]) -> dict[bytes, Any]:
    """Return the item; its value is None where it has no sense."""
    if name.startswith(b"BODY["):
        literal = _literal(value, literals)
        return {name: _salvaged_string(value) if literal is None else literal}
    if name == b"INTERNALDATE":
        try:
            return {name: _parse_date(value.strip(b'"').decode())}
        except (_UnknownForm, ValueError):
            return {name: None}
    if name in {b"FLAGS", b"X-GM-LABELS"}:
        spoiled = {SALVAGED_FLAGS: True} if name == b"FLAGS" and not _CLEAN_FLAGS.fullmatch(value) else {}
        items = value.removeprefix(b"(").removesuffix(b")") if value.startswith(b"(") else b""
        return {name: tuple(_salvaged_list(items, literals))} | spoiled
    number = re.fullmatch(rb"\(?(\d{1,20})\)?", value)
    if not number:
        return {name: None}
    return {name: (int(number[1]),) if name == b"MODSEQ" else int(number[1])}


def _salvaged_string(value: bytes) -> bytes | None:
    return re.sub(rb"\\(.)", rb"\1", value[1:-1]) if re.fullmatch(rb'"(?:[^"\\]|\\.)*"', value) else None


def _salvaged_list(items: bytes, literals: Sequence[bytes]) -> Iterator[bytes]:
    for match in _SALVAGED_LIST_ITEM.finditer(items):
        atom = match[2]
        if atom is None:
            yield re.sub(rb"\\(.)", rb"\1", match[1])
        else:
            literal = _literal(atom, literals)
            yield atom if literal is None else literal


def _literal(value: bytes, literals: Sequence[bytes]) -> bytes | None:
    """Return the literal that stood in the place of `value`."""
    place = re.fullmatch(rb"\x00(\d{1,5})\x00", value)
    return literals[int(place[1])] if place and int(place[1]) < len(literals) else None


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
    if not line:
        raise _UnknownForm
    # One behind another: to search the rest of a line for each would take hours for a megabyte of `AAAA…`.
    scanner: Any = _ITEM.scanner(line[1])  # type: ignore[attr-defined]  # typeshed leaves it out
    found = [item.groups() for item in iter(scanner.match, None)]
    if sum(len(name) + len(value) + 2 for name, value in found) != len(line[1]) + 1:
        raise _UnknownForm
    return {name: _parse_value(name, value) for name, value in found}


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
