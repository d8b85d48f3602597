"""arq: jobs in pickle, a hundred at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func
from common import Count, main

counting: list[Count] = []


async def handle(_: Any, raw: bytes) -> None:
    """The job."""
    counting[0](raw)


def fill(url: str, raws: Iterator[bytes]) -> None:
    """Enqueue jobs."""

    async def go() -> None:
        pool = await create_pool(RedisSettings.from_dsn(url))
        for raw in raws:
            await pool.enqueue_job("handle", raw)

    asyncio.run(go())


def work(url: str, count: Count) -> None:
    """Run a worker."""
    counting.append(count)
    asyncio.set_event_loop(asyncio.new_event_loop())
    Worker([func(handle, keep_result=0)], redis_settings=RedisSettings.from_dsn(url), max_jobs=100).run()


main(fill, work)
