r"""Single lines of responses: what they tell, and those of some servers turned into those of RFC 3501.

    an empty line behind a literal, or between responses        left out (python/cpython#88574)
    a line that ends in LF alone                                CR LF
    `*  3 EXISTS`, `a1 ok`, `A1 OK` without a text              one space, capitals, a space behind OK
    `* ok [uidnext 5]`                                          `[UIDNEXT 5]`
    `* 3 FETCH(UID 7)`                                          a space before the list
    a status response of more than STATUS_BYTES                 its beginning
    `{5+}`, `~{5}` before a literal                             `{5}`: RFC 7888 and 3516 have them, for other things

Nothing of a literal is touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

STATUS_BYTES = 2000  # of a status response that are read: judging the words takes a time that grows with their square
UID_DIGITS = 16  # RFC 3501 knows numbers of 32 bits, and some servers do not

_RESPONSE = re.compile(rb"([^+\s]\S*)( +)(?:(\d+)( +))?([A-Za-z-]+)( *)(.*)", re.DOTALL)
_LITERAL = re.compile(rb"~?\{(\d{1,18})\+?\}\Z")
_STATUSES = {b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"}
_CODE = re.compile(rb"\A\[ *[A-Za-z-]+")
_TRAILER = re.compile(rb" ?(?:UID|FLAGS|RFC822\.SIZE|INTERNALDATE|MODSEQ) ", re.IGNORECASE)
_REFUSAL = re.compile(rb"\s*(?:NO|BAD|BYE) ", re.IGNORECASE)
_COUNT = re.compile(rb"\* (\d{1,10}) (EXISTS|EXPUNGE)\b", re.IGNORECASE)
_VANISHED = re.compile(rb"\* VANISHED ([\d:,]+)\s*\Z", re.IGNORECASE)  # not those of before: `(EARLIER)`
_UID = re.compile(rb"[ (]UID (\d{1,20})", re.IGNORECASE)
_STATUS = re.compile(rb"\S{1,40} (?:OK|NO|BAD|BYE|PREAUTH) ", re.IGNORECASE)
_FETCH_AFTER_LITERAL = re.compile(rb"[) ]|\Z")
_ALERT = re.compile(rb"\S+ (?:OK|NO|BAD|BYE|PREAUTH) (.*\[ALERT\].*)", re.IGNORECASE)
_ALL = re.compile(rb" ALL ([\d:,]+)", re.IGNORECASE)
_THROTTLED = re.compile(rb"^[A-Z]+\d+ (?:OK|NO|BAD) .*\[THROTTLED\]\s*$", re.IGNORECASE)


def is_blank(line: bytes) -> bool:
    """Whether nothing stands in a line."""
    return line in (b"\r\n", b"\n")


def with_line_end(line: bytes) -> bytes:
    """Return a line with CR LF at its end where there is an end."""
    return line if line.endswith(b"\r\n") or not line.endswith(b"\n") else line[:-1] + b"\r\n"


def as_imaplib_reads(line: bytes) -> bytes:
    """Return a response with its name in capitals, single spaces around it, and one before a text that is missing."""
    found = _RESPONSE.fullmatch(line)
    if not found:
        return line
    first, _, number, _, name, space, rest = found.groups()
    if rest.startswith(b"[") and name.upper() in _STATUSES:
        rest = _CODE.sub(lambda code: code[0].upper(), rest, count=1)
    if not space and rest != b"\r\n" and not rest.startswith(b"("):  # `* OK[...`, or no response at all
        return line if name.isupper() else line[: found.start(5)] + name.upper() + rest
    return b" ".join(part for part in (first, number, name.upper(), rest) if part is not None)


def shortened_status(line: bytes) -> bytes:
    """Return a status response with at most STATUS_BYTES, and any other line as it is."""
    return line if len(line) <= STATUS_BYTES or not _STATUS.match(line) else line[: STATUS_BYTES - 2] + b"\r\n"


def is_trailer(line: bytes) -> bool:
    """Whether a line has items of a FETCH response that the server has closed before them, as a Xeams does."""
    return bool(_TRAILER.match(line))


def is_refusal_without_star(line: bytes) -> bool:
    """Whether a greeting refuses the connection in a line that lacks its `*`, as an IceWarp does."""
    return bool(_REFUSAL.match(line))


def goes_on_after_literal(text: bytes) -> bool:
    """Whether a FETCH response can go on so behind a literal; if not, the literal was longer or shorter than told."""
    return bool(_FETCH_AFTER_LITERAL.match(text))


def announced_literal(text: bytes) -> tuple[bytes, int] | None:
    """Return a text that ends with the announcement of a literal, as `{5}`, and its size; None for another text."""
    found = _LITERAL.search(text) if text.endswith(b"}") else None  # only a line that ends in a brace is searched
    return (b"%b{%b}" % (text[: found.start()], found[1]), int(found[1])) if found else None


def count_after(line: bytes, exists: int) -> int:
    """Return how many messages the mailbox has after a response, if it had `exists` before.

    Where QRESYNC is enabled, VANISHED takes the place of EXPUNGE (RFC 7162, section 3.2.10); one that names more than
    there are does not count.
    """
    count = _COUNT.match(line)
    if not count:
        vanished = _VANISHED.match(line)
        gone = sum(high - low + 1 for low, high in read_ranges(vanished[1])) if vanished else 0
        return exists - gone if gone <= exists else exists
    return int(count[1]) if count[2].upper() == b"EXISTS" else max(0, exists - 1)


def read_ranges(uid_set: bytes) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a set of UIDs, both ends included, as they stand there; what is no range is left out."""
    for part in uid_set.split(b","):
        low, colon, high = part.partition(b":")
        ends = (low, high) if colon else (low, low)
        if all(end.isdigit() and len(end) <= UID_DIGITS for end in ends):
            first, last = sorted(map(int, ends))
            yield first, last


def find_alert(line: bytes) -> str | None:
    """Return what a response wants the user told (RFC 3501, section 7.1)."""
    alert = _ALERT.match(line) if b"[ALERT]" in line else None
    return alert[1].decode("utf-8", "replace") if alert else None


def find_uid(text: bytes) -> int | None:
    """Return the UID in a FETCH response, as far as it has come."""
    uid = _UID.search(text)
    return int(uid[1]) if uid else None


def find_set(response: object) -> bytes | None:
    """Return the set of messages in an ESEARCH response (RFC 9051, section 7.3.4)."""
    found = _ALL.search(response) if isinstance(response, bytes) else None
    return found[1] if found else None


def is_throttled(line: bytes) -> bool:
    """Whether a tagged response asks for slower commands."""
    return line.endswith(b"[THROTTLED]\r\n") and bool(_THROTTLED.match(line))
