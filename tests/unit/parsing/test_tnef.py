"""winmail.dat from hostile senders: whatever is in it, nothing is raised but that it is none."""

from __future__ import annotations

import base64
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from email_ingestion.parsing import limits, parse, rtf, tnef
from tests.unit.parsing.messages import envelope

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


def properties(*pairs: tuple[int, int, bytes]) -> bytes:
    """The MAPI properties of kind, name and value, each of one value of variable length."""
    packed = [
        struct.pack("<HHII", kind, name, 1, len(value)) + value + b"\0" * (-len(value) % 4)
        for kind, name, value in pairs
    ]
    return struct.pack("<I", len(pairs)) + b"".join(packed)


def compressed_rtf(rtf: bytes) -> bytes:
    """RTF in the form that is not compressed (MS-OXRTFCP, section 2.1.3.1.5)."""
    return struct.pack("<IIII", len(rtf) + 12, len(rtf), 0x414C454D, 0) + rtf


HTML_IN_RTF = (
    rb"{\rtf1\ansi\ansicpg1251\fromhtml1 \deff0{\fonttbl{\f0 Arial;}}{\*\htmltag64 <p>}\htmlrtf \par\htmlrtf0 "
    rb"\'cf\'f0\'e8\'e2\'e5\'f2 \u8364?{\*\htmltag72 </p>}}"
)
PLAIN_RTF = rb"{\rtf1\ansi{\fonttbl{\f0 Arial;}}{\*\generator x;}\f0 one\par two \'e9\tab \{x\}}"


@pytest.mark.parametrize(
    ("body", "text", "html"),
    [
        ((0x102, 0x1013, b"<p>hello</p>"), "hello", "<p>hello</p>"),
        ((0x1F, 0x1013, "<p>Größe</p>".encode("utf-16-le")), "Größe", "<p>Größe</p>"),
        ((0x102, 0x1009, compressed_rtf(HTML_IN_RTF)), "Привет €", "<p>Привет €</p>"),
        ((0x102, 0x1009, compressed_rtf(PLAIN_RTF)), "one\ntwo é\t{x}", None),
        ((0x1F, 0x1000, "plain".encode("utf-16-le")), "plain", None),
        ((0x102, 0x1009, b"no RTF"), "", None),
    ],
)
def test_the_body_in_a_container_is_the_body(body: tuple[int, int, bytes], text: str, html: str | None) -> None:
    container = SIGNATURE + attribute(0x00069003, properties(body))
    head = b"Content-Type: application/ms-tnef\nContent-Transfer-Encoding: base64\n\n"
    email = parse(envelope(), head + base64.encodebytes(container))
    assert (email.text, email.html) == (text, html)


def test_the_body_in_a_container_gives_way_to_the_text_beside_it() -> None:
    container = SIGNATURE + attribute(0x00069003, properties((0x102, 0x1013, b"<p>hello</p>")))
    source = (
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nbeside\n--b\nContent-Type: application/ms-tnef\n"
        b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(container) + b"--b--\n"
    )
    assert parse(envelope(), source).text == "beside"


def test_rtf_is_decompressed_as_in_the_specification() -> None:
    # MS-OXRTFCP, section 4.1.1
    data = bytes.fromhex(
        "2d0000002b0000004c5a4675f1c5c7a703000a007263706731323542320af32068656c090020627705b06c647d0a800fa0"
    )
    assert rtf.decompress(data) == b"{\\rtf1\\ansi\\ansicpg1252\\pard hello world}\r\n"


@given(st.binary(max_size=200), st.sampled_from([0x75465A4C, 0x414C454D]))
def test_any_compressed_rtf_is_text_or_refused(data: bytes, kind: int) -> None:
    assert rtf.to_text(rtf.decompress(struct.pack("<IIII", 0, 10_000, kind, 0) + data))


def test_rtf_that_grows_is_cut() -> None:
    bomb = struct.pack("<IIII", 0, 0xFFFFFFFF, 0x75465A4C, 0) + (b"\xff" + b"\x00\x0f" * 8) * 400_000
    assert len(rtf.decompress(bomb)) <= limits.RTF_BYTES + 17
