"""RQ: its worker without a fork for each job, which is its fastest."""

from __future__ import annotations

from collections.abc import Iterator

import redis
import rq
import rq_task
from common import Count, main


def fill(url: str, raws: Iterator[bytes]) -> None:
    """Enqueue jobs."""
    queue = rq.Queue(connection=redis.Redis.from_url(url))
    with queue.connection.pipeline() as pipe:
        for number, raw in enumerate(raws):
            queue.enqueue(rq_task.handle, raw, result_ttl=0, pipeline=pipe)
            if number % 100 == 99:  # noqa: PLR2004
                pipe.execute()
        pipe.execute()


def work(url: str, count: Count) -> None:
    """Run a worker."""
    rq_task.counting.append(count)
    connection = redis.Redis.from_url(url)
    rq.SimpleWorker([rq.Queue(connection=connection)], connection=connection).work(logging_level="ERROR")


main(fill, work)
