"""Dead letters as records: what is written on one, how one is read, which ones are alike. Speaks to nobody.

Buried by the worker; `graveyard` finds, replays and removes them for operators.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from email_ingestion import __version__
from email_ingestion.errors import PermanentError, TransientError, fingerprint_of
from email_ingestion.records import email_id
from email_ingestion.stream.connection import text
from email_ingestion.stream.delivery import entry_time

Reason = Literal["max_retries", "permanent", "poison", "operator"]

ERROR_CHARACTERS = 1_000
TRACE_CHARACTERS = 8_000

# Stands where a letter says nothing: anybody can add to the stream, and an operator must be able to filter for it.
UNKNOWN = "unknown"


def dead_letter_fields(
    reason: Reason, attempts: int, error: Exception | None, trace: str, instance: str
) -> dict[str, str]:
    """The `dead_…` fields that go beside the entry's own."""
    # An error of ours that has a name of its own says more than what caused it; a bare one only wraps another.
    bare = type(error) in {TransientError, PermanentError}
    cause = error.__cause__ or error if error and bare else error
    return {
        "dead_reason": reason,
        "dead_error_type": type(cause).__name__ if cause else "",
        "dead_error": str(error or "")[:ERROR_CHARACTERS],
        "dead_traceback": trace[-TRACE_CHARACTERS:],
        "dead_attempts": str(attempts),
        "dead_at": datetime.now(UTC).isoformat(),
        "dead_fingerprint": fingerprint_of(reason, type(cause).__name__, str(cause or "")),
        "dead_instance": instance,
        "dead_version": __version__,
    }


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What is known of one, without its payload. None or `unknown` where it does not say, for it may be a stranger's.

    The error's text and the traceback are as they were written: they may quote a message.
    """

    id: str
    email_id: str
    account: str
    mailbox: str
    uid: int | None
    sha256: str  # hex digest of the raw message
    size: int | None  # bytes of the raw message
    raw_ref: str  # where the blobs keep it, empty when the letter holds it
    enqueued_at: str  # when it first entered the stream, ISO 8601
    dead_at: str  # ISO 8601, UTC, by Redis' clock
    reason: str
    error_type: str
    error: str
    traceback: str
    attempts: int | None
    fingerprint: str
    instance: str  # the worker that buried it
    version: str  # its release
    replays: int  # how often it was put back before
    replay_of: str  # the letter it was put back from, the last time
    sink: str  # the only one that has not got it; empty when none has


def parse_dead_letter(letter_id: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
    """The record of an entry of the dead letters, whoever wrote it; never fails and decodes no payload."""
    said = {text(name): text(value) for name, value in fields.items() if name != b"raw"}
    return DeadLetter(
        id=letter_id,
        email_id=message_identity(said) or f"entry:{letter_id}",
        account=said.get("account", UNKNOWN),
        mailbox=said.get("mailbox", UNKNOWN),
        uid=_number(said.get("uid")),
        sha256=said.get("sha256", ""),
        size=_number(said.get("size")),
        raw_ref=said.get("raw_ref", ""),
        enqueued_at=said.get("enqueued_at", ""),
        dead_at=datetime.fromtimestamp(entry_time(letter_id), UTC).isoformat(timespec="milliseconds"),
        reason=said.get("dead_reason", UNKNOWN),
        error_type=said.get("dead_error_type", UNKNOWN),
        error=said.get("dead_error", ""),
        traceback=said.get("dead_traceback", ""),
        attempts=_number(said.get("dead_attempts")),
        fingerprint=said.get("dead_fingerprint", UNKNOWN),
        instance=said.get("dead_instance", UNKNOWN),
        version=said.get("dead_version", UNKNOWN),
        replays=_number(said.get("replays")) or 0,
        replay_of=said.get("replay_of", ""),
        sink=said.get("sink", ""),
    )


def message_identity(said: Mapping[str, str]) -> str | None:
    """The identity of the message whose fields these are; None when they do not tell."""
    account, sha256, msgid = said.get("account"), said.get("sha256"), _number(said.get("gm_msgid"))
    return email_id(account, msgid, sha256) if account and sha256 else None


def _number(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch(r"[0-9]{1,20}", value) else None


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which letters are meant: those that fulfil every condition that is set."""

    reason: str | None = None
    error_type: str | None = None
    fingerprint: str | None = None
    account: str | None = None

    def fits(self, letter: DeadLetter) -> bool:
        """Whether this is one of them."""
        return (
            self.reason in {None, letter.reason}
            and self.error_type in {None, letter.error_type}
            and self.fingerprint in {None, letter.fingerprint}
            and self.account in {None, letter.account}
        )


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Letters with one fingerprint."""

    fingerprint: str
    count: int
    first: str  # ISO 8601, UTC
    last: str
    example: str  # the id of the latest, which is the one worth looking at
    reason: str
    error_type: str
    error: str


def group_failures(letters: Iterable[DeadLetter]) -> list[FailureGroup]:
    """The letters by fingerprint, the most frequent first; they must come in the order of their ids."""
    found: dict[str, FailureGroup] = {}
    for letter in letters:
        before = found.get(letter.fingerprint)
        found[letter.fingerprint] = replace(
            _kind(letter),
            count=before.count + 1 if before else 1,
            first=before.first if before else letter.dead_at,
        )
    return sorted(found.values(), key=lambda kind: -kind.count)


def _kind(letter: DeadLetter) -> FailureGroup:
    return FailureGroup(
        fingerprint=letter.fingerprint,
        count=1,
        first=letter.dead_at,
        last=letter.dead_at,
        example=letter.id,
        reason=letter.reason,
        error_type=letter.error_type,
        error=letter.error,
    )
