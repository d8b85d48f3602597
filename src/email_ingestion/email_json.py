"""Convert the record of a message to JSON and back, according to `config/schemas/email.v1.json`.

The envelope's fields are on the top level. X-GM-MSGID and X-GM-THRID are strings, because JavaScript rounds large
numbers. A new field does not make a new version of the schema, a changed field does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from email_ingestion.records import ChangeEvent, Email, Envelope

SCHEMA: Final = "email.v1"
CHANGE_SCHEMA: Final = "change.v1"
MISSED_SCHEMA: Final = "changes_missed.v1"
_ENVELOPE: Final = tuple(field.name for field in fields(Envelope))
_LARGE: Final = ("gm_msgid", "gm_thrid")
_DECIMAL: Final = {"anyOf": [{"type": "string", "pattern": "^[0-9]{1,20}$"}, {"type": "null"}]}


def as_json(email: Email, max_attachment_bytes: int | None = None) -> dict[str, Any]:
    """Convert a record; `content` is null for attachments of more than `max_attachment_bytes`."""
    record = _adapter().dump_python(email, mode="json", exclude={"attachments": {"__all__": {"content"}}})
    for described, attachment in zip(record["attachments"], email.attachments, strict=True):
        kept = max_attachment_bytes is None or attachment.size <= max_attachment_bytes
        described["content"] = base64.b64encode(attachment.content).decode() if kept else None
    envelope = record.pop("envelope")
    envelope |= {name: None if envelope[name] is None else str(envelope[name]) for name in _LARGE}
    return {"schema": SCHEMA, "email_id": email.email_id, **envelope, **_rename_field(record, "from_", "from")}


def from_json(record: Mapping[str, Any]) -> Email:
    """Convert JSON to a record; a `content` of null becomes empty. Raises ValueError for an invalid record."""
    if record.get("schema") != SCHEMA:
        raise ValueError(f"this is no {SCHEMA} record")
    given = {name: value for name, value in record.items() if name not in {"schema", "email_id", *_ENVELOPE}}
    attachments = [
        {**one, "content": base64.b64decode(one["content"] or "", validate=True)} for one in given["attachments"]
    ]
    envelope = {name: record[name] for name in _ENVELOPE}
    given |= {"attachments": attachments, "envelope": envelope}
    return _adapter().validate_python(_rename_field(given, "from", "from_"))


def change_record(event: ChangeEvent) -> dict[str, Any]:
    """Convert a change to JSON for readers who find it among records of mail."""
    return {"schema": CHANGE_SCHEMA, **event.as_json()}


def missed_record(start_from: int) -> dict[str, Any]:
    """Say for them that changes before the number `start_from` were missed."""
    return {"schema": MISSED_SCHEMA, "start_from": start_from}


def is_change(record: Mapping[str, Any]) -> bool:
    """Whether a record tells of changes, and is none of mail."""
    return record.get("schema") in {CHANGE_SCHEMA, MISSED_SCHEMA}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `as_json`."""
    made = _adapter().json_schema(mode="serialization")
    definitions = made["$defs"]
    envelope = definitions.pop("Envelope")["properties"]
    envelope |= dict.fromkeys(_LARGE, _DECIMAL)
    properties = deepcopy(made["properties"])
    del properties["envelope"]
    definitions["Attachment"]["properties"]["content"] = {
        "anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}],
        "description": "null when it is too large to travel with the record",
    }
    heading = {"schema": {"const": SCHEMA}, "email_id": {"type": "string", "description": "idempotency key"}}
    all_properties = {**heading, **envelope, **_rename_field(properties, "from_", "from")}
    definitions["NestedMessage"]["properties"] = _rename_field(
        definitions["NestedMessage"]["properties"], "from_", "from"
    )
    for definition in definitions.values():
        definition["required"] = list(definition["properties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        "title": "An e-mail as email-ingestion hands it on",
        "type": "object",
        "properties": all_properties,
        "required": list(all_properties),
        "$defs": definitions,
    }


def _rename_field(record: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Rename a field of the record and of its nested messages: `from` is a keyword in Python."""
    renamed = {new if name == old else name: value for name, value in record.items()}
    if isinstance(renamed.get("enclosed"), list):
        renamed["enclosed"] = [_rename_field(one, old, new) for one in renamed["enclosed"]]
    return renamed


@cache
def _adapter() -> TypeAdapter[Email]:
    return TypeAdapter(Email)


if __name__ == "__main__":
    Path("config/schemas/email.v1.json").write_text(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")
