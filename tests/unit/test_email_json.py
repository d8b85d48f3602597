"""The record as JSON: what is published is what is sent, and nothing is lost on the way back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_ingestion.email_json import as_json, from_json, schema
from email_ingestion.parsing import parse
from email_ingestion.records import (
    AbuseReport,
    Address,
    Attachment,
    AuthenticationResults,
    Bounce,
    Calendar,
    Email,
    Envelope,
    MailingList,
    NestedMessage,
)
from tests.unit.parsing.messages import envelope

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "config" / "schemas" / "email.v1.json"
CORPUS = sorted((ROOT / "tests" / "corpus").glob("*.eml"))
VALIDATOR = jsonschema.Draft202012Validator(schema(), format_checker=jsonschema.FormatChecker())

MOMENTS = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
WORDS = st.text(max_size=20)
OPTIONAL = st.none() | WORDS
SEVERAL = st.lists(WORDS, max_size=3).map(tuple)
ADDRESSES = st.builds(Address, WORDS, WORDS)
LISTED = st.lists(ADDRESSES, max_size=3).map(tuple)
ENVELOPES = st.builds(
    Envelope, WORDS, WORDS, st.integers(0, 2**32), st.integers(0, 2**32), st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 2**64 - 1), SEVERAL, SEVERAL, MOMENTS, st.integers(0, 2**40), WORDS,
)  # fmt: skip
ENCLOSED = st.recursive(
    st.just(()),
    lambda inner: st.lists(
        st.builds(NestedMessage, st.integers(1, 9), OPTIONAL, WORDS, st.none() | ADDRESSES, LISTED, LISTED,
                  st.none() | MOMENTS, WORDS, SEVERAL, inner), max_size=2).map(tuple),
    max_leaves=4,
)  # fmt: skip
RECORDS = st.builds(
    Email,
    envelope=ENVELOPES, message_id=OPTIONAL, subject=WORDS, from_=st.none() | ADDRESSES, to=LISTED, cc=LISTED,
    bcc=LISTED, reply_to=LISTED, date=st.none() | MOMENTS, in_reply_to=OPTIONAL, references=SEVERAL, text=WORDS,
    html=OPTIONAL, headers=st.lists(st.tuples(WORDS, WORDS), max_size=3).map(tuple),
    attachments=st.lists(
        st.binary(max_size=50).flatmap(
            lambda data: st.builds(Attachment, st.integers(1, 9), OPTIONAL, WORDS, st.just(len(data)), WORDS,
                                   st.just(data), st.booleans(), OPTIONAL)), max_size=2).map(tuple),
    defects=SEVERAL, sender=st.none() | ADDRESSES,
    mailing_list=st.none() | st.builds(MailingList, OPTIONAL, *(SEVERAL,) * 3, st.booleans(), *(SEVERAL,) * 3),
    auto_submitted=OPTIONAL, auto_reply=st.booleans(), bounce=st.none() | st.from_type(Bounce),
    abuse_report=st.none() | st.from_type(AbuseReport),
    calendar=st.lists(st.from_type(Calendar), max_size=2).map(tuple), enclosed=ENCLOSED,
    verdicts=st.none() | st.from_type(AuthenticationResults), priority=st.integers(0, 10), tags=SEVERAL,
)  # fmt: skip


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(RECORDS)
def test_a_record_comes_back_as_it_was(email: Email) -> None:
    sent = json.loads(json.dumps(as_json(email)))
    VALIDATOR.validate(sent)
    assert from_json(sent) == email


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads(PUBLISHED.read_text("utf-8")) == schema(), "run: python -m email_ingestion.email_json"


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_even_nasty_mail_fits_the_schema(path: Path) -> None:
    email = parse(envelope(), path.read_bytes())
    sent = json.loads(json.dumps(as_json(email)))
    VALIDATOR.validate(sent)
    assert from_json(sent) == email


def test_a_content_that_is_left_out_is_null() -> None:
    raw = b"Content-Type: application/pdf\r\n\r\n12345"
    sent = as_json(parse(envelope(), raw), max_attachment_bytes=4)
    assert [part["content"] for part in sent["attachments"]] == [None]
    VALIDATOR.validate(sent)
    assert from_json(sent).attachments[0].content == b""


@pytest.mark.parametrize("record", [{}, {"schema": "email.v2"}])
def test_another_version_is_refused(record: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"email\.v1"):
        from_json(record)
