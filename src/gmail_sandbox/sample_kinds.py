"""The kinds of mail in the sample: each function drafts one message of its kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from gmail_sandbox import mime_builder

if TYPE_CHECKING:
    import random

    from gmail_sandbox.mime_builder import MimeBody

OWNER = "Demo <demo@example.com>"
_PEOPLE = ("Ansel", "Brisa", "Corin", "Delia", "Edda", "Falk", "Gitte", "Hanno", "Ilka", "Jorin", "Kaija", "Levin")
_PLACES = ("example.com", "example.net", "example.org")
_TOPICS = (
    "budget for the second quarter",
    "agenda for Thursday",
    "the broken build",
    "summer timetable",
    "draft of the report",
    "keys to the office",
    "test results",
    "new shelf in the kitchen",
    "train tickets",
    "review of the proposal",
)
_PROSE = (
    "please have a look at the second page and tell me whether the numbers can be right the meeting moved to the "
    "small room on the first floor we should order the parts before the end of the month I will send the notes "
    "tomorrow morning thanks for the quick answer nobody has touched the old server since spring"
)
_WORDS = _PROSE.split()
_FOREIGN = (
    ("Grüße aus Köln", "utf-8", "Schöne Grüße und bis Übermorgen."),
    ("Réunion déplacée à jeudi", "iso-8859-1", "La réunion est déplacée à jeudi, même salle."),
    ("会議のお知らせ", "shift_jis", "明日の会議は十時からです。"),
    ("Отчёт за квартал", "koi8-r", "Добрый день, отчёт за квартал готов."),
    ("Zażółć gęślą jaźń 🐝", "utf-8", "Dzień dobry, w załączeniu plan."),
)
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8cfc0000003010100"
    "c9fe92ef0000000049454e44ae426082"
)


@dataclass(frozen=True)
class MessageDraft:
    """A message without its standard headers, or a whole one in `raw`."""

    sender: str
    subject: str
    body: MimeBody
    labels: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()
    to: str = OWNER
    raw: bytes | None = None


@dataclass
class SampleContext:
    """The state of the generator: date, random numbers, and the conversations so far."""

    rng: random.Random
    index: int = 0
    when: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    threads: list[tuple[str, list[str], str]] = field(default_factory=list)

    def advance(self, index: int, when: datetime) -> None:
        """Go to the next message."""
        self.index, self.when = index, (when + timedelta(minutes=self.rng.randrange(30))).replace(microsecond=0)

    @property
    def message_id(self) -> str:
        """Return the Message-ID of the message being drafted."""
        return f"<sample-{self.index:05}.{self.when:%Y%m%d%H%M}@mail.example.com>"

    def boundary(self, level: int = 0) -> str:
        """Return a boundary of its own for each message and level."""
        return f"=_sandbox_{self.index:05}_{level}"

    def person(self) -> str:
        """Return somebody's address."""
        name = self.rng.choice(_PEOPLE)
        return f"{name} <{name.lower()}@{self.rng.choice(_PLACES)}>"

    def sentences(self, count: int) -> str:
        """Return some text."""
        sentences = []
        for _ in range(count):
            words = self.rng.sample(_WORDS, self.rng.randrange(6, 14))
            sentences.append(" ".join(words).capitalize() + ".")
        return "\n".join(sentences) + "\n"

    def headers(self, draft: MessageDraft) -> list[tuple[str, str]]:
        """Return the standard headers of a message as Gmail would have received it."""
        domain = draft.sender.rpartition("@")[2].rstrip(">")
        stamp = mime_builder.date(self.when)
        verdict = f"dkim=pass header.i=@{domain};\r\n       spf=pass smtp.mailfrom={domain}"
        return [
            ("Delivered-To", "demo@example.com"),
            ("Received", f"by 2002:db8::1 with SMTP id s{self.index:05}; {stamp}"),
            ("Authentication-Results", f"mx.google.com;\r\n       {verdict}"),
            *draft.extra,
            ("Message-ID", self.message_id),
            ("Date", stamp),
            ("From", draft.sender),
            ("To", draft.to),
            ("Subject", draft.subject),
        ]


def conversation(context: SampleContext) -> MessageDraft:
    """Draft a new conversation or an answer in one."""
    chance = context.rng
    if context.threads and chance.random() < 0.65:  # noqa: PLR2004
        topic, ids, partner = chance.choice(context.threads[-12:])
        extra = (("In-Reply-To", ids[-1]), ("References", "\r\n ".join(ids)))
        body = mime_builder.text(context.sentences(3) + "\nOn an earlier day you wrote:\n> " + context.sentences(1))
        ids.append(context.message_id)
        return MessageDraft(partner, f"Re: {topic}", body, ("Work",) if chance.random() < 0.4 else (), extra)  # noqa: PLR2004
    topic, partner = chance.choice(_TOPICS).capitalize(), context.person()
    context.threads.append((topic, [context.message_id], partner))
    label = ("Work/Projects",) if chance.random() < 0.25 else ()  # noqa: PLR2004
    return MessageDraft(partner, topic, mime_builder.text(context.sentences(5), encoding="7bit"), label)


def newsletter(context: SampleContext) -> MessageDraft:
    """Draft a newsletter in plain text and HTML."""
    text = context.sentences(12)
    paragraphs = "".join(f"<p>{line}</p>\n" for line in text.splitlines())
    page = f"<html><body><h1>Weekly reading</h1>\n{paragraphs}<a href='https://news.example.org/u'>Unsubscribe</a></body></html>\n"
    body = mime_builder.multipart(
        "alternative", context.boundary(), [mime_builder.text(text), mime_builder.text(page, "html")]
    )
    extra = (
        ("List-Unsubscribe", "<https://news.example.org/u?id=1>, <mailto:leave@news.example.org>"),
        ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ("Precedence", "bulk"),
    )
    return MessageDraft("Weekly Reading <news@example.org>", f"Weekly reading no. {context.index}", body, (), extra)


def receipt(context: SampleContext) -> MessageDraft:
    """Draft a receipt with a PDF attached."""
    number, total = 10_000 + context.index, context.rng.randrange(500, 20_000) / 100
    pdf = b"%PDF-1.4\n% receipt " + str(number).encode() + b"\n" + context.rng.randbytes(3000) + b"\n%%EOF\n"
    parts = [
        mime_builder.text(f"Thank you for your order {number}.\nTotal: {total:.2f} EUR\n"),
        mime_builder.attachment(pdf, "application/pdf", f"receipt-{number}.pdf"),
    ]
    body = mime_builder.multipart("mixed", context.boundary(), parts)
    return MessageDraft("Shop <orders@example.net>", f"Your receipt {number}", body, ("Receipts",))


def mailing_list(context: SampleContext) -> MessageDraft:
    """Draft a post to a mailing list."""
    extra = (
        ("List-Id", "Gardeners <gardeners.lists.example.org>"),
        ("List-Post", "<mailto:gardeners@lists.example.org>"),
        ("Sender", "gardeners-bounces@lists.example.org"),
        ("Reply-To", "gardeners@lists.example.org"),
    )
    subject = f"[gardeners] {context.rng.choice(_TOPICS)}"
    body = mime_builder.text(context.sentences(6) + "\n-- \nGardeners mailing list\n", encoding="8bit")
    return MessageDraft(context.person(), subject, body, (), extra, to="gardeners@lists.example.org")


def international(context: SampleContext) -> MessageDraft:
    """Draft a message whose subject and text are not ASCII."""
    subject, charset, text = _FOREIGN[context.index % len(_FOREIGN)]
    body = mime_builder.text(text + "\n", charset=charset, encoding="base64")
    return MessageDraft(context.person(), mime_builder.encoded_word(subject, charset), body)


def html_only(context: SampleContext) -> MessageDraft:
    """Draft a notice that has no plain text at all."""
    page = f"<!DOCTYPE html><html><body><table><tr><td>{context.sentences(4)}</td></tr></table></body></html>\n"
    return MessageDraft(
        "Notices <no-reply@example.com>", "A notice about your account", mime_builder.text(page, "html")
    )


def invitation(context: SampleContext) -> MessageDraft:
    """Draft a calendar invitation."""
    start = context.when + timedelta(days=7)
    calendar = (
        "BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:-//Sandbox//EN\nMETHOD:REQUEST\nBEGIN:VEVENT\n"
        f"UID:event-{context.index}@example.com\nDTSTAMP:{context.when:%Y%m%dT%H%M%SZ}\nDTSTART:{start:%Y%m%dT%H%M%SZ}\n"
        "SUMMARY:Planning\nATTENDEE:mailto:demo@example.com\nEND:VEVENT\nEND:VCALENDAR\n"
    )
    event = mime_builder.text(calendar, "calendar; method=REQUEST", encoding="7bit")
    parts = [mime_builder.text("You are invited to: Planning\n"), event]
    body = mime_builder.multipart("alternative", context.boundary(), parts)
    return MessageDraft(context.person(), "Invitation: Planning", body, ("Work",))


def photo(context: SampleContext) -> MessageDraft:
    """Draft an HTML message with an image inside, referred to by Content-ID."""
    cid = f"image-{context.index}@example.net"
    page = mime_builder.text(f'<html><body><p>Look:</p><img src="cid:{cid}"></body></html>\n', "html")
    image = mime_builder.attachment(_PIXEL, "image/png", "view.png", cid=cid)
    related = mime_builder.multipart("related", context.boundary(1), [page, image])
    body = mime_builder.multipart("alternative", context.boundary(), [mime_builder.text("Look:\n[image]\n"), related])
    return MessageDraft(context.person(), "The view from here", body)


def forwarded(context: SampleContext) -> MessageDraft:
    """Draft a message that carries another one."""
    inner = mime_builder.message(
        [
            ("Message-ID", f"<inner-{context.index}@example.org>"),
            ("Date", mime_builder.date(context.when - timedelta(days=2))),
            ("From", context.person()),
            ("To", context.person()),
            ("Subject", mime_builder.encoded_word("Früher geschrieben", "utf-8")),
        ],
        mime_builder.text(context.sentences(2)),
    )
    parts = [mime_builder.text("See below.\n"), mime_builder.entity("message/rfc822", inner)]
    return MessageDraft(
        context.person(), "Fwd: for your files", mime_builder.multipart("mixed", context.boundary(), parts)
    )


def named_attachment(context: SampleContext) -> MessageDraft:
    """Draft a message with an attachment whose name is not ASCII (RFC 2231)."""
    sheet = mime_builder.attachment(b"Name;Betrag\r\nM\xc3\xbcller;12\r\n", "text/csv", "Übersicht für März.csv")
    body = mime_builder.multipart("mixed", context.boundary(), [mime_builder.text("Anbei die Übersicht.\n"), sheet])
    return MessageDraft(context.person(), mime_builder.encoded_word("Übersicht", "iso-8859-1"), body, ("Work",))


def bounce(context: SampleContext) -> MessageDraft:
    """Draft a delivery status notification (RFC 3464)."""
    status = (
        b"Reporting-MTA: dns; mx.example.net\r\n\r\nFinal-Recipient: rfc822; nobody@example.net\r\n"
        b"Action: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n"
    )
    original = f"From: {OWNER}\r\nTo: nobody@example.net\r\nSubject: Hello\r\n".encode()
    parts = [
        mime_builder.text("Your message to nobody@example.net could not be delivered.\n"),
        mime_builder.entity("message/delivery-status", status),
        mime_builder.entity("text/rfc822-headers", original),
    ]
    body = mime_builder.multipart("report; report-type=delivery-status", context.boundary(), parts)
    extra = (("Auto-Submitted", "auto-replied"), ("Return-Path", "<>"))
    return MessageDraft(
        "Mail Delivery <mailer-daemon@example.net>", "Delivery Status Notification (Failure)", body, (), extra
    )


def large(context: SampleContext, size: int) -> MessageDraft:
    """Draft a message of about 4/3 of `size` bytes."""
    data = context.rng.randbytes(size)
    parts = [mime_builder.text("The scans.\n"), mime_builder.attachment(data, "application/zip", "scans.zip")]
    return MessageDraft(
        context.person(), "Scans", mime_builder.multipart("mixed", context.boundary(), parts), ("Work",)
    )


def odd(context: SampleContext) -> MessageDraft:
    """Draft something malformed in one of the ways that real mail is."""
    name = context.person()
    plain = mime_builder.text("unused\n")
    head = f"From: {name}\r\nTo: {OWNER}\r\nMessage-ID: {context.message_id}\r\n"
    dated = head + f"Date: {mime_builder.date(context.when)}\r\n"
    raws = (
        (dated + "Subject: bare line feeds\r\n\r\none\r\ntwo\r\n").replace("\r\n", "\n").encode(),
        dated.encode()
        + b'Subject: broken charset\r\nContent-Type: text/plain; charset="x-nope"\r\n\r\ncaf\xe9 \x81\xff\r\n',
        (head + "Subject: no date at all\r\n\r\nWhen was this?\r\n").encode(),
        dated.encode() + "Subject: raw ütf-8 in a header\r\n\r\nNo MIME headers here.\r\n".encode(),
        dated.encode() + b"Subject: a NUL\r\n\r\nbefore\0after\r\n",
        (dated + 'Subject: unclosed\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\nno end').encode(),
    )
    return MessageDraft(name, "", plain, raw=raws[context.index % len(raws)])
