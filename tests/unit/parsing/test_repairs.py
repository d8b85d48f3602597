"""Damaged mail of every kind in `docs/parsing.md` reads as its writer meant it, in more shapes than the corpus has."""

from __future__ import annotations

import base64
import binascii
import zlib

import pytest

from email_ingestion.parsing import parse
from email_ingestion.records import Email
from tests.unit.parsing.messages import envelope

MIXED = b"Content-Type: multipart/mixed; boundary=b\n"


def read(raw: bytes) -> Email:
    return parse(envelope(), raw)


def text_of(content_type: str, encoding: str, body: bytes) -> str:
    head = f"From: a@b.de\nContent-Type: {content_type}\nContent-Transfer-Encoding: {encoding}\n\n"
    return read(head.encode() + body).text


@pytest.mark.parametrize(
    ("encoding", "body", "text"),
    [
        ("quoted-printable", "Grüße =E2=82=AC".encode(), "Grüße €"),
        ("quoted-printable", b"bell\x07 =41", "bell\x07 A"),
        ("quoted-printable", b"one= \r\ntwo=\t\r\nthree", "onetwothree"),
        ("quoted-printable", b"one=\rtwo\r\nthree", "onetwo\nthree"),
        ("quoted-printable", b"100% =ZZ =", "100% =ZZ "),
        ("Quoted_Printable", b"=41", "A"),
        ('"quoted-printable"', b"=41", "A"),
        ("quoted-printable;", b"=41", "A"),
        ("(coded) quoted-printable", b"=41", "A"),
        ("base64", b"aGVsbG8g\r\nd29ybGQ=\r\n", "hello world"),
        ("base64", b"aGVsbG8g\r\n d29ybGQ=\r\n", "hello world"),
        ("base64", b"aGVsbG8=\r\nd29ybGQ=\r\n", "helloworld"),
        ("base64", b"aGVsbG8g!d29ybGQ\r\n", "hello world"),
        ("base64", b"Dear all, this is not base64.\r\n", "Dear all, this is not base64.\n"),
        ("base64", "Grüße, die nicht kodiert sind\r\n".encode(), "Grüße, die nicht kodiert sind\n"),
        ("base-64", b"aGVsbG8=", "hello"),
        ("8-bit", b"hello", "hello"),
        ("utf-8", b"hello=41", "hello=41"),
    ],
)
def test_an_encoding_loses_nothing(encoding: str, body: bytes, text: str) -> None:
    assert text_of("text/plain; charset=utf-8", encoding, body) == text


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (b"--b\nContent-Type: text/plain\nHello there\n\nsecond\n--b--", "Hello there\n\nsecond"),
        (b"--b\nHello there\nsecond\n--b--", "Hello there\nsecond"),
        (b"--b\nHello\n\nsecond\n--b--", "Hello\n\nsecond"),
        (b"--b\nContent-Type: text/plain\nhttp://example.com/\n--b--", "http://example.com/"),
        (b"--b\nContent-Type: text/plain\nNote: call me\n--b--", "Note: call me"),
        (b"--b\n\none\n--b\nContent-Type: text/plain\n\ntwo", "one\ntwo"),
        (b"--b\n\none\n--b--\n--b\nContent-Type: text/plain\n\ntwo\n--b--", "one\ntwo"),
        (b"--b\n\none\n--b \t\n\ntwo\n--b-- \n", "one\ntwo"),
        (b"--b\n\none\n--bc\n--b--", "one\n--bc"),
        (b"--b\nContent-Type: text/plain;\ncharset=utf-8\n\nGr\xc3\xbc\xc3\x9fe\n--b--", "Grüße"),
        (b"--b\nContent-Type: multipart/mixed; boundary=c\n--c\n\none\n--c--\n--b--", "one"),
        (b"--b\nContent-Type: multipart/mixed; boundary=c\n\n--c\n\none\n--b\n\ntwo\n--b--", "one\ntwo"),
        (b"preamble\n--b\n\none\n--b--\nepilogue", "one"),
        (b"--c\nContent-Type: text/plain\n\none\n--c--", "one"),
        (b"no delimiter at all", "no delimiter at all"),
    ],
)
def test_a_multipart_gives_the_text_of_all_its_parts(parts: bytes, text: str) -> None:
    assert read(b"From: a@b.de\n" + MIXED + b"\n" + parts).text == text
    assert read((b"From: a@b.de\n" + MIXED + b"\n" + parts).replace(b"\n", b"\r\n")).text == text


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbfSubject: hello\nFrom: a@b.de\n\nbody",
        b"From a@b.de Mon Jan  1\nSubject: hello\nFrom: a@b.de\n\nbody",
        b"Subject: hello\njunk\njunk two\njunk three\nFrom: a@b.de\n\nbody",
        b"Subject: hello\nFrom: a@b.de\nSentence without end\n\nbody",
        b"Subject: hello\r\r\nFrom: a@b.de\r\r\n\r\r\nbody",
        b"Subject: hello\rFrom: a@b.de\r\rbody",
        b"Subject: hello\nContent-Type: text/plain;\nformat=fixed\nFrom: a@b.de\n\nbody",
        b"Subject: hello\nFrom: a@b.de\nbody",
    ],
)
def test_a_damaged_header_keeps_its_fields_and_the_body(raw: bytes) -> None:
    email = read(raw)
    assert (email.subject, email.from_ and email.from_.addr, email.text) == ("hello", "a@b.de", "body")


@pytest.mark.parametrize(
    ("value", "subject"),
    [
        (b"=?utf-8?Q?what??=", "what?"),
        (b"=?utf-8?Q?a?b?= c", "a?b c"),
        (b"=?utf-8?Q?a=3D?= =?utf-8?B?Yg==?=", "a=b"),
        (b"=?utf-8?B?R3LD?= =?utf-8?Q?=BC=C3=9Fe?=", "Grüße"),
        (b"=?utf-8?B?R3LDv?= =?utf-8?B?MOfZQ==?=", "Grüße"),
        (b"=?iso-8859-1?Q?Gr\xfc\xdfe?= =?utf-8?Q?_=E2=82=AC?=", "Grüße €"),
        (b"=?gb2312?Q?\xc4\xe3\xba\xc3?=", "你好"),
        (b"=?utf-8?B?Hello, this is text?=", "Hello, this is text"),
        (b"=??Q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b"=?utf-8*de?Q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b"=?iso-2022-jp?B?GyRCRnxLXDhsGyhC?=", "日本語"),
        (b"=?iso-2022-jp?B?GyRCRnxLXDhs?=", "日本語"),
        (b"\x1b$BF|K\\8l\x1b(B", "日本語"),
    ],
)
def test_an_encoded_word_is_decoded_whatever_is_in_it(value: bytes, subject: str) -> None:
    assert read(b"Subject: " + value + b"\n\nx").subject == subject


JIS = b"\x1b$BF|K\\8l\x1b(B"


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain; charset=iso-2022-jp", b"\x1b$B-!-j\x1b(B", "①㈱"),
        ("text/plain; charset=iso-2022-jp", b"\x1b(I1\x1b(B x", "ｱ x"),
        ("text/plain; charset=iso-2022-jp", b"\x1b$BF|K\\8l\nend", "日本語\nend"),
        ("text/plain; charset=ISO-2022-JP", b"\xb1 " + JIS, "ｱ 日本語"),
        ("text/plain; charset=utf-8", JIS, "日本語"),
        ("text/plain; charset=us-ascii", JIS, "日本語"),
        ("text/plain", b"\x1b$)C\x0eGQ1[\x0f", "한글"),
        ("text/plain; charset=iso-8859-1", "Grüße €".encode(), "Grüße €"),
        ("text/plain; charset=koi8-r", "Привет".encode(), "Привет"),
        ("text/plain; charset=gbk", "你好世界这是一个测试".encode(), "你好世界这是一个测试"),
        ("text/plain; charset=gbk", "你好".encode("gbk"), "你好"),
        ("text/plain; charset=iso-8859-1", "转发整体提升企业服务水平".encode("gbk"), "转发整体提升企业服务水平"),
        ("text/plain; charset=iso-8859-1", "Größe, Maß und Übermut é".encode("latin-1"), "Größe, Maß und Übermut é"),
        ("text/plain; charset=utf-16", "Grüße".encode("utf-16"), "Grüße"),
        ("text/plain; charset=utf-16le", "Grüße".encode("utf-16-le"), "Grüße"),
        ("text/plain; charset=utf-8", b"\xff\xfe" + "Grüße".encode("utf-16-le"), "Grüße"),
        ("text/plain", "Hello, Größe".encode("utf-16-le"), "Hello, Größe"),
        ("text/plain; charset=us-ascii", "Hello there".encode("utf-16-be"), "Hello there"),
        ("text/plain; charset=utf-8", "Hello there\r\nyou".encode("utf-16"), "Hello there\nyou"),
        ("text/plain; charset=utf-16", b"plain ASCII text", "plain ASCII text"),
        ("text/plain; charset=x-unknown", "Grüße".encode(), "Grüße"),
        ("text/plain; charset=charset=utf-8", "Grüße".encode(), "Grüße"),
        ("text/plain charset=windows-1251", "Привет".encode("cp1251"), "Привет"),
        ("text/plain; charset=windows-1251 format=flowed", "Привет".encode("cp1251"), "Привет"),
        ("text/plain;charset=windows-1251;", "Привет".encode("cp1251"), "Привет"),
        ("text/plain, charset=windows-1251", "Привет".encode("cp1251"), "Привет"),
        ("text/plain (text) ; charset=windows-1251 (Russian)", "Привет".encode("cp1251"), "Привет"),
        ("text/html; charset=us-ascii", b"<meta charset=gb2312><p>\xc4\xe3\xba\xc3</p>", "你好"),
        ("text/html", '<meta charset="koi8-r"><p>Привет</p>'.encode("koi8-r"), "Привет"),
    ],
)
def test_a_text_is_read_in_the_charset_it_was_written_in(content_type: str, body: bytes, text: str) -> None:
    assert text_of(content_type, "8bit", body) == text


@pytest.mark.parametrize("label", ["x-sjis", "windows-31j", "MS_Kanji", "cswindows31j", "shift_jis"])
def test_labels_of_japan_are_known(label: str) -> None:
    assert text_of(f"text/plain; charset={label}", "8bit", "日本語①".encode("cp932")) == "日本語①"


def yenc(content: bytes) -> bytes:
    coded = bytes((byte + 42) & 255 for byte in content)
    for critical in (b"=", b"\0", b"\r", b"\n"):
        coded = coded.replace(critical, b"=" + bytes(((critical[0] + 64) & 255,)))
    return b"=ybegin line=128 size=%d name=a.bin\r\n%b\r\n=yend size=%d\r\n" % (len(content), coded, len(content))


def uuencoded(content: bytes) -> bytes:
    lines = [binascii.b2a_uu(content[start : start + 45]) for start in range(0, len(content), 45)]
    return b"begin 644 a.bin\n" + b"".join(lines) + b"`\nend\n"


@pytest.mark.parametrize("encode", [yenc, uuencoded])
def test_a_file_in_the_text_is_an_attachment(encode: object) -> None:
    content = bytes(range(256)) * 3
    block = encode(content)  # type: ignore[operator]
    email = read(b"Subject: x\nContent-Transfer-Encoding: 8bit\n\nbefore\n" + block + b"after\n" + block)
    assert [(one.filename, one.content) for one in email.attachments] == [("a.bin", content)] * 2
    assert email.text == "before\nafter\n"


@pytest.mark.parametrize(
    "text",
    ["begin 644 a\nno file\nend\n", "begin the day\nend\n", "=ybegin line=128 size=1 name=a\nxyz\n", "begin 644 a\n"],
)
def test_prose_that_begins_like_a_file_stays_text(text: str) -> None:
    email = read(b"Subject: x\n\n" + text.encode())
    assert (email.text, email.attachments) == (text, ())


@pytest.mark.parametrize(
    ("enriched", "text"),
    [
        ("<bold>Now</bold> is\nthe time\n\nfor all", "Now is the time\nfor all"),
        ("<color><param>red</param>blood</color> 1 << 2", "blood 1 < 2"),
        ("<nofill>a\nb</nofill>", "a\nb"),
    ],
)
def test_enriched_text_is_the_body(enriched: str, text: str) -> None:
    email = read(b"Subject: x\nContent-Type: text/enriched\n\n" + enriched.encode())
    assert (email.text, email.attachments) == (text, ())


def signed(content: bytes) -> bytes:
    from asn1crypto import cms  # noqa: PLC0415 - only here

    data = cms.SignedData(
        {
            "version": "v1",
            "digest_algorithms": [],
            "encap_content_info": {"content_type": "data", "content": content},
            "signer_infos": [],
        }
    )
    return bytes(cms.ContentInfo({"content_type": "signed_data", "content": data}).dump())


def compressed(content: bytes) -> bytes:
    from asn1crypto import cms  # noqa: PLC0415 - only here

    data = cms.CompressedData(
        {
            "version": "v0",
            "compression_algorithm": {"algorithm": "zlib"},
            "encap_content_info": {"content_type": "data", "content": zlib.compress(content)},
        }
    )
    return bytes(cms.ContentInfo({"content_type": "compressed_data", "content": data}).dump())


INNER = (
    b"Content-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\nContent-Type: text/plain\r\n\r\nsigned text\r\n--i\r\n"
    b"Content-Type: image/png; name=a.png\r\n\r\nPNG\r\n--i--\r\n"
)


@pytest.mark.parametrize("content", [signed(INNER), compressed(INNER)])
def test_opaque_smime_is_opened(content: bytes) -> None:
    head = b"Content-Type: application/pkcs7-mime; smime-type=signed-data; name=smime.p7m\n"
    email = read(head + b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(content))
    assert email.text == "signed text"
    assert [one.filename for one in email.attachments] == ["smime.p7m", "a.png"]
    assert email.attachments[0].content == content


@pytest.mark.parametrize("content", [b"", b"0\x80", b"\x30" * 10_000, signed(INNER)[:60], b"\x30\x80" * 10_000])
def test_damaged_smime_is_an_attachment(content: bytes) -> None:
    head = b"Content-Type: application/pkcs7-mime; name=smime.p7m\nContent-Transfer-Encoding: base64\n\n"
    email = read(head + base64.encodebytes(content))
    assert "smime:unreadable" in email.defects
    assert email.attachments[0].content == content


@pytest.mark.parametrize(
    ("fields", "content_type", "filename"),
    [
        (b'Content-Type: image/png (a picture); name="a.png"', "image/png", "a.png"),
        (b"Content-Type: image/png; (a picture) name=a.png", "image/png", "a.png"),
        (b'Content-Type: "image/png"; name=a.png', "image/png", "a.png"),
        (b"Content-Type: image/png name=a.png", "image/png", "a.png"),
        (b"Content-Type: IMAGE/PNG;NAME=a.png;", "image/png", "a.png"),
        (b"Content-Type: image/png\nContent-Disposition: filename=a.png", "image/png", "a.png"),
        (b"Content-Type: image/png\nContent-Disposition: attachment filename=a.png", "image/png", "a.png"),
        (b'Content-Type: image/png\nContent-Disposition: "attachment"; filename="a.png"', "image/png", "a.png"),
        (b"Content-Type: image/png;\nname=a.png", "image/png", "a.png"),
        (b"Content-Type: image/png; name=a b.png", "image/png", "a b.png"),
        (b'Content-Type: image/png; name="a;b.png"', "image/png", "a;b.png"),
        (
            b'Content-Type: image/png; name="=?utf-8?Q?Gr=C3=BC?=\n =?utf-8?Q?=C3=9Fe.png?="',
            "image/png",
            "Gr\u00fc\u00dfe.png",
        ),
    ],
)
def test_type_and_name_of_an_attachment_are_found(fields: bytes, content_type: str, filename: str) -> None:
    (attachment,) = read(MIXED + b"\n--b\n" + fields + b"\n\nx\n--b--\n").attachments
    assert (attachment.content_type, attachment.filename) == (content_type, filename)


@pytest.mark.parametrize("colon", [" :", "\t:", "  :"])
def test_a_from_field_with_a_blank_before_its_colon_is_no_line_of_an_mbox(colon: str):
    read_one = read(f"From{colon} a@example.com\nSubject{colon} x\n\nhello".encode())
    assert (read_one.from_ and read_one.from_.addr, read_one.subject) == ("a@example.com", "x")


@pytest.mark.parametrize(
    ("written", "subject"),
    [
        ("=?utf-8?B?w6Q?= =?utf-8?B?YWJj=?=", "äabc"),  # each word with the wrong padding
        ("=?utf-8?B?w6Q==?= =?utf-8?B?YWI?=", "äab"),
        ("=?utf-8?B?R3LDvM?= =?utf-8?B?OfZQ==?=", "Grüße"),  # one text, cut within a byte
        ("Une =?ISO-8859-1?Q\t?compl=E9ter=20?=sur", "Une compléter sur"),
    ],
)
def test_encoded_words_with_wrong_padding_or_a_blank_are_read_word_by_word(written: str, subject: str):
    assert read(f"From: a@example.com\nSubject: {written}\n\nhello".encode()).subject == subject
