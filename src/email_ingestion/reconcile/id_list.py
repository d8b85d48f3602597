"""Reads the names of messages out of what another system exported: plain lines, a table, JSON lines or an mbox.

Each is a Message-ID or an `email_id`. Systems write the former with brackets or without, quoted, with the name of the
field before it, folded over two lines; spreadsheets write UTF-16. What cannot be told apart is refused, not guessed.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import IO

from email_ingestion.errors import EmailIngestionError


class UnreadableList(EmailIngestionError):
    """The file is no list of names of messages; the message says what is wrong with it."""


_WANTED = ": a list has one Message-ID or `email_id` a line"
_SAMPLE = 200  # lines by which it is found out what a file is
_DELIMITERS = "\t;,|"
_LONGEST_LINE = 1_000_000  # characters; Message-IDs have some hundred
# Names of columns and keys, in small letters and digits alone.
_COLUMNS = {
    *("messageid", "emailid", "internetmessageid", "rfc822messageid", "rfc822msgid", "rfcmessageid"),
    *("headermessageid", "mailmessageid", "msgid"),
}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FIELD = re.compile(r"^(?:x-)?message[-_ ]?id\s*:", re.IGNORECASE)
_BETWEEN = re.compile(r"^From \S.*\d{4}\s*$")  # the line between two messages of an mbox
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"))
_LOOKS_LIKE_ONE = re.compile(
    r"\s*['\"]?<[^<>@]+@[^<>@]*>['\"]?\s*|\s*\S+:(?:gm:\d+|sha256:[0-9a-f]{64})\s*", re.IGNORECASE
)


def read_names(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the names of messages in a file, as `normalize` makes them. Raises UnreadableList for one that is no text.

    Also for a table of which no column is told by its heading or its content.
    """
    lines = _lines(file, name)
    sample = list(islice(lines, _SAMPLE))
    first = next((line for line in sample if line.strip()), "")
    everything = chain(sample, lines)
    if _BETWEEN.match(first):
        yield from _of_mbox(everything)
    elif first.lstrip().startswith("{"):
        yield from _of_json(everything, name)
    elif first.lstrip().startswith("["):
        raise UnreadableList(f"{name} is JSON in one piece{_WANTED}, or a JSON object a line")
    elif (delimiter := _delimiter(sample)) is not None:
        yield from _of_table(everything, sample, delimiter, name)
    else:
        yield from _of_lines(everything, heading=first)


def normalize(name: str) -> str:
    """Return a Message-ID without what systems add to it: blanks, quotes, angle brackets, the name of the field."""
    text = name.translate(_INVISIBLE).strip().strip("\"'").strip()
    text = "".join(_FIELD.sub("", text).split()).rstrip(",;").strip("\"'")
    return text.removeprefix("<").removesuffix(">")


def _lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines as text. What is not UTF-8 may be of any old encoding: names of messages are the same in all."""
    try:
        start = file.read(4096)
    except OSError as error:
        raise UnreadableList(f"{name} cannot be read to its end: {error.strerror}") from error
    encoding = next((each for mark, each in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if encoding is None and b"\0" in start:
        encoding = "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
        if start.count(b"\0") * 3 < len(start):  # names of messages are ASCII
            raise UnreadableList(f"{name} is no text{_WANTED}")
    errors = "surrogateescape" if encoding is None else "strict"
    decode = codecs.getincrementaldecoder(encoding or "utf-8")(errors).decode
    rest, block = "", start
    try:
        while block:
            text = rest + decode(block)
            if "\0" in text or len(rest) > _LONGEST_LINE:
                raise UnreadableList(f"{name} is no text{_WANTED}")
            *whole, rest = re.split(r"\r\n|\n|\r(?!\Z)", text)
            yield from whole
            block = file.read(65536)
        rest += decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UnreadableList(f"{name} is no text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UnreadableList(f"{name} cannot be read to its end: {error.strerror}") from error
    if rest:
        yield rest


def _of_lines(lines: Iterable[str], heading: str) -> Iterator[str]:
    """Read one name a line; a folded one goes on in the next line, which begins with a blank."""
    unfinished = ""
    for line in lines:
        if unfinished and line[:1] in {" ", "\t"}:
            line = unfinished + line  # noqa: PLW2901 - the line as it was meant
        elif unfinished:
            yield from filter(None, [normalize(unfinished)])
        unfinished = line if "<" in line and ">" not in line else ""
        if unfinished or (line is heading and _is_column(line)):
            continue
        yield from filter(None, [normalize(line)])
    yield from filter(None, [normalize(unfinished)])


def _of_mbox(lines: Iterable[str]) -> Iterator[str]:
    """Read the Message-ID fields of the headers."""
    in_header, field = False, ""
    previous = ""
    for line in chain(lines, [""]):
        if not previous.strip() and _BETWEEN.match(line):
            in_header = True
        elif in_header and field and line[:1] in {" ", "\t"}:
            field += line
        elif in_header:
            yield from filter(None, [normalize(field)])
            field = line if _FIELD.match(line) and line[:1] not in "xX" else ""
            in_header = bool(line.strip())
        previous = line


def _of_json(lines: Iterable[str], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            is_mail = str(fields.get("schema", "email")).startswith("email")  # and no change of the feed
            found = [str(value) for key, value in fields.items() if is_mail and _is_column(key) and value]
        except (ValueError, AttributeError) as error:
            raise UnreadableList(f"{name}: line {number} is no JSON object, as the first one is") from error
        yield from filter(None, map(normalize, _best(found)))


def _of_table(lines: Iterable[str], sample: Sequence[str], delimiter: str, name: str) -> Iterator[str]:
    rows = [row for row in csv.reader(sample, delimiter=delimiter) if any(map(str.strip, row))]
    columns = [place for place, heading in enumerate(rows[0]) if _is_column(heading)]
    has_heading = bool(columns)
    columns = columns or _columns_by_content(rows)
    if not columns:
        raise UnreadableList(
            f"{name} is a table of which no column is called Message-ID: give its first line the names of the columns"
        )
    try:
        for row in csv.reader(lines, delimiter=delimiter):
            if has_heading and any(map(str.strip, row)):
                has_heading = False
                continue
            yield from filter(None, map(normalize, _best([row[place] for place in columns if place < len(row)])))
    except csv.Error as error:
        raise UnreadableList(f"{name} is no table that can be read: {error}") from error


def _best(found: Sequence[str]) -> Sequence[str]:
    """Return one name of a message that has several: our own, else the first."""
    found = [each for each in found if each.strip()]
    ours = [each for each in found if _LOOKS_LIKE_ONE.fullmatch(each) and "<" not in each]
    return (ours or found)[:1]


def _columns_by_content(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the column in which all that is there looks like a name of a message, if there is just one."""
    looking: list[int] = []
    for place in range(max(map(len, rows))):
        fields = [row[place] for row in rows if place < len(row) and row[place].strip()]
        if fields and all(map(_LOOKS_LIKE_ONE.fullmatch, fields)):
            looking.append(place)
    return looking if len(looking) == 1 else []


def _delimiter(sample: Sequence[str]) -> str | None:
    """Return what separates the columns of a table; None for plain lines. A Message-ID may have a comma in it."""
    lines = [line for line in sample if line.strip()]
    heading = lines[0] if lines else ""
    for each in _DELIMITERS:
        fields = next(csv.reader([heading], delimiter=each), [])
        if len(fields) > 1 and any(map(_is_column, fields)):
            return each
    for each in _DELIMITERS:
        counts = {len(next(csv.reader([line], delimiter=each), [])) for line in lines}
        if len(counts) == 1 and counts.pop() > 1 and not all(_LOOKS_LIKE_ONE.fullmatch(line) for line in lines):
            return each
    return None


def _is_column(heading: str) -> bool:
    return re.sub(r"[^a-z0-9]", "", heading.lower()) in _COLUMNS
