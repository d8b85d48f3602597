"""FastStream on Redis Streams, a message at a time or in batches of a hundred (`--batch`)."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator

import redis
from common import Count, main
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.parser import BinaryMessageFormatV1

BATCH = "--batch" in sys.argv


def fill(url: str, raws: Iterator[bytes]) -> None:
    """Publish, and make the group that the subscriber reads by: made later it would begin behind the messages."""

    async def go() -> None:
        async with RedisBroker(url, message_format=BinaryMessageFormatV1, logger=None) as broker:
            for raw in raws:
                await broker.publish(raw, stream="mail")

    asyncio.run(go())
    redis.Redis.from_url(url).xgroup_create("mail", "group", id="0")


def work(url: str, count: Count) -> None:
    """Run the application."""
    logging.disable(logging.CRITICAL)
    broker = RedisBroker(url, message_format=BinaryMessageFormatV1, logger=None, apply_types=False)
    stream = StreamSub("mail", group="group", consumer="one", batch=BATCH, max_records=100 if BATCH else None)

    if BATCH:

        @broker.subscriber(stream=stream)
        async def handle_all(raws: list[str]) -> None:
            for raw in raws:
                count(raw.encode())  # a batch comes decoded, whatever was published

    else:

        @broker.subscriber(stream=stream)
        async def handle(raw: bytes) -> None:
            count(raw)

    asyncio.run(FastStream(broker, logger=None).run())


main(fill, work)
