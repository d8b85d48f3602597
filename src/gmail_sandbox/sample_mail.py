"""Sample mail that looks like somebody's mailbox of the past year: the same for the same seed, all of it invented.

All of it is received mail that stays: nothing of it lies in Spam or Trash or was sent by the owner, so that a reader
of All Mail can be held to every single message.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from gmail_sandbox import mime_builder, sample_kinds
from gmail_sandbox.sample_kinds import MessageDraft, SampleContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EPOCH = datetime(2026, 11, 1, 8, 0, tzinfo=UTC)
_SPAN = timedelta(days=365)
_BIG = (1_000_000, 1_800_000, 2_600_000)


class SampleMessage(NamedTuple):
    """A message ready for delivery; `internaldate` is in epoch milliseconds."""

    raw: bytes
    labels: tuple[str, ...]
    flags: tuple[str, ...]
    internaldate: int


# Each kind with its weight, roughly what a busy private and working mailbox receives.
_KINDS: tuple[tuple[Callable[[SampleContext], MessageDraft], int], ...] = (
    (sample_kinds.conversation, 38),
    (sample_kinds.newsletter, 14),
    (sample_kinds.receipt, 10),
    (sample_kinds.mailing_list, 10),
    (sample_kinds.international, 8),
    (sample_kinds.html_only, 5),
    (sample_kinds.invitation, 4),
    (sample_kinds.photo, 4),
    (sample_kinds.forwarded, 3),
    (sample_kinds.named_attachment, 2),
    (sample_kinds.bounce, 2),
    (sample_kinds.odd, 4),
)


def sample_messages(count: int = 300, seed: int = 1) -> Iterator[SampleMessage]:
    """Return `count` messages, oldest first."""
    chance = random.Random(seed)  # noqa: S311 (reproducible, not secret)
    kinds, weights = zip(*_KINDS, strict=True)
    context = SampleContext(chance)
    for index in range(count):
        context.advance(index, EPOCH - _SPAN + _SPAN * (index + 1) / (count + 1))
        if index < len(kinds):
            kind = kinds[index]  # every kind at least once
        elif index % 97 == 60 and index // 97 < len(_BIG):  # noqa: PLR2004
            kind = _big(_BIG[index // 97])
        else:
            kind = chance.choices(kinds, weights)[0]
        yield _finish(context, kind(context))


def _big(size: int) -> Callable[[SampleContext], MessageDraft]:
    return lambda context: sample_kinds.large(context, size)


def _finish(context: SampleContext, draft: MessageDraft) -> SampleMessage:
    raw = draft.raw if draft.raw is not None else mime_builder.message(context.headers(draft), draft.body)
    age = EPOCH - context.when
    read = context.rng.random() < (0.95 if age > timedelta(days=14) else 0.4)
    flags = [flag for flag, share in (("\\Seen", read), ("\\Flagged", context.rng.random() < 0.05)) if share]  # noqa: PLR2004
    labels = [*draft.labels, *(label for label, share in _EXTRA_LABELS if context.rng.random() < share)]
    if age < timedelta(days=200) or context.rng.random() < 0.3:  # noqa: PLR2004
        labels.append("\\Inbox")
    return SampleMessage(raw, tuple(labels), tuple(flags), int(context.when.timestamp() * 1000))


_EXTRA_LABELS = (("\\Important", 0.3), ("Übung", 0.04), ("R&D", 0.05), ("2024", 0.03))


EPOCH_MS = 1_700_000_000_000
STEP_MS = 60_000

_TEMPLATE = (
    "Message-ID: <bulk-{index}@bulk.example.net>\r\n"
    "Date: {date}\r\n"
    "From: Sender {sender} <sender{sender}@example.net>\r\n"
    "To: Demo <demo@example.com>\r\n"
    "Subject: Bulk message {index}\r\n"
    "MIME-Version: 1.0\r\n"
    "Content-Type: text/plain; charset=utf-8\r\n"
    "\r\n"
    "This is generated message number {index}.\r\n"
)
_LINE = "The quick brown fox jumps over the lazy dog while the mailbox fills up.\r\n"


def bulk_date(index: int) -> int:
    """Return the INTERNALDATE of a generated message in epoch milliseconds."""
    return EPOCH_MS + index * STEP_MS


def bulk_message_id(index: int) -> str:
    """Return the Message-ID of a generated message."""
    return f"<bulk-{index}@bulk.example.net>"


def bulk_message(index: int) -> bytes:
    """Return the raw bytes of a generated message, between 0.5 and 4 KB."""
    date = datetime.fromtimestamp(bulk_date(index) / 1000, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    head = _TEMPLATE.format(index=index, date=date, sender=index % 97)
    return (head + _LINE * (3 + index * 7919 % 48)).encode("ascii")
