from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from email_ingestion.errors import PermanentError
from email_ingestion.records import RawMessage
from email_ingestion.stream.codec import UnknownVersion, decode, encode, pack_entries
from tests.servers.links import message

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def fields_of(raw_message: RawMessage) -> dict[bytes, bytes]:
    return {name.encode(): value for name, value in encode(raw_message, NOW, zstandard.ZstdCompressor()).items()}


@given(raw=st.binary(max_size=2000), uid=st.integers(1, 2**32 - 1), msgid=st.none() | st.integers(1, 2**64 - 1))
def test_a_message_is_decoded_as_it_was_encoded(raw: bytes, uid: int, msgid: int | None):
    sent = message(uid, raw=raw, gm_msgid=msgid)
    assert decode(fields_of(sent)) == sent


@pytest.mark.parametrize(
    "changes",
    [
        {"raw": None, "raw_ref": "ab/cd"},
        {"only_sink": "webhook"},
        {"priority": 9},
        {"synthetic": "run-1"},
        {"history": True},
    ],
)
def test_what_only_some_messages_have_is_decoded_too(changes: dict):
    sent = replace(message(1), **changes)
    assert decode(fields_of(sent)) == sent


def test_an_entry_of_a_newer_release_is_left_to_it():
    with pytest.raises(UnknownVersion, match="version 99"):
        decode(fields_of(message(1)) | {b"v": b"99"})


@pytest.mark.parametrize(
    "damage", [{b"raw": b"no zstd"}, {b"uid": b"seven"}, {b"internaldate": b"yesterday"}, {b"labels": b"["}]
)
def test_a_damaged_entry_is_a_permanent_error(damage: dict):
    with pytest.raises(PermanentError, match="cannot be read"):
        decode(fields_of(message(1)) | damage)


def test_an_entry_of_another_program_is_a_permanent_error():
    with pytest.raises(PermanentError, match="cannot be read"):
        decode({b"written_by": b"another program"})


def test_packed_entries_name_their_fields_only_when_they_differ_from_the_previous_ones():
    packed = pack_entries([(1, {"a": b"1", "b": b"2"}), (2, {"a": b"3", "b": b"4"}), (3, {"c": b"5"})])
    assert packed == [3, 1, 2, "a", "b", b"1", b"2", 2, 0, b"3", b"4", 3, 1, "c", b"5"]
