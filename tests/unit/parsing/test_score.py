"""What `docs/parsing.md` says is so: the score on the corpus, and a line for every defect."""

from __future__ import annotations

import email
import email.policy
import json
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from email_ingestion.parsing import parse
from email_ingestion.parsing.defects import Defect
from tests.unit.parsing.messages import envelope
from tests.unit.parsing.test_corpus import CORPUS, NAMES, as_json

PAGE = Path(__file__).parents[3] / "docs" / "parsing.md"


def read_subject(message: EmailMessage) -> str:
    return str(message["subject"] or "")


def read_addresses(name: str) -> Callable[[EmailMessage], list[list[str]]]:
    return lambda message: [
        [one.display_name, one.addr_spec] for value in message.get_all(name, []) for one in value.addresses
    ]


def read_sender(message: EmailMessage) -> list[str] | None:
    return next(iter(read_addresses("from")(message)), None)


def read_date(message: EmailMessage) -> str | None:
    moment = message["date"].datetime if message["date"] else None
    return moment.isoformat() if moment else None


def read_text(message: EmailMessage) -> str:
    texts = [part.get_content() for part in message.walk() if part.get_content_type() == "text/plain"]
    return "\n".join(texts).replace("\r\n", "\n")


def read_files(message: EmailMessage) -> list[bytes]:
    parts = [part for part in message.walk() if not part.is_multipart() and part.get_content_maintype() != "text"]
    return [bytes(part.get_payload(decode=True)) for part in parts]  # type: ignore[arg-type]


STANDARD: dict[str, Callable[[EmailMessage], Any]] = {
    "subject": read_subject,
    "from": read_sender,
    "to": read_addresses("to"),
    "cc": read_addresses("cc"),
    "date": read_date,
    "text": read_text,
    "contents": lambda message: [one.decode("latin-1") for one in read_files(message)],
}


def standard_value(raw: bytes, field: str) -> Any:
    try:
        return STANDARD[field](email.message_from_bytes(raw, policy=email.policy.default))  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - it raises whatever it likes on such mail, and the field counts as wrong
        return Exception


def test_the_page_has_the_score() -> None:
    fields = ours = standard = 0
    for name in NAMES:
        raw = (CORPUS / f"{name}.eml").read_bytes()
        expected = json.loads((CORPUS / f"{name}.json").read_text("utf-8"))["expected"]
        found = as_json(parse(envelope(), raw))
        for field in expected.keys() & STANDARD.keys():
            value = standard_value(raw, field)
            wanted = expected[field]
            same = str(value).strip() == str(wanted).strip()  # an empty line at the end is no mistake
            fields, ours, standard = fields + 1, ours + (found[field] == wanted), standard + same
    assert f"| Fields read right, of {fields} | {ours} | {standard} |" in PAGE.read_text("utf-8")


def test_the_page_explains_every_defect() -> None:
    written = PAGE.read_text("utf-8")
    assert [one.value for one in Defect if f"| `{one.value}` | " not in written] == []
