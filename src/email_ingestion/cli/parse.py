"""`parse`: show what the record of a message is, for a file on disk, without a mailbox, a stream or a database."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import chop_cells

from email_ingestion.cli.output import printable
from email_ingestion.errors import OperationFailed
from email_ingestion.parsing import parse as parse_message
from email_ingestion.records import Address, Attachment, Email, Envelope, NestedMessage

STANDARD_INPUT = "-"
COLUMNS = 80
LABEL_COLUMNS = 13


def parse(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="A raw message (.eml); - is standard input.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document for each file, as sinks get it (email.v1).")
    ] = False,
) -> None:
    """Show the record of messages on disk: fields, text, attachments and defects. Nothing is stored or sent.

    Defects are what was wrong with a message, as the codes that docs/parsing.md explains.

    Examples:
      email-ingestion parse message.eml
      email-ingestion parse --json ./*.eml | jq -r .subject
      email-ingestion export ID --eml | email-ingestion parse -
    """
    for number, name in enumerate(files):
        raw = _read(name)
        email = parse_message(_envelope(name, raw), raw)
        if as_json:
            from email_ingestion import email_json  # noqa: PLC0415 - pydantic, which the text needs nothing of

            typer.echo(json.dumps(email_json.as_json(email), indent=2))
            continue
        if number:
            typer.echo()
        for line in _lines(name, email):
            typer.echo(line)


def _read(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
    except OSError as error:
        raise OperationFailed(f"cannot read {printable(name)}: {error.strerror}") from error


def _envelope(name: str, raw: bytes) -> Envelope:
    """Stand in for the place in a mailbox: the file has none."""
    return Envelope(
        account="file",
        mailbox=name,
        uidvalidity=0,
        uid=0,
        gm_msgid=None,
        gm_thrid=None,
        labels=(),
        flags=(),
        internaldate=datetime.now(UTC),
        size=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _lines(name: str, email: Email) -> Iterator[str]:
    source = "standard input" if name == STANDARD_INPUT else name
    yield from _fold(f"{source} ({email.envelope.size:,} bytes)", 0)
    for label, value in _facts(email):
        yield from _labelled(label, value)
    for attachment in email.attachments:
        yield from _labelled("Attachment", _describe(attachment))
    for nested in email.enclosed:
        yield from _labelled("Message in it", _describe_nested(nested))
    yield from _labelled("Defects", ", ".join(email.defects) or "none")
    if email.text.strip():
        yield ""
        for line in email.text.strip("\n").split("\n"):
            yield from _fold(line.expandtabs(), 0)


def _facts(email: Email) -> Iterator[tuple[str, str]]:
    """Yield the fields that the message has, each with its label."""
    facts = {
        "From": _people([email.from_] if email.from_ else []),
        "Sender": _people([email.sender] if email.sender else []),
        "To": _people(email.to),
        "Cc": _people(email.cc),
        "Bcc": _people(email.bcc),
        "Reply-To": _people(email.reply_to),
        "Date": f"{email.date:%Y-%m-%d %H:%M:%S} UTC" if email.date else "",
        "Subject": email.subject,
        "Message-ID": email.message_id or "",
        "In-Reply-To": email.in_reply_to or "",
        "References": " ".join(email.references),
        "List": (email.mailing_list.list_id or "yes") if email.mailing_list else "",
        "Automatic": "reply" if email.auto_reply else email.auto_submitted or "",
    }
    yield from ((label, value) for label, value in facts.items() if value)
    for one in email.bounce.recipients if email.bounce else ():
        yield "Bounce", f"{one.recipient}: {one.action}, {one.status}"
    for calendar in email.calendar:
        yield "Calendar", f"{calendar.method or 'no method'}, attachment {calendar.position}"


def _people(addresses: list[Address] | tuple[Address, ...]) -> str:
    return ", ".join(f"{one.name} <{one.addr}>" if one.name else one.addr for one in addresses)


def _describe(attachment: Attachment) -> str:
    inline = ", inline" if attachment.inline else ""
    name = attachment.filename or "(no name)"
    return f"{attachment.position}. {name}: {attachment.content_type}, {attachment.size:,} bytes{inline}"


def _describe_nested(nested: NestedMessage) -> str:
    sender = _people([nested.from_]) if nested.from_ else "nobody"
    return f"attachment {nested.position}: {nested.subject or '(no subject)'}, from {sender}"


def _labelled(label: str, value: str) -> Iterator[str]:
    first, *rest = _fold(value, LABEL_COLUMNS + 1)
    yield f"{label:<{LABEL_COLUMNS}} {first}"
    yield from (" " * (LABEL_COLUMNS + 1) + line for line in rest)


def _fold(text: str, indent: int) -> list[str]:
    """Split a text into lines that fit the screen beside `indent`: at spaces where there are any."""
    width = COLUMNS - indent
    lines = [""]
    for word in printable(text).split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        pieces = chop_cells(joined, width)
        if len(pieces) <= 1:
            lines[-1] = joined
            continue
        pieces = chop_cells(word, width) or [""]
        lines[-1:] = [*([lines[-1]] if lines[-1] else []), *pieces]
    return lines
