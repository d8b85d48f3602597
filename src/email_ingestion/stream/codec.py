"""A message as the fields of a stream entry, and back: as the delivery of that entry to a worker.

Field names are public: other programs read them. `raw` is the RFC 822 message in zstd, or `raw_ref` names it in the
blob store. `sink` is set when only that sink is to get the message, `rehearsal` in synthetic messages, `priority`
when it is not 5, `history` in mail that nobody waited for: an entry without it is live mail. `v` rises when a reader of
the previous version would misunderstand an entry.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import zstandard

from email_ingestion.errors import PermanentError
from email_ingestion.records import NORMAL_PRIORITY, Envelope, RawMessage
from email_ingestion.stream.keys import Keys, entry_time

VERSION = 2
MAIL = 1  # the version of mail; a synthetic message has the next one, for older readers would take it for mail
ZSTD_LEVEL = 1  # 3 makes mail smaller by half a percent and takes a third longer
_OPTIONAL = (b"raw_ref", b"sink", b"rehearsal")

Fields = dict[str, bytes]


class UnknownVersion(PermanentError):
    """The entry was written by a newer release; it stays pending until such a release reads it."""


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


def decode(fields: Mapping[bytes, bytes]) -> RawMessage:
    """Return the message of an entry.

    Raises UnknownVersion for an entry of a newer release, PermanentError for a foreign or damaged one.
    """
    try:
        version = int(fields.get(b"v", b"0"))
        if version > VERSION:
            raise UnknownVersion(f"stream entry has version {version}, this release reads up to {VERSION}: upgrade it")
        raw_ref, sink, rehearsal = (fields.get(name, b"").decode() or None for name in _OPTIONAL)
        priority = int(fields.get(b"priority", NORMAL_PRIORITY))
        return RawMessage(_envelope(fields), _raw(fields), raw_ref, sink, priority, rehearsal, b"history" in fields)
    except (KeyError, ValueError, zstandard.ZstdError) as error:
        raise PermanentError(f"stream entry cannot be read: {error!r}") from error


def _envelope(fields: Mapping[bytes, bytes]) -> Envelope:
    return Envelope(
        account=fields[b"account"].decode(),
        mailbox=fields[b"mailbox"].decode(),
        uidvalidity=int(fields[b"uidvalidity"]),
        uid=int(fields[b"uid"]),
        gm_msgid=_number(fields[b"gm_msgid"]),
        gm_thrid=_number(fields[b"gm_thrid"]),
        labels=tuple(json.loads(fields[b"labels"])),
        flags=tuple(json.loads(fields[b"flags"])),
        internaldate=datetime.fromisoformat(fields[b"internaldate"].decode()).astimezone(UTC),
        size=int(fields[b"size"]),
        sha256=fields[b"sha256"].decode(),
    )


def _raw(fields: Mapping[bytes, bytes]) -> bytes | None:
    data = fields.get(b"raw")
    return None if data is None else zstandard.ZstdDecompressor().decompress(data)


def _number(value: bytes) -> int | None:
    return int(value) if value else None


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


def decode_delivery(keys: Keys, entry_id: bytes, attempt: int, flat: list[bytes], *, foreign: bool) -> Delivery:
    """Decode an entry; one that cannot be decoded is still a delivery, so that it can be dead-lettered."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    message, unreadable = None, None
    try:
        message = decode(fields)
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
