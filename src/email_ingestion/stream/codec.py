"""A message as the fields of a stream entry, and back: as the delivery of that entry to a worker.

Field names are public: other programs read them. `raw` is the RFC 822 message in zstd, or `raw_ref` names it in the
blob store. `sink` is set when only that sink is to get the message, `rehearsal` in synthetic messages, `priority`
when it is not 5, `history` in mail that nobody waited for: an entry without it is live mail, `defects` (a JSON list)
when the mail server's own data of the message cannot be right. `v` rises when a reader of the previous version would
misunderstand an entry.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import zstandard

from email_ingestion.blobs import reference
from email_ingestion.errors import PermanentError
from email_ingestion.identity import ACCOUNT, CONTENT_REFERENCE, SHA256
from email_ingestion.records import ARRIVAL_YEARS, NORMAL_PRIORITY, Envelope, RawMessage
from email_ingestion.stream.keys import Keys, entry_time

VERSION = 2
MAIL = 1  # the version of mail; a synthetic message has the next one, for older readers would take it for mail
ZSTD_LEVEL = 1  # 3 makes mail smaller by half a percent and takes a third longer
MAX_INLINE_BYTES = 1024 * 1024  # or BLOB_THRESHOLD_BYTES, if that is more
MAX_MESSAGE_BYTES = 2**40
MAX_WORDS_BYTES = 1024 * 1024  # of labels or flags
MAX_DIGITS = 20
_UINT32, _UINT64 = (0, 2**32 - 1), (0, 2**64 - 1)
_UID = (0, 2**53 - 1)  # IMAP has 32 bits; an imported file has its offsets, and Lua these bits
_MAILBOX = re.compile(r"[^\0]{1,4096}", re.DOTALL)
_DEFECT = re.compile(r"[a-z0-9-]{1,40}:[a-z0-9-]{1,40}", re.ASCII)
_NAME = re.compile(r"[^\0-\x1f]{1,1024}")

Fields = dict[str, bytes]


class UnknownVersion(PermanentError):
    """The entry was written by a newer release; it stays pending until such a release reads it."""


class MalformedEntry(PermanentError):
    """The entry is not one of ours, or was damaged."""


def encode(message: RawMessage, enqueued_at: datetime, compressor: zstandard.ZstdCompressor) -> Fields:
    """Return the fields of a new entry. `compressor` is not thread-safe: one for each thread."""
    envelope = message.envelope
    fields = {
        "v": b"%d" % (VERSION if message.synthetic else MAIL),
        "account": envelope.account.encode(),
        "mailbox": envelope.mailbox.encode(),
        "uidvalidity": b"%d" % envelope.uidvalidity,
        "uid": b"%d" % envelope.uid,
        "gm_msgid": _optional(envelope.gm_msgid),
        "gm_thrid": _optional(envelope.gm_thrid),
        "labels": _list(envelope.labels),
        "flags": _list(envelope.flags),
        "internaldate": envelope.internaldate.isoformat().encode(),
        "size": b"%d" % envelope.size,
        "sha256": envelope.sha256.encode(),
        "enqueued_at": enqueued_at.isoformat().encode(),
    }
    if message.only_sink:
        fields["sink"] = message.only_sink.encode()
    if message.priority != NORMAL_PRIORITY:
        fields["priority"] = b"%d" % message.priority
    if message.synthetic:
        fields["rehearsal"] = message.synthetic.encode()
    if message.history:
        fields["history"] = b"1"
    if message.defects:
        fields["defects"] = _list(message.defects)
    return fields | _payload(message, compressor)


def pack_entries(entries: Sequence[tuple[str | int, Mapping[Any, bytes]]]) -> list[str | int | bytes]:
    """Return named new entries as the last arguments of a script that reads them with `entry.lua`."""
    args: list[str | int | bytes] = [len(entries)]
    previous: tuple[str | bytes, ...] = ()
    for name, fields in entries:
        names = tuple(fields)
        args += (name, 0) if names == previous else (name, len(names), *names)
        args += fields.values()
        previous = names
    return args


def _payload(message: RawMessage, compressor: zstandard.ZstdCompressor) -> Fields:
    if message.raw is not None:
        return {"raw": compressor.compress(message.raw)}
    return {"raw_ref": (message.raw_ref or "").encode()}


def _optional(number: int | None) -> bytes:
    return b"" if number is None else b"%d" % number


@lru_cache(maxsize=1024)
def _list(words: tuple[str, ...]) -> bytes:
    """Encode labels or flags; cached, for most messages have the same few."""
    return json.dumps(words).encode()


def decode(fields: Mapping[bytes, bytes], max_inline: int = MAX_INLINE_BYTES) -> RawMessage:
    """Return the message of an entry, each field checked: whoever can write to Redis must not reach what lies behind.

    `max_inline` is the largest message in bytes that an entry may hold itself, so that a small entry cannot become a
    large one in memory. Raises UnknownVersion for an entry of a newer release, MalformedEntry for a foreign or damaged
    one.
    """
    version = _integer(fields, b"v", (0, 2**31), default=0)
    if version > VERSION:
        raise UnknownVersion(f"stream entry has version {version}, this release reads up to {VERSION}: upgrade it")
    envelope = parse_envelope(fields)
    raw, raw_ref = fields.get(b"raw"), _text(fields, b"raw_ref", CONTENT_REFERENCE) if fields.get(b"raw_ref") else None
    if (raw is None) == (raw_ref is None):
        raise MalformedEntry("stream entry cannot be read: it needs either raw or raw_ref")
    if raw_ref and raw_ref != reference(envelope.sha256):
        raise MalformedEntry("stream entry cannot be read: raw_ref is not that of sha256")
    return RawMessage(
        envelope,
        None if raw is None else _decompress(raw, envelope.size, max_inline),
        raw_ref,
        _text(fields, b"sink", _NAME) if fields.get(b"sink") else None,
        _integer(fields, b"priority", (0, 10), default=NORMAL_PRIORITY),
        _text(fields, b"rehearsal", _NAME) if fields.get(b"rehearsal") else None,
        b"history" in fields,
        _defects(fields) if b"defects" in fields else (),
    )


def parse_envelope(fields: Mapping[bytes, bytes]) -> Envelope:
    """Return the envelope of an entry, each field checked. Raises MalformedEntry."""
    return Envelope(
        account=_text(fields, b"account", ACCOUNT),
        mailbox=_text(fields, b"mailbox", _MAILBOX),
        uidvalidity=_integer(fields, b"uidvalidity", _UINT32),
        uid=_integer(fields, b"uid", _UID),
        gm_msgid=_integer(fields, b"gm_msgid", _UINT64) if _field(fields, b"gm_msgid") else None,
        gm_thrid=_integer(fields, b"gm_thrid", _UINT64) if _field(fields, b"gm_thrid") else None,
        labels=_words(fields, b"labels"),
        flags=_words(fields, b"flags"),
        internaldate=_date(fields, b"internaldate"),
        size=_integer(fields, b"size", (0, MAX_MESSAGE_BYTES)),
        sha256=_text(fields, b"sha256", SHA256),
    )


def _field(fields: Mapping[bytes, bytes], name: bytes) -> bytes:
    try:
        return fields[name]
    except KeyError:
        raise _malformed(name, "is missing") from None


def _text(fields: Mapping[bytes, bytes], name: bytes, form: re.Pattern[str]) -> str:
    try:
        value = _field(fields, name).decode()
    except UnicodeDecodeError:
        raise _malformed(name, "is no UTF-8") from None
    if not form.fullmatch(value):
        raise _malformed(name, "has a form that no release writes")
    return value


def _integer(fields: Mapping[bytes, bytes], name: bytes, limits: tuple[int, int], default: int | None = None) -> int:
    value = fields.get(name) if default is not None else _field(fields, name)
    if value is None and default is not None:
        return default
    if not value or len(value) > MAX_DIGITS or not value.isdigit():
        raise _malformed(name, "is no number")
    number = int(value)
    if not limits[0] <= number <= limits[1]:
        raise _malformed(name, f"is not between {limits[0]} and {limits[1]}")
    return number


def _words(fields: Mapping[bytes, bytes], name: bytes) -> tuple[str, ...]:
    return _parse_words(_field(fields, name), name)


@lru_cache(maxsize=1024)
def _parse_words(value: bytes, name: bytes) -> tuple[str, ...]:
    """Parse labels or flags; cached, for most messages have the same few."""
    try:
        words = json.loads(value) if len(value) <= MAX_WORDS_BYTES else None
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _malformed(name, "is no list of words")
    return tuple(word.encode("utf-8", "replace").decode() for word in words)  # JSON can name what no text may hold


def _defects(fields: Mapping[bytes, bytes]) -> tuple[str, ...]:
    defects = _words(fields, b"defects")
    if not all(map(_DEFECT.fullmatch, defects)):
        raise _malformed(b"defects", "has a form that no release writes")
    return defects


def _date(fields: Mapping[bytes, bytes], name: bytes) -> datetime:
    try:
        value = datetime.fromisoformat(_field(fields, name).decode())
        if value.tzinfo and ARRIVAL_YEARS[0] <= value.year <= ARRIVAL_YEARS[1]:
            return value.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _malformed(name, "is no date with a time zone")


def _decompress(data: bytes, size: int, limit: int) -> bytes:
    """Return the message, which must have the size that entry and frame announce."""
    if size > limit:
        message = f"the message in it has {size} bytes, over {limit}: raise BLOB_THRESHOLD_BYTES, then replay it"
        raise MalformedEntry(f"stream entry cannot be read: {message}")
    try:
        if zstandard.frame_content_size(data) != size:
            raise _malformed(b"raw", "does not announce the size of the message")
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _malformed(b"raw", f"cannot be decompressed: {error}") from error
    if len(raw) != size:
        raise _malformed(b"raw", "has another size than announced")
    return raw


def _malformed(name: bytes, what: str) -> MalformedEntry:
    return MalformedEntry(f"stream entry cannot be read: {name.decode()} {what}")


@dataclass(frozen=True, slots=True)
class Delivery:
    """An entry delivered to this worker; it stays pending until it is acked or dead-lettered."""

    id: str  # as `Keys.format_entry_id` makes it
    attempt: int  # this delivery included, and those of an earlier life of the worker
    message: RawMessage | None  # None when the entry cannot be read: `unreadable` says why
    unreadable: PermanentError | None
    wire_bytes: int  # bytes of the entry's fields, as the scripts count the stream's volume
    foreign: bool  # claimed from another consumer
    queue_wait: float  # seconds from append to this delivery, by Redis' clock and ours

    @property
    def email_id(self) -> str:
        """The message's identity, or the entry's id when it cannot be read."""
        return self.message.envelope.email_id if self.message else f"entry:{self.id}"

    @property
    def synthetic(self) -> str | None:
        """The run of a synthetic message (`RawMessage.synthetic`), None for mail."""
        return self.message.synthetic if self.message else None

    def age(self) -> float:
        """Return the seconds since it was appended, by Redis' clock and ours."""
        return max(0.0, time.time() - entry_time(self.id))


def decode_delivery(
    keys: Keys, entry_id: bytes, attempt: int, flat: list[bytes], *, foreign: bool, max_inline: int = MAX_INLINE_BYTES
) -> Delivery:
    """Decode an entry; one that cannot be decoded is still a delivery, so that it can be dead-lettered."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    message, unreadable = None, None
    try:
        message = decode(fields, max_inline)
    except PermanentError as error:
        unreadable = error
    name = entry_id.decode()
    return Delivery(
        id=keys.format_entry_id(name),
        attempt=attempt,
        message=message,
        unreadable=unreadable,
        wire_bytes=sum(map(len, flat)),
        foreign=foreign,
        queue_wait=max(0.0, time.time() - entry_time(name)),
    )
