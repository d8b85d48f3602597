"""Operators' overrides for all processes, kept in Redis until they end; their meaning is in `overrides`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from email_ingestion.overrides import Override
from email_ingestion.stream.redis_link import RedisLink, text
from email_ingestion.stream.stored_values import record, whole_number


class SharedOverrides:
    """The overrides in Redis. Every method raises like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._script = link.script("set_override")

    def set(self, name: str, override: Override) -> None:
        """Set an override for all processes, in the place of one of the same name."""
        self._write(name, override.seconds, override.value, override.by)

    def clear(self, name: str) -> None:
        """End an override."""
        self._write(name, 0, "", "")

    def read(self) -> dict[str, Override]:
        """Return the overrides that hold now, by name."""

        def read() -> Any:
            pipe = self._link.node_for(self._link.keys).pipeline(transaction=False)
            pipe.time()
            pipe.hgetall(self._link.keys.control)
            return pipe.execute()

        (seconds, micros), fields = self._link.call(read)
        return dict(_overrides(fields, seconds + micros / 1_000_000))

    def _write(self, name: str, seconds: float, value: str, by: str) -> None:
        args: list[str | int | float] = [name, seconds, value, by]
        self._link.call(lambda: self._script(keys=[self._link.keys.control], args=args))


def _overrides(fields: dict[bytes, bytes], now: float) -> Iterator[tuple[str, Override]]:
    for name, value in fields.items():
        found = record(value, {"ends_ms": (int, str), "value": str, "by": str})
        if found is None:  # what another program wrote overrides nothing
            continue
        if (left := (whole_number(found["ends_ms"]) or 0) / 1000 - now) > 0:
            yield text(name), Override(found["value"], left, found["by"])
