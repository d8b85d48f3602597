from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from email_ingestion.records import RawMessage
from email_ingestion.stream.codec import MalformedEntry, UnknownVersion, decode, encode, pack_entries
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
        {"raw": None, "raw_ref": f"sha256:{message(1).envelope.sha256}"},
        {"only_sink": "webhook"},
        {"priority": 9},
        {"synthetic": "run-1"},
        {"history": True},
        {"defects": ("size:mismatch", "internaldate:unreadable")},
    ],
)
def test_what_only_some_messages_have_is_decoded_too(changes: dict):
    sent = replace(message(1), **changes)
    assert decode(fields_of(sent)) == sent


def test_half_a_character_in_a_label_becomes_a_question_mark():
    fields = fields_of(message(1)) | {b"labels": rb'["a\ud800b", "\u00fc"]'}
    assert decode(fields).envelope.labels == ("a?b", "ü")


def test_an_entry_of_a_newer_release_is_left_to_it():
    with pytest.raises(UnknownVersion, match="version 99"):
        decode(fields_of(message(1)) | {b"v": b"99"})


def zstd(data: bytes, level: int = 1) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(data)


def frame_of_unknown_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


@pytest.mark.parametrize(
    "damage",
    [
        *({b"raw": value} for value in (b"no zstd", b"", zstd(b"x"), frame_of_unknown_size(b"Subject: letter 1"))),
        *({b"raw": zstd(message(1).raw or b"") + rest} for rest in (b"x", zstd(b"y"))),
        {b"raw": bytes.fromhex("28b52ffde0") + (2**45).to_bytes(8, "little") + b"\x01\x00\x00", b"size": b"%d" % 2**45},
        {b"raw": zstd(bytes(1_500_000_000 // 100)), b"size": b"15000000"},
        *(
            {b"uid": value}
            for value in (b"seven", b"-1", b"9007199254740992", b"1_0", b" 1", b"\xd9", b"9" * 5000, b"")
        ),
        *({b"gm_msgid": value} for value in (b"1.0", b"18446744073709551616", b"0x1")),
        *({b"internaldate": value} for value in (b"yesterday", b"0001-01-01T00:00:00+14:00", b"2026-01-01", b"\xff")),
        {b"internaldate": b"9999-12-31T23:59:59-14:00"},
        *({b"labels": value} for value in (b"[", b"5", b"null", b"[1]", b'{"a": 1}', b"[" * 100_000, b"")),
        {b"labels": b'["' + b"x" * 2_000_000 + b'"]'},
        *({b"account": value} for value in (b"../../etc", b"a/b", b"A", b"", b"a" * 64, b"a\n", b"\xff")),
        *({b"sha256": value} for value in (b"../x", b"A" * 64, b"0" * 63, b"0" * 65, b"0" * 64 + b"\n")),
        *({b"mailbox": value} for value in (b"", b"a\0b", b"x" * 5000, b"\xff")),
        *({b"priority": value} for value in (b"11", b"-1", b"")),
        *({b"sink": value} for value in (b"a\nb", b"x" * 2000)),
        {b"raw_ref": f"sha256:{'0' * 64}".encode()},
        {b"v": b"one"},
    ],
)
def test_a_field_that_no_release_writes_makes_an_entry_malformed(damage: dict[bytes, bytes]):
    with pytest.raises(MalformedEntry, match="cannot be read"):
        decode(fields_of(message(1)) | damage)


@pytest.mark.parametrize("raw_ref", [b"../../x", f"sha256:{'0' * 64}".encode(), b"sha256:short"])
def test_a_reference_must_be_that_of_the_message(raw_ref: bytes):
    fields = fields_of(message(1)) | {b"raw_ref": raw_ref}
    del fields[b"raw"]
    with pytest.raises(MalformedEntry, match="raw_ref"):
        decode(fields)


@pytest.mark.parametrize(
    "missing", [b"account", b"mailbox", b"uid", b"gm_thrid", b"labels", b"size", b"sha256", b"raw"]
)
def test_a_missing_field_makes_an_entry_malformed(missing: bytes):
    fields = fields_of(message(1))
    del fields[missing]
    with pytest.raises(MalformedEntry):
        decode(fields)


@given(damage=st.dictionaries(st.sampled_from(sorted(fields_of(message(1)))), st.binary(max_size=50), min_size=1))
def test_whatever_stands_in_a_field_an_entry_is_read_or_malformed(damage: dict[bytes, bytes]):
    with suppress(MalformedEntry, UnknownVersion):
        decode(fields_of(message(1)) | damage)


def test_a_message_over_the_limit_can_be_read_once_that_is_raised():
    fields = fields_of(message(1, raw=b"x" * 3_000_000))
    with pytest.raises(MalformedEntry, match="raise BLOB_THRESHOLD_BYTES"):
        decode(fields)
    assert decode(fields, 4_000_000).envelope.size == 3_000_000


def test_an_entry_of_another_program_is_a_permanent_error():
    with pytest.raises(MalformedEntry, match="cannot be read"):
        decode({b"written_by": b"another program"})


def test_packed_entries_name_their_fields_only_when_they_differ_from_the_previous_ones():
    packed = pack_entries([(1, {"a": b"1", "b": b"2"}), (2, {"a": b"3", "b": b"4"}), (3, {"c": b"5"})])
    assert packed == [3, 1, 2, "a", "b", b"1", b"2", 2, 0, b"3", b"4", 3, 1, "c", b"5"]
