"""What a token endpoint answers is a stranger's: whatever it is, the outcome is a token or an error of ours."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_ingestion.errors import EmailIngestionError, TokenRefreshError
from email_ingestion.oauth2.token_endpoint import MAX_BYTES, MAX_LIFETIME, TokenRefused, parse_response


def answer(**fields: object) -> bytes:
    return json.dumps({"access_token": "ya29.a", **fields}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b'{"access_token": "a", "expires_in": 1e999}',
        b'{"access_token": "a", "expires_in": NaN}',
        b'{"access_token": "a", "expires_in": ' + b"9" * 400 + b"}",
        b'{"access_token": "a", "expires_in": "inf"}',
        b'{"access_token": "a", "refresh_token_expires_in": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"access_token": "a", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        answer(padding="x" * 10_000_000),
        b" " * MAX_BYTES + b'{"access_token": "a"}',
        answer(access_token=""),
        answer(access_token="a\r\nX-Header: b"),
        answer(access_token="a\x01auth=Bearer b"),
        answer(access_token="\ud800"),
        answer(access_token="a" * 100_000),
        answer(access_token=["a"]),
        answer(refresh_token={"a": 1}),
        answer(refresh_token="a\0b"),
        *(json.dumps(body).encode() for body in ([], None, 5, "access_token", {"error": ["x"]}, {"error": {"a": 1}})),
        json.dumps({"error": "\x1b[2Jinvalid_grant"}).encode(),
        b"\xff\xfe{",
        b"",
    ],
)
def test_an_answer_made_to_hurt_is_our_error_and_may_pass(content: bytes) -> None:
    with pytest.raises(TokenRefreshError) as raised:
        parse_response(200, content)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [(3599, 3599), ("3599", 3599), (-5, 3600), (None, 3600), ("x", 3600), (1e300, MAX_LIFETIME)],
)
def test_lifetimes_are_read_as_endpoints_write_them_and_have_a_limit(expires_in: object, lifetime: float) -> None:
    assert parse_response(200, answer(expires_in=expires_in)).lifetime == lifetime


@pytest.mark.parametrize("description", [5, None, ["AADSTS1"], {"a": "b"}, "AADSTS70000: bob@example.org"])
def test_a_refusal_shows_nothing_of_its_description_but_a_number(description: object) -> None:
    with pytest.raises(TokenRefused) as raised:
        parse_response(400, json.dumps({"error": "invalid_grant", "error_description": description}).encode())
    assert "bob" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "description", "said"),
    [
        ("invalid_client", "The provided client secret is invalid.", "its secret is wrong"),
        ("invalid_client", "AADSTS7000215: Invalid client secret provided.", "its secret is wrong"),
        (
            "invalid_client",
            "AADSTS7000222: The provided client secret keys for app are expired.",
            "its secret has expired",
        ),
        ("invalid_client", "The OAuth client was not found.", "its ID is not known"),
        ("unauthorized_client", "Unauthorized", "unauthorized_client"),
        ("invalid_client", None, "invalid_client"),
    ],
)
def test_a_refused_client_is_no_refused_consent_and_says_what_is_wrong_with_it(
    code: str, description: str | None, said: str
) -> None:
    with pytest.raises(TokenRefused) as raised:
        parse_response(401, json.dumps({"error": code, "error_description": description}).encode())
    assert str(raised.value).endswith(said)
    assert (raised.value.is_of_client, raised.value.is_grant_dead) == (True, False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("access_token", "expires_in", "scope", "refresh_token", "refresh_token_expires_in", "error", "error_subtype")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from([200, 400, 401, 429, 503]), st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_whatever_stands_in_an_answer_it_is_a_token_or_an_error_of_ours(status: int, body: dict[str, object]) -> None:
    with suppress(EmailIngestionError):
        parse_response(status, json.dumps(body).encode())
