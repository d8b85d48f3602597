"""The limit: a loop of ten lines that reads a hundred, parses them and marks them done, and is safe against nothing."""

from __future__ import annotations

from collections.abc import Iterator

import redis
from common import Count, main


def fill(url: str, raws: Iterator[bytes]) -> None:
    """Add entries."""
    client = redis.Redis.from_url(url)
    for raw in raws:
        client.xadd("mail", {"raw": raw})
    client.xgroup_create("mail", "group", id="0")


def work(url: str, count: Count) -> None:
    """Read, parse, mark."""
    client = redis.Redis.from_url(url)
    while True:
        found = client.xreadgroup("group", "one", {"mail": ">"}, count=100, block=1000)
        for _, entries in found:
            for _, fields in entries:
                count(fields[b"raw"])
            with client.pipeline(transaction=False) as pipe:
                ids = [entry_id for entry_id, _ in entries]
                pipe.xack("mail", "group", *ids)
                pipe.xdel("mail", *ids)
                pipe.execute()


main(fill, work)
