"""Celery on Redis: the solo pool, for others are several processes; acknowledged late, or a crash loses mail."""

from __future__ import annotations

from collections.abc import Iterator

from celery import Celery
from common import Count, main

app = Celery("peer")
app.conf.update(
    accept_content=["pickle"],
    task_serializer="pickle",
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=100,
    worker_hijack_root_logger=False,
)
counting: list[Count] = []


@app.task(name="handle")
def handle(raw: bytes) -> None:
    """The task."""
    counting[0](raw)


def fill(url: str, raws: Iterator[bytes]) -> None:
    """Send tasks."""
    app.conf.broker_url = url
    for raw in raws:
        handle.delay(raw)


def work(url: str, count: Count) -> None:
    """Run a worker."""
    app.conf.broker_url = url
    counting.append(count)
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    app.worker_main(["worker", "--pool", "solo", *quiet])


main(fill, work)
