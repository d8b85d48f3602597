"""Orders of operators to all processes, kept in Redis until they end; what they mean is `control`'s business."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from email_ingestion.overrides import Override
from email_ingestion.stream.connection import RedisLink, text


class SharedOverrides:
    """The control record. Every method raises like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._script = link.script("order")

    def set(self, name: str, order: Override) -> None:
        """Let an order hold for all, in the place of one of the same name."""
        self._put(name, order.seconds, order.value, order.by)

    def clear(self, name: str) -> None:
        """Let it hold no more."""
        self._put(name, 0, "", "")

    def read(self) -> dict[str, Override]:
        """The orders that hold now, by name."""

        def ask() -> Any:
            pipe = self._link.node_for(self._link.keys).pipeline(transaction=False)
            pipe.time()
            pipe.hgetall(self._link.keys.control)
            return pipe.execute()

        (seconds, micros), fields = self._link.call(ask)
        return dict(_orders(fields, seconds + micros / 1_000_000))

    def _put(self, name: str, seconds: float, value: str, by: str) -> None:
        args: list[str | int | float] = [name, seconds, value, by]
        self._link.call(lambda: self._script(keys=[self._link.keys.control], args=args))


def _orders(fields: dict[bytes, bytes], now: float) -> Iterator[tuple[str, Override]]:
    for name, value in fields.items():
        with suppress(ValueError, KeyError, TypeError):  # what is not ours orders nothing
            found = json.loads(value)
            left = int(found["ends_ms"]) / 1000 - now
            if left > 0:
                yield text(name), Override(str(found["value"]), left, str(found["by"]))
