"""One core: raw bytes to a record, ours against Python's own parser asked for the same things."""

from __future__ import annotations

import email
import email.policy
import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from functools import partial

import fast_mail_parser

from bench.corpus import letters
from bench.rounds import Run, Say, race
from bench.tables import Aim, Section
from email_ingestion.parsing import parse
from email_ingestion.records import Envelope

OURS = "email-ingestion"
STANDARD = "standard library, the same record"
BARE = "standard library, header fields and decoded parts"
RUST = "fast-mail-parser alone, no record"
WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def measure(*, count: int, rounds: int, say: Say) -> Section:
    """All on the same messages, one after the other."""
    raws = list(letters(count))
    readers: dict[str, Callable[[bytes], object]] = {OURS: _ours, STANDARD: record, BARE: bare, RUST: _rust}
    found, _ = race({name: partial(_run, reader, raws) for name, reader in readers.items()}, rounds, say)
    ours = found[OURS]
    rows = [
        (each.name, f"{each.cost:.3f}", f"± {each.spread / 2:.0%}", f"{each.cost / ours.cost:.1f} ×")
        for each in found.values()
    ]
    return Section(
        "Parser",
        f"{count:,} messages, CPU time of one core. “The same record” from the standard library is the modern policy, "
        "every header field decoded, the address fields as addresses, the date, every text in its charset, every "
        "attachment decoded with its SHA-256. Ours does more than that (see `docs/sinks.md` for the record).",
        ("Parser", "CPU ms/message", "spread", "ours is faster by"),
        rows,
        [Aim("Parser against the standard library, the same record", found[STANDARD].cost / ours.cost, 10.0)],
        figures={"parse_ms": ours.cost},
    )


def _run(reader: Callable[[bytes], object], raws: Sequence[bytes]) -> Run:
    started = time.process_time()
    for raw in raws:
        reader(raw)
    took = time.process_time() - started
    return Run(len(raws), took, took)


def _ours(raw: bytes) -> object:
    return parse(Envelope("bench", "INBOX", 1, 1, None, None, (), (), WHEN, len(raw), "0" * 64), raw)


def _rust(raw: bytes) -> object:
    return fast_mail_parser.parse_email(raw)


def bare(raw: bytes) -> object:
    """The least that a program with a use for the mail asks of the standard library."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    fields = [message[name] for name in ("subject", "from", "to", "date")]
    return fields, [part.get_payload(decode=True) for part in message.walk() if not part.is_multipart()]


def record(raw: bytes) -> object:
    """What our record has, as far as the standard library gives it."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    fields = [(name, str(value)) for name, value in message.items()]
    people = [_addresses(message, name) for name in ("from", "to", "cc", "bcc", "reply-to", "sender")]
    date = message["date"].datetime if message["date"] else None
    texts, files = [], []
    for part in message.walk():
        if part.is_multipart():
            continue
        if part.get_content_maintype() == "text" and not part.get_filename():
            texts.append(part.get_content())
        else:
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)  # noqa: S101 - it is no multipart
            files.append((part.get_filename(), part.get_content_type(), hashlib.sha256(content).hexdigest(), content))
    return fields, people, date, texts, files


def _addresses(message: EmailMessage, name: str) -> list[tuple[str, str]]:
    found = []
    for value in message.get_all(name, []):
        found += [(address.display_name, address.addr_spec) for address in value.addresses]
    return found
