"""Synthetic messages, which belong to no account, to test the pipeline: appended among mail, with a receipt at the end.

No cursor moves for them and they belong to no account, so reconciliation does not miss them; they are acked, never
dead-lettered. In Redis and in stream entries they keep the older word `rehearsal`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from email_ingestion.records import Envelope, RawMessage
from email_ingestion.stream.appender import Appender
from email_ingestion.stream.redis_link import RedisLink
from email_ingestion.stream.stored_values import record

ACCOUNT = "rehearsal"
RECEIPT_SECONDS = 600
MAX_ENTRY_ID = "18446744073709551615-0"  # no entry has a greater id: `append_missing` searches nothing


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of one synthetic message; times in seconds since it was appended."""

    number: int  # its UID
    delivered: bool
    waited: float  # until a worker had it
    took: float  # until it was acked


def synthetic_message(run: str, number: int, raw: bytes) -> RawMessage:
    """Return the message with this number of a run."""
    sha256, now = hashlib.sha256(raw).hexdigest(), datetime.now(UTC)
    envelope = Envelope(ACCOUNT, run, 1, number, None, None, (), (), now, len(raw), sha256)
    return RawMessage(envelope, raw, synthetic=run)


class SyntheticMessages:
    """Synthetic messages and their receipts. Not thread-safe; every method raises like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._appender = Appender(link)

    def append(self, messages: Sequence[RawMessage]) -> None:
        """Append synthetic messages to the stream."""
        self._appender.append_missing(messages, MAX_ENTRY_ID)

    def add_receipts(self, run: str, receipts: Sequence[Receipt]) -> None:
        """Add receipts for the process that runs the trial; those that it does not take expire."""
        key = self._link.keys.receipts(run)

        def add() -> None:
            pipe = self._link.client.pipeline(transaction=False)
            pipe.rpush(key, *(json.dumps(asdict(receipt)) for receipt in receipts))
            pipe.expire(key, RECEIPT_SECONDS)
            pipe.execute()

        self._link.call(add)

    def pop_receipts(self, run: str, limit: int = 1000) -> list[Receipt]:
        """Take the receipts that came since the last call."""
        found: Any = self._link.call(lambda: self._link.client.lpop(self._link.keys.receipts(run), limit))
        kinds: dict[str, type | tuple[type, ...]] = {
            "number": int,
            "delivered": bool,
            "waited": (int, float),
            "took": (int, float),
        }
        receipts = [record(receipt, kinds) for receipt in found or ()]
        return [Receipt(*(each[name] for name in kinds)) for each in receipts if each]
