"""Every message of tests/corpus gives the fields that the file beside it expects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from email_ingestion import email_json
from email_ingestion.parsing import parse
from email_ingestion.records import Address, Email
from tests.unit.parsing.messages import envelope

CORPUS = Path(__file__).parents[2] / "corpus"
NAMES = sorted(path.stem for path in CORPUS.glob("*.eml"))


# These the expectation files write as the published record does.
PUBLISHED = (
    *("sender", "mailing_list", "auto_submitted", "auto_reply", "bounce", "abuse_report"),
    *("calendar", "enclosed", "verdicts"),
)


def as_json(email: Email) -> dict[str, Any]:
    """The fields as the expectation files write them."""
    fields = ("subject", "text", "html", "message_id", "in_reply_to")
    parsed = email_json.as_json(email)
    return (
        {name: parsed[name] for name in PUBLISHED}
        | {name: getattr(email, name) for name in fields}
        | {
            "from": addresses((email.from_,))[0] if email.from_ else None,
            "to": addresses(email.to),
            "cc": addresses(email.cc),
            "date": email.date.isoformat() if email.date else None,
            "references": list(email.references),
            "headers": [list(field) for field in email.headers],
            "defects": list(email.defects),
            "attachments": [
                {
                    "filename": one.filename,
                    "content_type": one.content_type,
                    "size": one.size,
                    "inline": one.inline,
                    "content_id": one.content_id,
                }
                for one in email.attachments
            ],
            "contents": [one.content.decode("latin-1") for one in email.attachments],
        }
    )


def addresses(found: tuple[Address, ...]) -> list[list[str]]:
    return [[one.name, one.addr] for one in found]


@pytest.mark.parametrize("name", NAMES)
def test_nasty_message_gives_the_expected_fields(name: str) -> None:
    expected = json.loads((CORPUS / f"{name}.json").read_text("utf-8"))["expected"]
    found = as_json(parse(envelope(), (CORPUS / f"{name}.eml").read_bytes()))
    assert {field: found[field] for field in expected} == expected


def test_every_message_says_why_it_is_here() -> None:
    assert len(NAMES) >= 80
    for name in NAMES:
        assert json.loads((CORPUS / f"{name}.json").read_text("utf-8"))["why"], name
