"""Names of messages are read out of whatever another system exports them as."""

from __future__ import annotations

import errno
import io
import os

import pytest

from email_ingestion.reconcile.id_list import UnreadableList, read_names

WANTED = ["a.1@example.org", "B/2+x@example.org", "c3@example.org"]
PLAIN = "".join(f"<{each}>\r\n" for each in WANTED)
TABLE = "Date,Subject,Message-Id\r\n" + "".join(f'2026-01-01,"Hello, {each}","<{each}>"\r\n' for each in WANTED)
FOLDED = f"Message-ID:\n <{WANTED[0]}>\nMessage-Id: <B/2+x\n @example.org>\nmessage-id : <{WANTED[2]}>\n"
MBOX = f"""From ann@example.org Thu Jan  1 00:00:00 2026
Subject: one
Message-ID: <{WANTED[0]}>

Message-ID: <quoted@example.org>
>From here on

From bob@example.org Fri Jan  2 00:00:00 2026
Message-Id:
\t<{WANTED[1]}>
References: <other@example.org>

hello

From carol@example.org Sat Jan  3 00:00:00 2026
X-Message-ID: <x@example.org>
MESSAGE-ID: <{WANTED[2]}>

"""
JSON = (
    f'{{"schema": "email.v1", "message_id": "<{WANTED[0]}>"}}\n'
    f'{{"schema": "change.v1", "kind": "deleted", "email_id": "default:gm:7"}}\n'
    f'{{"Message-ID": "{WANTED[1]}"}}\n\n{{"internetMessageId": "<{WANTED[2]}>", "subject": null}}'
)


def names(content: str | bytes, encoding: str = "utf-8") -> list[str]:
    return list(read_names(io.BytesIO(content if isinstance(content, bytes) else content.encode(encoding)), "list"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("content", [PLAIN, TABLE, PLAIN.replace("\r\n", "\r"), PLAIN.replace("\r\n", "\n\n\n")])
def test_whatever_the_encoding_and_the_ends_of_lines(content: str, encoding: str):
    assert names(content, encoding) == WANTED


@pytest.mark.parametrize(
    "content",
    [
        "Message-ID\n" + "\n".join(WANTED),
        "\n".join(f'  "<{each}>" , ' for each in WANTED),
        "\n".join(f"\u200b<{each}>\u00a0" for each in WANTED),
        "\n".join(f"Message-ID: {each}" for each in WANTED),
        FOLDED,
        MBOX,
        MBOX.replace("\n", "\r\n"),
        JSON,
        TABLE.replace(",", ";").replace("Message-Id", "InternetMessageId"),
        "\n".join(f"{place}\t<{each}>\tAnn <ann@example.org>" for place, each in enumerate(WANTED)),
        "\n\n;;\nx;Message ID;y\n" + "\n".join(f";<{each}>;" for each in WANTED) + "\n;;\n",
        "von\u00fc,message_id\n" + "\n".join(f"J\u00f6rg,{each}" for each in WANTED),
    ],
)
def test_in_whatever_form(content: str):
    assert names(content) == WANTED
    assert names(content, "utf-16") == WANTED


def test_our_own_name_goes_before_the_message_id():
    table = "message_id,email_id\n<a@example.org>,default:gm:1\n<b@example.org>,\n"
    assert names(table) == ["default:gm:1", "b@example.org"]


def test_what_is_in_no_encoding_harms_no_name():
    assert names(b"Betreff,Message-ID\nGr\xfc\xdfe,<a@example.org>\n") == ["a@example.org"]


def test_a_block_may_end_anywhere():
    many = [f"{number:0>{number % 40}}@example.org" for number in range(5_000)]
    for end in ("\n", "\r\n", "\r"):
        assert names(end.join(many)) == many


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "is no text"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00abcdefghijklmnopqrstuvwxyz", "is no text"),
        (b"<a@example.org>\n" * 500 + b"\0", "is no text"),
        (b"a" * 3_000_000, "is no text"),
        (b"Date,From\n2026-01-01,ann@example.org\n", "no column is called Message-ID"),
        (b"Ann <a@example.org>,<1@x>\nBob <b@example.org>,<2@x>\n<c@example.org>,<3@x>", None),
        (b"<a@example.org>,<1@x>\n<c@example.org>,<3@x>", "no column is called Message-ID"),
        (b'["<a@example.org>"]', "JSON in one piece"),
        (b'{"message_id": "a"}\n{"message_id"\n', "line 2 is no JSON object"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(content: bytes, words: str | None):
    if words is None:
        assert names(content) == ["1@x", "2@x", "3@x"]
    else:
        with pytest.raises(UnreadableList, match=words):
            names(content)


def test_a_file_that_cannot_be_read_to_its_end_is_no_list() -> None:
    class Failing(io.BytesIO):
        """As a file on a disk with a bad block, or of a server that went away."""

        def read(self, size: int | None = -1) -> bytes:
            if not self.tell():
                return super().read(size)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(UnreadableList, match="ids cannot be read to its end: Input/output error"):
        list(read_names(Failing(b"<a@example.com>\n" * 1000), "ids"))
