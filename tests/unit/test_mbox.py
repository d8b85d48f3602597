"""Mbox files: where a message begins and ends, which one it is, and what Takeout says of it."""

from __future__ import annotations

import hashlib
import io
import mailbox
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from email_ingestion.producer import mbox
from email_ingestion.producer.mbox import MboxMessage, read_mbox
from email_ingestion.records import Envelope, RawMessage
from email_ingestion.stream import codec

MSGID = 1779873633236952867  # its upper bits say 2023-10-16 01:29:30 UTC
FIRST = b"From %d@xxx Mon Oct 16 01:29:30 +0000 2023\n" % MSGID


def read(content: bytes, start: int = 0) -> list[MboxMessage]:
    return list(read_mbox(io.BytesIO(content), start))


def test_a_takeout_message_has_its_identity_date_labels_and_bytes():
    (letter,) = read(
        FIRST + b"X-GM-THRID: 1779873633236952000\nX-Gmail-Labels: Inbox,Starred,Unread,=?UTF-8?Q?=C3=9Cbung?=\n"
        b"Subject: hello\n\nworld\n\n"
    )
    assert letter.raw == b"Subject: hello\r\n\r\nworld\r\n"
    assert (letter.gm_msgid, letter.gm_thrid) == (MSGID, 1779873633236952000)
    assert letter.internaldate == datetime(2023, 10, 16, 1, 29, 30, tzinfo=UTC)
    assert letter.labels == ("\\Inbox", "\\Starred", "Übung")
    assert letter.flags == ("\\Flagged",)


def test_an_identity_in_the_head_wins_and_one_that_cannot_be_is_none():
    head = b"X-GM-MSGID: 42\nSubject: a\n\n"
    assert read(FIRST + head)[0].gm_msgid == 42
    assert read(b"From 1779873633236952867@xxx Mon Oct 16 01:29:31 +0000 2023\n\n")[0].gm_msgid is None
    assert read(b"From alice@example.com Mon Oct 16 01:29:30 2023\n\n")[0].gm_msgid is None


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (b"Archived,Opened", ()),
        (b'Important,"a, b",Work/Clients', ("\\Important", "a, b", "Work/Clients")),
        (b"=?UTF-8?B?U2VudCzDnGJ1bmcs?=\n =?UTF-8?Q?Caf=C3=A9?=", ("\\Sent", "Übung", "Café")),
        (b"Drafts,Spam,Trash", ("\\Draft", "Spam", "Trash")),
        (b"", ()),
    ],
)
def test_labels_are_named_as_imap_names_them(value: bytes, labels: tuple[str, ...]):
    assert read(FIRST + b"X-Gmail-Labels: " + value + b"\nSubject: a\n\n")[0].labels == labels


def test_only_fields_before_all_others_are_takeouts():
    (letter,) = read(FIRST + b"Subject: forwarded\nX-GM-THRID: 7\n\nX-Gmail-Labels: Inbox\n\n")
    assert (letter.gm_thrid, letter.labels) == (None, ())
    assert letter.raw == b"Subject: forwarded\r\nX-GM-THRID: 7\r\n\r\nX-Gmail-Labels: Inbox\r\n"


def test_a_message_ends_only_at_an_empty_line_and_a_line_that_is_a_separator():
    body = b"Subject: a\n\nFrom here on\n\nFrom the start\n>From me\n>>From you\n" + FIRST
    found = read(FIRST + body + b"\n" + FIRST + b"Subject: b\n\n")
    assert [len(each.raw or b"") for each in found] == [len(body.replace(b"\n", b"\r\n")) - 2, len("Subject: b\r\n")]
    assert b"\r\nFrom me\r\n>From you\r\n" in (found[0].raw or b"")


def test_a_reader_may_begin_at_any_message():
    content = b"".join(FIRST + b"Subject: %d\n\nbody\n\n" % number for number in range(5))
    found = read(content)
    assert [each.start for each in found[1:]] == [each.end for each in found[:-1]]
    assert found[-1].end == len(content)
    assert read(content, found[2].start) == found[2:]
    assert read(content, len(content)) == []


def test_what_is_no_mbox_holds_nothing():
    assert read(b"") == read(b"Subject: hello\n\nworld\n") == read(b"From me\n") == []


def test_a_message_too_large_is_passed_over_and_the_next_one_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mbox, "MAX_MESSAGE_BYTES", 1000)
    found = read(FIRST + b"Subject: a\n\n" + b"x" * 200_000 + b"\n\n" + FIRST + b"Subject: b\n\n")
    assert [each.raw for each in found] == [None, b"Subject: b\r\n"]


def test_lines_of_any_length_and_crlf_files_come_out_whole():
    body = b"Subject: a\r\n\r\n" + b"y" * 300_000 + b"\r\nend\r\n"
    assert [each.raw for each in read(FIRST.replace(b"\n", b"\r\n") + body + b"\r\n")] == [body]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(st.sampled_from("From >x\n"), max_size=60), max_size=4))
def test_what_another_writer_wrote_is_read_back(tmp_path_factory: pytest.TempPathFactory, bodies: list[str]):
    path: Path = tmp_path_factory.mktemp("mbox") / "a.mbox"
    box = mailbox.mbox(path)
    for body in bodies:
        box.add(f"Subject: a\n\n{body.rstrip()}\n")
    box.close()
    with path.open("rb") as file:
        found = [each.raw for each in read_mbox(file, 0)]
    wanted = [f"Subject: a\n\n{body.rstrip()}\n".replace("\n", "\r\n").encode() for body in bodies]
    # That writer quotes `From ` alone (mboxo), so `>From ` and its like are one to a reader.
    assert [_plain(raw or b"") for raw in found] == [_plain(raw) for raw in wanted]


def _plain(raw: bytes) -> list[bytes]:
    return [line.lstrip(b">") if line.lstrip(b">").startswith(b"From ") else line for line in raw.split(b"\r\n")]


@pytest.mark.parametrize(
    "first",
    [
        b"From a Mon Jan 01 00:00:00 +1400 0001\n",
        b"From a Fri Dec 31 23:59:59 -1400 9999\n",
        b"From a Mon Jan 01 00:00:00 0001\n",
        *(
            b"From a Xxx Xxx 99 99:99:99 2024\nDate: " + date
            for date in (
                *(b"Mon, 1 Jan 99999999999 00:00:00 GMT\n", b"Fri, 31 Dec 9999 23:59:59 -2359\n"),
                *(b"Fri, 31 Dec 2026 23:59:59 +99999999999999999999\n", b"9" * 6000 + b" Dec 2026 23:59:59\n"),
            )
        ),
        *(
            FIRST + b"X-Gmail-Labels: " + labels + b"\n"
            for labels in (
                *(b"a" * 200_000, b"a," * 200_000, b'"' + b"a,\0\r" * 2000, b"=?utf-8?q?=00=0a=0d=22?= " * 2000),
                *(b"=?utf-8?q?=0a?=", b"\xff\xfe", b'"', b"=?utf-8?b?" + b"Cgo" * 40_000 + b"?="),
            )
        ),
        FIRST + b"X-GM-MSGID: 99999999999999999999\nX-GM-THRID: 99999999999999999999\n",
        FIRST + b"X-GM-THRID: 1\n" * 100_000,
    ],
)
def test_a_message_made_to_hurt_is_one_like_all_and_the_next_follows(first: bytes):
    """Its date, labels or identity may be none; no import ends with it, for the next one would end there too."""
    found = read(first + b"Subject: a\n\none\n\n" + FIRST + b"Subject: b\n\ntwo\n\n")
    assert len(found) == 2
    for number, each in enumerate(found):
        raw = each.raw or b""
        envelope = Envelope(
            *("default", "import:0", 7, number + 1, each.gm_msgid, each.gm_thrid, each.labels, each.flags),
            *(each.internaldate or NOW, len(raw), hashlib.sha256(raw).hexdigest()),
        )
        assert _through_the_stream(envelope, raw) == envelope


def test_a_message_behind_four_gigabytes_of_a_file_keeps_its_offset_for_a_uid():
    envelope = Envelope(
        "default", "import:0", 7, 2**32 + 5, None, None, (), (), NOW, 1, hashlib.sha256(b"a").hexdigest()
    )
    assert _through_the_stream(envelope, b"a") == envelope


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _through_the_stream(envelope: Envelope, raw: bytes) -> Envelope:
    fields = codec.encode(RawMessage(envelope, raw), NOW, zstandard.ZstdCompressor())
    return codec.decode({name.encode(): value for name, value in fields.items()}, 2**24).envelope
