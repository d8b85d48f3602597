"""The last net: nothing confidential comes through, and what is harmless stays readable."""

from __future__ import annotations

import re._constants as sre_constants
import re._parser as sre_parser
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_ingestion import errors
from email_ingestion.ops import redaction
from email_ingestion.ops.redaction import describe_error, redact, redact_field, safe_traceback


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("cannot log in bob.o'neil+x@mail.example.org now", "bob"),
        ("<müller@exämple.de> refused", "müller"),
        ("root@localhost", "root"),
        ("user 'bob@example.org' unknown", "bob"),
        ('"bob smith"@example.org', "bob"),
        ("token ya29.a0AfH6SMC-x_y.z rejected", "a0AfH6SMC"),
        ("auth=Bearer abc.def-ghi", "abc.def"),
        ("Authorization: Bearer ya29.abc", "ya29"),
        ("refresh 1//0gAbCdEfGhIjKlMnOpQrSt-uv", "0gAbC"),
        ('{"refresh_token": "opaque-value", "x": 1}', "opaque"),
        ("client_secret=GOCSPX-abc_def", "abc_def"),
        ("password=hunter2&user=x", "hunter2"),
        ("AUTHENTICATE dXNlcj1ib2JAZXhhbXBsZS5vcmcB", "ib2JAZX"),
        ("Error connecting to redis://user:pa55@cache:6379/0", "pa55"),
        ("redis://:pa/55@cache:6379/0 refused", "55"),
        ("redis://user:p@55@cache:6379/0", "55"),
        ("cannot clone https://s3cr3t@git.example.com/x", "s3cr3t"),
        ("posting to https://hooks.example.com/s3cr3t failed", "s3cr3t"),
        ("posting to https://hooks.example.com/a?key=s3cr3t#x", "s3cr3t"),
        ("tgram://s3cr3t/chat is not understood", "s3cr3t"),
        (
            "HTTPConnectionPool(host='c'): Max retries exceeded with url: /s3cr3t/v1/traces (Caused)",
            "s3cr3t",
        ),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("authorization=Token s3cr3t", "s3cr3t"),
        ("OTEL_EXPORTER_OTLP_HEADERS=x-team=s3cr3t,y=z", "s3cr3t"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS: api-key=s3cr3t", "s3cr3t"),
        ("{'x-honeycomb-team': 's3cr3t'}", "s3cr3t"),
        ("api-key=s3cr3t,x=y", "s3cr3t"),
        ("REDIS_PASSWORD=s3cr3t", "s3cr3t"),
        ("{'token': 's3cr3t'}", "s3cr3t"),
        ("?token=s3cr3t&x", "s3cr3t"),
        ("id eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "eyJzdWI"),
    ],
)
def test_addresses_tokens_and_passwords_are_masked(text: str, secret: str) -> None:
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "default:gm:1801234567890123456",
        "default:sha256:" + "ab" * 32,
        "connection refused by imap.gmail.com:993 after 30 s",
        "{email_ingestion}:stream",
        '  File "/srv/app/worker.py", line 7, in run\n    @wraps(f)\n',
        "redis://localhost:6379/0",
        "http://127.0.0.1:8080/status",
        "https://oauth2.googleapis.com/token answers 503",
        "postgresql+psycopg://db.example.com/mail",
        "account default token: cannot be reached",
        'the server says "see https://support.example.com/mail/answer/7 for your password: wrong"',
    ],
)
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_fields_named_after_secrets_or_content_are_masked_at_any_depth() -> None:
    shown = redact_field("outer", {"subject": "Hi", "inner": [{"access_token": "x", "count": 3}]})
    assert shown == {"subject": "<redacted>", "inner": [{"access_token": "<redacted>", "count": 3}]}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.from_regex(r"[a-z][a-z0-9.]{0,20}@[a-z]{1,20}\.[a-z]{2,5}", fullmatch=True), st.text(), st.text())
def test_no_address_survives_in_any_company(address: str, before: str, after: str) -> None:
    assert address not in redact(f"{before} {address} {after}")


def test_redaction_of_hostile_texts_is_linear_in_their_length() -> None:
    """At a million characters a quadratic pattern takes 10^12 steps, hours; a linear one under a second."""
    texts = ('"://" + ":" * 1_000_000', '"eyJaaaaaaaa-" * 80_000', '"password" + " " * 1_000_000')
    program = "".join(f"redact({text})\n" for text in texts)
    command = [sys.executable, "-c", f"from email_ingestion.ops.redaction import redact\n{program}"]
    subprocess.run(command, check=True, timeout=300)


def test_no_pattern_of_redaction_can_try_the_same_run_again() -> None:
    """A repetition without a limit must be possessive, or stand before what its own characters cannot be."""
    patterns = [*(each for each, _ in (*redaction._TOKENS, *redaction._ASSIGNED)), redaction._URL]
    for pattern in patterns:
        assert not list(greedy_without_limit(sre_parser.parse(pattern.pattern, pattern.flags))), pattern.pattern


def greedy_without_limit(parsed: Any) -> Iterator[Any]:
    for operation, argument in parsed:
        if operation in {sre_constants.MAX_REPEAT, sre_constants.MIN_REPEAT} and argument[1] == sre_constants.MAXREPEAT:
            yield argument
        for each in argument if isinstance(argument, tuple | list) else (argument,):
            for inner in each if isinstance(each, list) else (each,):
                if isinstance(inner, sre_parser.SubPattern):
                    yield from greedy_without_limit(inner)


def test_a_long_word_costs_one_pass() -> None:
    assert redact("x" * 200_000 + " a@b.c").endswith("<address>")


def test_a_subclass_is_found_under_the_name_the_runbook_greps() -> None:
    said = describe_error(errors.IMAPThrottledError("too many simultaneous connections"))
    assert said == "IMAPThrottledError (IMAPConnectionError): too many simultaneous connections"


def test_a_foreign_error_keeps_its_class_and_place_but_not_its_words() -> None:
    try:
        {"Re: your merger": 1}["Re: our merger"]
    except KeyError as error:
        shown = safe_traceback(error)
    assert "KeyError: text withheld" in shown
    assert "test_a_foreign_error" in shown
    assert "\nKeyError: 'Re: our merger'" not in shown
