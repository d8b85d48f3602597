"""Faults of workers that hand mail to a webhook: one that comes back from the dead, and one whose clock is wrong."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from bench.crash_matrix.clock import SettableClock
from bench.crash_matrix.world import World
from tests.servers.webhook import SECRET, Receiver, receiving

LEASE = 4  # seconds, of the worker on its messages and on what it hands over
THREADS = 4
ANSWER_SECONDS = 0.1  # what the receiver does with a message
# Those of half a second, as docs/sinks.md says, and those that were on their way.
UNMARKED = int(0.5 / ANSWER_SECONDS) * THREADS + THREADS
CROWD = ("producer", "worker", "worker-2")
TWO_HOSTS = ("producer", "worker", "guest")
DAY = 86_400


def worker_back(world: World, rng: Random) -> None:
    """A worker in the middle of its claim is stopped beyond its lease and goes on, while another has taken over."""
    world.more()
    world.instant(rng)
    world.more()
    time.sleep(rng.uniform(0, 0.5))
    victim = rng.choice(["worker", "worker-2"])
    world.signal(victim, signal.SIGSTOP)
    world.more()
    time.sleep(rng.uniform(LEASE + 0.5, LEASE + 3))
    world.signal(victim, signal.SIGCONT)


def clock_skew(world: World, rng: Random) -> None:
    """The clock of one of two hosts is up to a day wrong, and steps; the webhook is away: mail is due later."""
    clock = SettableClock(world.there.folder)
    receiver = world.receiver
    assert receiver  # noqa: S101 - `two_hosts` opened it
    for _ in range(2):
        clock.set(rng.choice([-1, 1]) * rng.randint(60, DAY))
        receiver.fail(503)
        world.more()
        world.instant(rng)
        world.more()
        time.sleep(rng.uniform(1, 4))
        receiver.work()
        receiver.answer = slowly
        world.instant(rng)
    if rng.choice([True, False]):  # else the clock stays wrong: what is due must not wait for it
        clock.set(0)


@contextmanager
def webhook(world: World) -> Iterator[None]:
    """Have every message posted to a receiver that takes its time."""
    with receiving(Receiver(refuse=400)) as receiver:
        receiver.answer = slowly
        for place in (world.here, world.there):
            place.set(
                SINKS="webhook",
                WEBHOOK_URL=receiver.url,
                WEBHOOK_SECRET=SECRET,
                WEBHOOK_TIMEOUT_SECONDS=3,
                SINK_TIMEOUT_SECONDS=3.5,
                WORKER_LEASE_SECONDS=LEASE,
                WORKER_THREADS=THREADS,
            )
        world.receiver = receiver
        yield
        world.muster(())


@contextmanager
def two_hosts(world: World) -> Iterator[None]:
    """Give the processes of the second host a clock of their own, and all a webhook."""
    world.there.folder.mkdir(exist_ok=True)
    world.there.environment |= SettableClock(world.there.folder).environment
    with webhook(world):
        yield


def slowly(_: str) -> tuple[int, dict[str, str]]:
    """Take whatever is posted, after a while."""
    time.sleep(ANSWER_SECONDS)
    return 204, {}
