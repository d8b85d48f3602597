"""taskiq on Redis Streams, the broker of its that acknowledges."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from common import Count, main
from taskiq.api import run_receiver_task
from taskiq.serializers import PickleSerializer
from taskiq_redis import RedisStreamBroker

counting: list[Count] = []


def declared(url: str) -> RedisStreamBroker:
    """The broker with its task."""
    broker = RedisStreamBroker(url, consumer_id="0", xread_count=100).with_serializer(PickleSerializer())
    broker.register_task(handle, task_name="handle")
    return broker


async def handle(raw: bytes) -> None:
    """The task."""
    counting[0](raw)


def fill(url: str, raws: Iterator[bytes]) -> None:
    """Kick tasks."""

    async def go() -> None:
        broker = declared(url)
        await broker.startup()
        for raw in raws:
            await broker.find_task("handle").kiq(raw)
        await broker.shutdown()

    asyncio.run(go())


def work(url: str, count: Count) -> None:
    """Run a worker."""
    counting.append(count)

    async def go() -> None:
        broker = declared(url)
        broker.is_worker_process = True
        await run_receiver_task(broker, run_startup=True)

    asyncio.run(go())


main(fill, work)
