"""The SHA-256 of what a record says of its message: of a record that a sink has, and of the ledger's rows.

In it are the envelope's facts that never change, addresses, dates, texts, header fields and the outlines of
attachments. Labels, flags, tags and defects are not: they change, or differ from parser to parser. Bytes of attachments
that travel with the record are compared with the SHA-256 beside them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from email_ingestion.email_json import SCHEMA

DAMAGED = "damaged"  # in place of the digest of a record that is none, or whose attachments are not what it says


def digest_of_record(record: Any) -> str:
    """Return the digest of a record as a sink has it; `DAMAGED` for what is no record."""
    try:
        if record["schema"] != SCHEMA or not all(map(_is_whole, record["attachments"])):
            return DAMAGED
        names = ("email_id", "account", "gm_msgid", "gm_thrid", "size", "sha256", "message_id", "subject")
        return _digest(
            [record[name] for name in names],
            [_moment(record["internaldate"]), _moment(record["date"])],
            [record["text"], record["html"], [[name, value] for name, value in record["headers"]]],
            [_addresses([record["from"]] if record["from"] else []), *map(_addresses, (record["to"], record["cc"]))],
            [[part[name] for name in _OUTLINE] for part in record["attachments"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return DAMAGED


def digest_of_rows(row: Any, parts: Sequence[Any]) -> str:
    """Return the digest of the record that a row of `emails` and the rows of its attachments make."""
    sender = [] if row.from_addr is None else [{"name": row.from_name, "addr": row.from_addr}]
    large = [None if value is None else str(value) for value in (row.gm_msgid, row.gm_thrid)]
    return _digest(
        [row.email_id, row.account, *large, row.size, row.sha256, row.message_id, row.subject],
        [_moment(row.internaldate), _moment(row.date)],
        [row.text, row.html, [list(header) for header in row.headers]],
        [_addresses(sender), *map(_addresses, (row.to_addrs, row.cc_addrs or ()))],
        [[getattr(part, name) for name in _OUTLINE] for part in parts],
    )


_OUTLINE = ("position", "filename", "content_type", "size", "sha256")


def _digest(*facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _addresses(found: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [[each["name"], each["addr"]] for each in found]


def _moment(value: datetime | str | None) -> str | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.astimezone(UTC).isoformat()


def _is_whole(part: Mapping[str, Any]) -> bool:
    if part["content"] is None:
        return True
    data = base64.b64decode(part["content"], validate=True)
    return bool(len(data) == part["size"] and hashlib.sha256(data).hexdigest() == part["sha256"])
