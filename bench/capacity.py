"""Writes `docs/scaling.md`: what a million messages cost, as measured, and how far a machine goes, as simulated.

The measured part comes from the same run as `docs/performance.md`. The simulated part is a day of Poisson arrivals with
a daily rhythm in front of a server of the measured speed; it says so on the page.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from bench.tables import Section

MILLION = 1_000_000
GIB = 2**30
DAY = 86_400
STEP = 10  # seconds of the simulation
MAILBOXES = (1, 10, 100, 10_000)
PER_DAY = 200  # messages a mailbox gets
SWING = 0.9  # of the mean rate, between the quietest hour and the busiest
OUTAGE = 4 * 3600  # seconds without a worker that the queue should outlast
BUSY = 0.7  # of a core, above which waiting grows quickly
PER_PRODUCER = 200  # accounts that one producer process was tested with
STREAM_BYTES = 256 * 2**20  # STREAM_MAX_BYTES unless it is set


@dataclass(frozen=True, slots=True)
class Costs:
    """For one message of the corpus, as measured."""

    producer: float  # CPU seconds
    worker: float  # CPU seconds, its parser and its database included
    redis: float  # bytes while it is queued
    aof: float  # bytes
    database: float  # bytes

    @classmethod
    def of(cls, sections: Sequence[Section]) -> Costs:
        """Out of what was measured; raises KeyError when a measurement is missing."""
        found: Mapping[str, float] = {name: value for section in sections for name, value in section.figures.items()}
        return cls(
            found["producer_ms"] / 1000,
            found["worker_ms"] / 1000,
            found["redis_bytes"],
            found["aof_bytes"],
            found["database_bytes"],
        )


@dataclass(frozen=True, slots=True)
class Day:
    """A simulated day: messages in the queue at most, and seconds that 99 of 100 messages wait less than."""

    most: int
    wait: float


def simulate(mailboxes: int, service: float, cores: int, seed: int = 1) -> Day:
    """A day of `mailboxes` in front of `cores` that need `service` seconds for a message."""
    rng = Random(seed)  # noqa: S311 - a simulation
    queue: deque[list[float]] = deque()  # time of arrival, how many
    depth, most, room = 0, 0, 0.0
    waits: list[tuple[float, int]] = []
    for start in range(0, DAY, STEP):
        rate = mailboxes * PER_DAY / DAY * (1 + SWING * math.sin(2 * math.pi * start / DAY))
        came = _poisson(rng, rate * STEP)
        if came:
            queue.append([start, came])
            depth += came
        most = max(most, depth)
        room = min(room, 1.0) + cores * STEP / service
        while queue and room >= 1:
            done = min(int(room), int(queue[0][1]))
            waits.append((start - queue[0][0] + service, done))
            queue[0][1] -= done
            depth -= done
            room -= done
            if not queue[0][1]:
                queue.popleft()
    return Day(most, _share(waits, 0.99))


def _poisson(rng: Random, mean: float) -> int:
    if mean > 50:  # noqa: PLR2004 - from here on a normal distribution is as good
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def _share(waits: list[tuple[float, int]], part: float) -> float:
    left = part * sum(count for _, count in waits)
    for wait, count in sorted(waits):
        left -= count
        if left <= 0:
            return wait
    return 0.0


def cores(mailboxes: int, seconds: float) -> int:
    """Cores that the busiest hour needs, none of them busier than `BUSY`."""
    peak = mailboxes * PER_DAY / DAY * (1 + SWING)
    return max(1, math.ceil(peak * seconds / BUSY))


def page(costs: Costs, described: str) -> str:
    """`docs/scaling.md`."""
    return "\n\n".join([_HEAD, described, _measured(costs), _steps(costs), _simulated(costs), _TAIL]) + "\n"


def _measured(costs: Costs) -> str:
    rows = [
        ("Producer, CPU", f"{costs.producer * MILLION / 3600:.2f} core hours"),
        ("Worker with its parser and SQLite, CPU", f"{costs.worker * MILLION / 3600:.2f} core hours"),
        ("Redis memory while they are queued", f"{costs.redis * MILLION / GIB:.1f} GiB"),
        ("AOF written, from the append to the end", f"{costs.aof * MILLION / GIB:.1f} GiB"),
        ("Database, contents up to 256 KiB included", f"{costs.database * MILLION / GIB:.1f} GiB"),
    ]
    lines = ["## Measured: what a million messages cost", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += [
        "",
        _rates(costs),
    ]
    return "\n".join(lines)


def _rates(costs: Costs) -> str:
    return (
        f"So `STREAM_MAX_BYTES` at its default of 256 MiB is full at about {STREAM_BYTES / costs.redis:,.0f} queued "
        f"messages of this size; a core of workers settles about {1 / costs.worker:,.0f} a second, a core of producers "
        f"fetches about {1 / costs.producer:,.0f}."
    )


def _steps(costs: Costs) -> str:
    lines = [
        "## Calculated: the next limit, and what to add",
        "",
        _ASSUMED,
        "",
        "| Mailboxes | messages/day | cores: producers, workers | Redis | database a year | next limit | add |",
        "|---|---|---|---|---|---|---|",
    ]
    for mailboxes, (limit, add) in zip(MAILBOXES, _LIMITS, strict=True):
        daily = mailboxes * PER_DAY
        queued = daily / DAY * (1 + SWING) * OUTAGE * costs.redis
        yearly = daily * 365 * costs.database
        lines.append(
            f"| {mailboxes:,} | {daily:,} | {cores(mailboxes, costs.producer)}, {cores(mailboxes, costs.worker)} "
            f"| {_bytes(queued)} | {_bytes(yearly)} | {limit} | {add} |"
        )
    return "\n".join(lines)


def _simulated(costs: Costs) -> str:
    lines = [
        "## Simulated: a day",
        "",
        _HOW,
        "",
        "| Mailboxes | worker cores | most in the queue | 99 of 100 wait less than |",
        "|---|---|---|---|",
    ]
    for mailboxes in MAILBOXES:
        number = cores(mailboxes, costs.worker)
        day = simulate(mailboxes, costs.worker, number)
        lines.append(f"| {mailboxes:,} | {number} | {day.most:,} | {_seconds(day.wait)} |")
    return "\n".join(lines)


def _bytes(number: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1024:,.0f} KiB"


def _seconds(number: float) -> str:
    return f"{number * 1000:.0f} ms" if number < 1 else f"{number:.0f} s"


_HEAD = """# How far it goes

Written by `python -m bench.run`. What a person does when more is needed is in
[the runbook](runbooks/scaling.md); how fast it is beside others in [performance](performance.md)."""

_ASSUMED = (
    f"At {PER_DAY} messages a day and mailbox, the busiest hour at {1 + SWING:.1f} times the mean, no core busier than "
    f"{BUSY:.0%}. Redis is sized for {OUTAGE // 3600} hours of the busiest hour without a worker."
)

_HOW = (
    f"Not measured: arrivals are random (Poisson) around a daily sine, looked at every {STEP} s, in front of so many "
    "worker cores of the measured speed. Real mail comes in bursts; take the waits as the best case."
)

_LIMITS = (
    ("Gmail: 2.5 GB a day and mailbox by IMAP", "nothing; a first import takes days, or comes from Takeout"),
    ("as above", "nothing"),
    (
        "one machine's disk",
        "`--processes 2`, a second machine with a standby producer, PostgreSQL, S3 for blobs",
    ),
    (
        f"accounts of one producer ({PER_PRODUCER} were tested), Redis' memory in an outage",
        f"{math.ceil(10_000 / PER_PRODUCER)} producers, `REDIS_PARTITIONS` on a Redis Cluster, a PostgreSQL host",
    ),
)

_TAIL = """## What does not grow

- Memory of producer and worker: by bytes in hand, not by messages to come
- The start: new mail first, whatever the mailbox holds
- The cost of a message: see the flatness in [performance](performance.md)

SQLite has one writer at a time: several workers on it parse side by side and take turns to record. From the point where
`processing_latency_seconds` grows with each worker added, PostgreSQL is next."""
