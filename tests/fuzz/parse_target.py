"""A target for atheris: any bytes become a record that is whole, valid JSON and comes back as it was.

Run it for as long as you like: `python tests/fuzz/parse_target.py -max_total_time=600 FOUND tests/corpus`, where FOUND
is a directory for the inputs that reach new code.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import atheris

with atheris.instrument_imports(include=["email_ingestion"]):
    from email_ingestion.email_json import as_json, from_json
    from email_ingestion.parsing import parse
    from email_ingestion.parsing.defects import Defect
    from email_ingestion.records import Envelope

ENVELOPE = Envelope("me", "INBOX", 1, 1, 1, 1, (), (), datetime(2026, 1, 1, tzinfo=UTC), 0, "0" * 64)


def one_input(data: bytes) -> None:
    email = parse(ENVELOPE, data)
    assert Defect.PARSE_FAILED.value not in email.defects
    assert from_json(json.loads(json.dumps(as_json(email)).encode("utf-8"))) == email


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
