"""The published description of what we tell other programs, `config/schemas/asyncapi.v1.json`, to judge payloads by."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.servers.processes import ROOT

SCHEMAS = ROOT / "config" / "schemas"
DESCRIPTION: dict[str, Any] = json.loads((SCHEMAS / "asyncapi.v1.json").read_text())


def judge(message: str) -> Draft202012Validator:
    """Return what validates the payloads of a message; references lead to the files beside it."""
    files = {path.name: json.loads(path.read_text()) for path in SCHEMAS.glob("*.v1.json")}
    resources = [
        (name, Resource.from_contents({**found, "$id": name}, default_specification=DRAFT202012))
        for name, found in files.items()
    ]
    schema = DESCRIPTION["components"]["messages"][message]["payload"]
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, registry=Registry().with_resources(resources), format_checker=FormatChecker())
