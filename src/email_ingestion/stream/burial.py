"""Dead letters of messages that are no longer in the stream: one sink alone could not be given them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import zstandard

from email_ingestion.records import RawMessage
from email_ingestion.stream.codec import ZSTD_LEVEL, encode
from email_ingestion.stream.connection import RedisLink


class Burial:
    """Each thread needs its own."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)

    def dead_letter(self, message: RawMessage, dead_letter_fields: dict[str, str]) -> None:
        """Add a dead letter; raises RedisConnectionError and CircuitBreakerError.

        Not idempotent: a repetition makes a second letter, whose replay is harmless.
        """
        fields = encode(message, datetime.now(UTC), self._compressor)
        letter: dict[Any, Any] = {**fields, **dead_letter_fields}
        keys = self._link.keys_for(message.envelope.account)
        self._link.call(lambda: self._link.client.xadd(keys.dlq, letter))
