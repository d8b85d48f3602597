"""Entries that are no mail, as the mistake of another program leaves them in the stream; for practice."""

from __future__ import annotations

from email_ingestion.stream.connection import RedisLink


def add_strangers(link: RedisLink, number: int) -> None:
    """Add so many; a worker buries each. Raises what `RedisLink.call` raises."""

    def add() -> None:
        pipe = link.client.pipeline(transaction=True)
        for n in range(number):
            pipe.xadd(link.keys.stream, {"written_by": "gameday", "number": n})
        pipe.execute()

    link.call(add)
