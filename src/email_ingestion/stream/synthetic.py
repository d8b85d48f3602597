"""Messages that are nobody's mail, to try the way of mail: appended among it, and a receipt for each at its end.

No cursor moves for them and no account is theirs, so no audit misses them; they are completed, never buried.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from email_ingestion.records import Envelope, RawMessage
from email_ingestion.stream.connection import RedisLink
from email_ingestion.stream.gaps import Gaps

ACCOUNT = "rehearsal"
KEPT_SECONDS = 600
MAX_ENTRY_ID = "18446744073709551615-0"  # no entry has a greater id: nothing is compared with what is there


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one message; times in seconds since it was appended."""

    number: int  # its UID
    delivered: bool
    waited: float  # until a worker had it
    took: float  # until it was at its end


def synthetic_message(run: str, number: int, raw: bytes) -> RawMessage:
    """A message of a rehearsal."""
    sha256, now = hashlib.sha256(raw).hexdigest(), datetime.now(UTC)
    envelope = Envelope(ACCOUNT, run, 1, number, None, None, (), (), now, len(raw), sha256)
    return RawMessage(envelope, raw, synthetic=run)


class SyntheticMessages:
    """Every method raises like `RedisLink.call`. Each thread needs its own."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._gaps = Gaps(link, ACCOUNT)

    def append(self, messages: Sequence[RawMessage]) -> None:
        """Put messages of a rehearsal behind the mail that is in the stream."""
        self._gaps.fill(messages, MAX_ENTRY_ID)

    def acknowledge(self, run: str, receipts: Sequence[Receipt]) -> None:
        """Tell whoever runs the rehearsal; what nobody collects expires."""
        key = self._link.keys.receipts(run)

        def tell() -> None:
            pipe = self._link.client.pipeline(transaction=False)
            pipe.rpush(key, *(json.dumps(asdict(each)) for each in receipts))
            pipe.expire(key, KEPT_SECONDS)
            pipe.execute()

        self._link.call(tell)

    def collect(self, run: str, most: int = 1000) -> list[Receipt]:
        """The receipts that came since this was last asked."""
        found: Any = self._link.call(lambda: self._link.client.lpop(self._link.keys.receipts(run), most))
        return [Receipt(**json.loads(each)) for each in found or ()]
