"""Mail for measurements, the same bytes on every machine: mean about 30 KB, median about 12 KB, attachments to 4 MB.

Shaped like a mailbox: notes, mail from phones, newsletters, quoted threads, and now and then something attached.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.header import Header
from email.utils import format_datetime
from functools import cache
from itertools import cycle, islice
from quopri import encodestring
from random import Random

SEED = 2026
MOST_ATTACHED = 4 * 1024 * 1024
# What a message is, and how many of a thousand are it.
KINDS = {"note": 240, "phone": 260, "newsletter": 300, "thread": 140, "document": 57, "photos": 3}
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "is",
    "was",
    "for",
    "it",
    "with",
    "as",
    "be",
    "on",
    "by",
    "at",
    "this",
    "have",
    "from",
    "or",
    "had",
    "not",
    "are",
    "but",
    "which",
    "one",
    "you",
    "were",
    "invoice",
    "meeting",
    "tomorrow",
    "please",
    "attached",
    "regards",
    "report",
    "quarter",
    "delivery",
    "customer",
    "schedule",
    "project",
    "budget",
    "review",
    "question",
    "answer",
    "update",
    "number",
    "account",
    "service",
    "order",
    "payment",
    "contract",
    "release",
    "version",
    "server",
    "ticket",
    "agenda",
    "team",
    "straße",
    "größe",
    "überweisung",
    "café",
    "naïve",
    "señor",
    "résumé",
    "東京",
    "会議",
    "отчёт",
    "встреча",
]
PEOPLE = ("ann", "ben", "carla", "dmitri", "eve", "farid", "greta", "hiro")
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


def letters(count: int, seed: int = SEED) -> Iterator[bytes]:
    """The first `count` messages, one after the other; number n is the same however many are asked for."""
    kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
    for number in range(count):
        rng = Random(seed * 1_000_003 + number)  # noqa: S311 - the same every time is the point
        yield _letter(number, kinds[rng.randrange(len(kinds))], rng)


def _letter(number: int, kind: str, rng: Random) -> bytes:
    content = {"note": _note, "phone": _phone, "newsletter": _newsletter, "thread": _thread}.get(kind, _attached)
    head, body = content(rng, number) if content is not _attached else _attached(rng, number, photos=kind == "photos")
    return ("\r\n".join([*_head(number, rng), *head]) + "\r\n\r\n").encode() + body


def _head(number: int, rng: Random) -> list[str]:
    """The fields in front of the content, those included that servers on the way add."""
    sender, receiver = rng.sample(PEOPLE, 2)
    subject = Header(_words(rng, rng.randint(3, 9)), "utf-8", header_name="Subject").encode(linesep="\r\n")
    key = base64.b64encode(rng.randbytes(256)).decode()
    signature = "\r\n\t ".join(textwrap.wrap(key, 70))
    date = format_datetime(BEGIN + timedelta(minutes=7 * number))
    return [
        f"Delivered-To: {receiver}@example.com",
        f"Received: by 2002:a05:6a10 with SMTP id x{number:08x}; {date}",
        (
            f"Received: from mail-{number % 97}.example.org (mail.example.org [192.0.2.{number % 250}])\r\n"
            f"        by mx.example.com with ESMTPS id y{number:010x} for <{receiver}@example.com>; {date}"
        ),
        "Authentication-Results: mx.example.com; dkim=pass header.i=@example.org; spf=pass; dmarc=pass",
        (
            f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=2024;\r\n"
            f"\t h=from:to:subject:date; bh={key[:43]}=;\r\n\t b={signature}"
        ),
        f"From: {Header(f'{sender.title()} Müller', 'utf-8').encode()} <{sender}@example.org>",
        f"To: {receiver.title()} <{receiver}@example.com>",
        f"Subject: {subject}",
        f"Date: {date}",
        f"Message-ID: <{number:012x}.{rng.getrandbits(64):016x}@example.org>",
        "MIME-Version: 1.0",
    ]


def _note(rng: Random, number: int) -> tuple[list[str], bytes]:
    del number
    text = _text(rng, _around(rng, 1_250))
    head = ["Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: quoted-printable"]
    return head, _quoted(text)


def _phone(rng: Random, number: int) -> tuple[list[str], bytes]:
    text = _text(rng, _around(rng, 1_100))
    return _multipart("alternative", number, [_plain(text), _html(_page(text, rng, links=3))])


def _newsletter(rng: Random, number: int) -> tuple[list[str], bytes]:
    text = _text(rng, _around(rng, 2_700))
    head, body = _multipart("alternative", number, [_plain(text[:1_500]), _html(_page(text, rng, links=25))])
    listed = ["List-Id: News <news.example.org>", "List-Unsubscribe: <https://example.org/leave>", "Precedence: bulk"]
    return [*listed, *head], body


def _thread(rng: Random, number: int) -> tuple[list[str], bytes]:
    text = _text(rng, _around(rng, 750))
    for depth in range(rng.randint(1, 5)):
        text += "\n\nOn Monday somebody wrote:\n" + textwrap.indent(_text(rng, _around(rng, 560)), "> " * (depth + 1))
    references = " ".join(f"<{number - back:012x}@example.org>" for back in range(1, 6))
    head, body = _multipart("alternative", number, [_plain(text), _html(_page(text, rng, links=2))])
    return [f"In-Reply-To: <{number - 1:012x}@example.org>", f"References: {references}", *head], body


def _attached(rng: Random, number: int, *, photos: bool) -> tuple[list[str], bytes]:
    parts = [_plain(_text(rng, _around(rng, 1_500)))]
    for index in range(rng.randint(1, 3) if photos else 1):
        size = min(MOST_ATTACHED, _around(rng, 800_000 if photos else 100_000))
        # Compressed formats: nothing is gained by packing them once more.
        parts.append(_file(f"{'photo' if photos else 'report'}-{number}-{index}", rng.randbytes(size), photos=photos))
    return _multipart("mixed", number, parts)


def _around(rng: Random, size: int) -> int:
    """Bytes: log-normal, as sizes of mail are."""
    return round(size * rng.lognormvariate(0, 0.6))


def _words(rng: Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def _text(rng: Random, size: int) -> str:
    """Lines out of one long text that all messages quote from: drawing every word would take minutes."""
    count, lines = max(1, size // 66), _lines()
    start = rng.randrange(len(lines))
    return "\n".join(islice(cycle(lines), start, start + count))


@cache
def _lines() -> list[str]:
    return textwrap.wrap(_words(Random(SEED), 30_000), 72)  # noqa: S311 - as above


def _page(text: str, rng: Random, links: int) -> str:
    style = "font-family:Helvetica,Arial,sans-serif;font-size:14px;line-height:20px;color:#333333;padding:0 12px"
    rows = [f'<tr><td align="left" style="{style}">{line}</td></tr>' for line in text.split("\n") if line.strip(" >")]
    for _ in range(links):
        target = f"https://example.org/click/{rng.getrandbits(160):040x}"
        rows.append(f'<tr><td style="{style}"><a href="{target}">{_words(rng, 3)}</a></td></tr>')
    return f"<!DOCTYPE html><html><head><title>news</title></head><body><table>{''.join(rows)}</table></body></html>"


def _quoted(text: str) -> bytes:
    return encodestring(text.encode()).replace(b"\n", b"\r\n")


def _plain(text: str) -> bytes:
    return _part("text/plain; charset=utf-8", "quoted-printable", _quoted(text))


def _html(page: str) -> bytes:
    return _part("text/html; charset=utf-8", "quoted-printable", _quoted(page))


def _file(name: str, content: bytes, *, photos: bool) -> bytes:
    kind, end = ("image/jpeg", "jpg") if photos else ("application/pdf", "pdf")
    encoded = base64.encodebytes(content).replace(b"\n", b"\r\n")
    disposition = f'\r\nContent-Disposition: attachment; filename="{name}.{end}"'
    return _part(f'{kind}; name="{name}.{end}"{disposition}', "base64", encoded)


def _part(content_type: str, encoding: str, content: bytes) -> bytes:
    return f"Content-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + content


def _multipart(subtype: str, number: int, parts: list[bytes]) -> tuple[list[str], bytes]:
    boundary = f"=_part_{number:012x}"
    line = f"\r\n--{boundary}".encode()
    body = b"".join(line + b"\r\n" + part for part in parts) + line + b"--\r\n"
    return [f'Content-Type: multipart/{subtype}; boundary="{boundary}"'], body
