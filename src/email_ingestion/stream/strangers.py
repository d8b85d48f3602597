"""Entries that are no mail, as the mistake of another program leaves them in the stream; for practice."""

from __future__ import annotations

from email_ingestion.stream.connection import Link


def add_strangers(link: Link, number: int) -> None:
    """Add so many; a worker buries each. Raises what `Link.run` raises."""

    def add() -> None:
        pipe = link.client.pipeline(transaction=True)
        for n in range(number):
            pipe.xadd(link.keys.stream, {"written_by": "gameday", "number": n})
        pipe.execute()

    link.run(add)
