"""The description of what we tell other programs hangs together, and names every kind of change there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from email_ingestion.records import ChangeKind
from email_ingestion.sinks.webhook import ERASED, EVENT, MISSED
from tests.servers.event_schemas import DESCRIPTION, SCHEMAS, judge

MESSAGES = DESCRIPTION["components"]["messages"]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for each in node.values():
            yield from references(each)
    elif isinstance(node, list):
        for each in node:
            yield from references(each)


def test_every_reference_leads_somewhere() -> None:
    assert DESCRIPTION["asyncapi"] == "3.0.0"
    for reference in references(DESCRIPTION):
        file, _, path = reference.partition("#")
        node = json.loads((SCHEMAS / file).read_text()) if file else DESCRIPTION
        for key in filter(None, path.split("/")):
            node = node[key]
    for operation in DESCRIPTION["operations"].values():
        assert operation["action"] == "send"
    told = {name for channel in DESCRIPTION["channels"].values() for name in channel["messages"]}
    assert told == MESSAGES.keys()


def test_every_kind_and_event_is_described() -> None:
    change = json.loads((SCHEMAS / "change.v1.json").read_text())
    Draft202012Validator.check_schema(change)
    assert change["properties"]["kind"]["enum"] == [each.value for each in ChangeKind]
    types = [each["payload"]["properties"].get("type", {}).get("const") for each in MESSAGES.values()]
    assert types == [EVENT, ERASED, None, MISSED, None, None]
    told = MESSAGES["emailChanged"]["payload"]["properties"]["type"]["enum"]
    assert [*told, ERASED] == [f"email.{each.value}" for each in ChangeKind]


def test_what_is_not_described_is_refused() -> None:
    change = {"seq": 1, "at": "2026-01-01T00:00:00+00:00", "kind": "born", "account": "a", "email_id": "a:gm:1"}
    answer = {"items": [{**change, "details": None}], "next": 1, "total": None}
    judge("changes").validate(answer)
    for wrong in ({"items": [change]}, {"items": [{**change, "details": None, "kind": "eaten"}]}, {"next": None}):
        with pytest.raises(ValidationError):
            judge("changes").validate(answer | wrong)
