"""Bombs: a message in which one token is repeated up to a megabyte, in each place where a parser looks.

What is quadratic shows here: a loop that begins again at each sign, a pattern that runs to the end from each of them.
"""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Callable

_FIELDS = (
    *("From", "To", "Cc", "Reply-To", "Sender", "Date", "Subject", "Message-ID", "In-Reply-To", "References"),
    *("Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID", "MIME-Version", "Received"),
    *("List-Id", "List-Unsubscribe", "Authentication-Results", "Auto-Submitted", "X-Failed-Recipients", "X-Priority"),
)
_TYPES = (
    *("text/plain", "text/html", "text/plain; format=flowed; delsp=yes", "text/enriched", "text/plain; charset=utf-16"),
    *("text/plain; charset=iso-2022-jp", "text/html; charset=utf-7", "text/plain; charset=x-nobody", "text/calendar"),
    *("message/rfc822", "message/delivery-status", "message/feedback-report", "multipart/mixed; boundary=x"),
    *("multipart/alternative; boundary=x", "multipart/report; report-type=delivery-status; boundary=x"),
    *("application/ms-tnef", "application/pkcs7-mime; smime-type=signed-data; name=smime.p7m", "application/rtf"),
)
_TNEF = b"\x78\x9f\x3e\x22\x01\x00"
_RTF = b"{\\rtf1\\ansi\\fromhtml1 "
# Before what is repeated: what makes a parser look for an end.
_OPENERS = (
    *(b"", b"<", b"<a ", b"<a b='", b'<a b="', b"<a b=", b"<!--", b"<script>", b"<style>", b"<title>"),
    *(b"<![CDATA[", b"<p style='", b"<table><tr><td>", b"<ol><li value=", b"&#", b"(", b'"', b"=?utf-8?q?"),
    *(b"=?utf-8?b?", b"a@b ", b"begin 644 a\n", b"=ybegin line=128 size=9 name=a\n", b"\x1b$B", b"--x\n\n"),
    *(b"\n--x\nContent-Type: text/html\n\n", b"text/plain; ", b'text/plain; name="', b"text/plain; name*=utf-8''"),
    *(b"multipart/mixed; boundary=", b"Mon, 1 Jan ", b"This is the qmail-send program\n"),
    *(b"Delivery to the following recipient failed permanently:\n", b"BEGIN:VCALENDAR\n"),
    *(b"This message was created automatically by mail delivery software (Exim).\nfollowing address(es) failed:\n",),
    *(_TNEF, _RTF, b"Final-Recipient: rfc822; ", b"Reporting-MTA: dns; x\n\n", b"<bold>", b"<param>", b"cid:"),
    *(b"mx.google.com; ",),
)
_REPEATED = (
    *(b" ", b"\t", b"\n", b"\r", b"\r\n", b"\n ", b"\n\t", b" \n", b"a", b"a ", b"a\n", b"0", b"9", b"=", b"?"),
    *(b"=?", b"?=", b"<", b">", b"</", b"<a", b"<a ", b"<a>", b"</a>", b"<b><p>", b"<br>", b"<!", b"<!--", b"--"),
    *(b"--!", b"-->", b"<?", b"<!-", b"</script", b"</style ", b"<script>", b"</title", b"<td>", b"<li>", b"<p"),
    *(b" style=", b" style='", b"'", b'"', b"\\", b'\\"', b"=3D", b"= ", b"=\n", b"=\r", b" \r", b"&", b"&#"),
    *(b"&#1", b"&amp", b";", b":", b",", b"@", b".", b"(", b")", b"()", b"[", b"]", b"a@b", b"a@b ", b"a@b,"),
    *(b"<a@b>", b"<a@b> ", b"@a,", b"@a:", b"a:;", b'""', b"a=b;", b"a*0*=b;", b"a=b ", b" ;", b"%41", b"''"),
    *(b"=?utf-8?q?a?=", b"=?utf-8?b?", b"=?a?q?", b"?q?", b"--x", b"--x\n", b"--x--\n", b"\n--x\n\n", b"--x\r"),
    *(b"A: b\n", b"A:", b" =_", b"begin 644 a\n", b"M\n", b"end\n", b"=ybegin ", b"=yend\n", b"=y", b"\x1b"),
    *(b"\x1b$B", b"\x1b(B", b"$3", b"\x0e", b"\x0f", b"~{", b"+", b"\\'", b"\\*", b"{", b"}", b"{\\*", b"\\bin9"),
    *(b"\\u1 ", b"\\htmltag", b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x80", b"\xa4\xa2", b"0\x80", b"$\x80"),
    *(b"\x01", b"\x02\x06\x90\x08\x00", b"GMT", b"GMT ", b"+0", b"1:", b"Mon,", b"spf=", b"dkim", b"smtp;"),
    *(b"cid:", b"charset", b"charset ", b"<meta ", b"name=", b"display:", b"a-", b"x.", b"METHOD"),
    *(b"BEGIN:VEVENT\n", b"<x-y>", b"<<", b">>", b"> "),
)


def bomb(seed: int, number: int, largest: int = 1_000_000) -> bytes:
    """Return the `number`-th bomb of a seed."""
    chance = random.Random(f"bomb:{seed}:{number}")
    pumped = _pumped(chance, largest)
    if chance.random() < 0.35:  # the other two thirds are bodies, which have more places
        field = chance.choice(_FIELDS).encode()
        return b"%b: %b\nTo: a@example.com\n\nhi\n" % (field, pumped)
    kind = chance.choice(_TYPES).encode()
    encoding, encode = chance.choice(_ENCODINGS)
    sender = chance.choice((b"a@example.com", b"mailer-daemon@example.com"))
    head = b"From: %b\nSubject: x\nContent-Type: %b\nContent-Transfer-Encoding: %b\n" % (sender, kind, encoding)
    return head + b"\n" + encode(pumped)


def _pumped(chance: random.Random, largest: int) -> bytes:
    repeated = chance.choice(_REPEATED)
    if chance.random() < 0.3:  # two tokens in turn find what one does not
        repeated += chance.choice(_REPEATED)
    if chance.random() < 0.15:  # or an opening each time
        repeated = chance.choice(_OPENERS) + repeated
    times = largest // len(repeated)
    return chance.choice(_OPENERS) + repeated * times + chance.choice((b"", b"", b"x", *_REPEATED))


def _as_is(content: bytes) -> bytes:
    return content


_ENCODINGS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    *(
        (b"8bit", _as_is),
        (b"8bit", _as_is),
        (b"quoted-printable", _as_is),
        (b"base64", _as_is),
        (b"x-uuencode", _as_is),
    ),
    (b"base64", b64encode),
    (b"binary", _as_is),
)
