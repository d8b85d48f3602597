"""Dramatiq: one worker process with its usual eight threads, messages in pickle, for JSON has no bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import dramatiq
from common import Count, main
from dramatiq.brokers.redis import RedisBroker

counting: list[Count] = []


def declared(url: str) -> dramatiq.Actor:
    """The actor on this Redis."""
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    dramatiq.set_broker(RedisBroker(url=url))
    return dramatiq.actor(handle, actor_name="handle", queue_name="mail")


def handle(raw: bytes) -> None:
    """The actor's work."""
    counting[0](raw)


def fill(url: str, raws: Iterator[bytes]) -> None:
    """Send messages."""
    actor = declared(url)
    for raw in raws:
        actor.send(raw)


def work(url: str, count: Count) -> None:
    """Run a worker, as its command line does."""
    counting.append(count)
    dramatiq.Worker(declared(url).broker, worker_threads=8).start()
    time.sleep(3600)


main(fill, work)
