"""winmail.dat from hostile senders: whatever is in it, nothing is raised but that it is none."""

from __future__ import annotations

import struct
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from email_ingestion.parsing import limits, tnef

SIGNATURE = struct.pack("<IH", 0x223E9F78, 1)
NUMBERS = st.sampled_from([0, 1, 2, 5, 0x1E, 0x1F, 0x0D, 0x102, 0x3707, 0x3701, 0x8001, 0xFFFFFFFF]).map(
    lambda number: struct.pack("<I", number)
)
PROPERTIES = st.lists(NUMBERS | st.binary(max_size=6), max_size=30).map(b"".join)
NAMES = st.sampled_from([0x00069002, 0x00018010, 0x0006800F, 0x00069005, 0])


def attribute(name: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BII", 2, name, len(value) if length is None else length) + value + b"\0\0"


@settings(deadline=None, max_examples=300)
@given(st.lists(st.builds(attribute, NAMES, PROPERTIES), max_size=8).map(b"".join), st.binary(max_size=20))
def test_any_container_is_read_as_far_as_it_goes(attributes: bytes, rest: bytes) -> None:
    for one in tnef.unwrap(SIGNATURE + attributes + rest):
        assert isinstance(one.filename, str)
        assert isinstance(one.content, bytes)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_container_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        tnef.unwrap(data)


def test_a_container_of_many_is_cut() -> None:
    many = SIGNATURE + attribute(0x00069002, b"") * (limits.TNEF_ATTACHMENTS + 50)
    assert len(tnef.unwrap(many)) == limits.TNEF_ATTACHMENTS
