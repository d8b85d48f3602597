"""Memory and cost over a backlog: neither may grow with what is still to come or with what is already there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median

from bench.mailbox import filled, settings_of
from bench.rounds import Failed, Say
from bench.system import Rows, installed, peaks, used, wait
from bench.tables import Aim, Section
from email_ingestion.stream import Keys
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.servers.processes import Place, Running, gmail_settings
from tests.servers.redis import RedisServer, running_redis

PATIENCE = 900.0
LIMITS = {"STREAM_MAX_DEPTH": 10_000_000, "STREAM_MAX_BYTES": 100_000_000_000, "IMAP_BYTES_PER_DAY": 10**12}
SLICES = 10  # of a backlog, each with its cost
EARLY, LATE = 1_000, 100_000  # messages whose costs are compared


@dataclass(frozen=True, slots=True)
class Walk:
    """What two processes took for a backlog: the producer first, then the worker on what lies in Redis."""

    name: str
    count: int
    producer: float  # MiB at its peak
    worker: float
    with_parser: float
    producer_cost: tuple[float, float]  # CPU ms for the first message and for the last
    worker_cost: tuple[float, float]
    memory: float  # bytes of Redis for a queued message
    aof: float  # bytes of the AOF for a message, all its life
    database: float  # bytes on the disk for a message


def measure(*, small: int, large: int, say: Say) -> Section:
    """The corpus from Dovecot, then a long mailbox of small messages from the sandbox."""
    walks = []
    with _world() as (folder, redis), filled(small) as dovecot, installed(folder / "place", redis.url) as here:
        here.environment |= settings_of(dovecot, redis)
        walks.append(_walk("corpus", small, here, redis, say))
    settings = SandboxSettings(mail=f"bulk:{large}")
    with (
        _world() as (folder, redis),
        running_sandbox(settings) as server,
        installed(folder / "place", redis.url, **gmail_settings(server, folder / "place"), **LIMITS) as here,
    ):
        walks.append(_walk("small messages", large, here, redis, say))
    corpus, long = walks
    rows = [
        (
            f"{each.count:,} × {each.name}",
            f"{each.producer:.0f}",
            f"{each.worker:.0f}",
            f"{each.with_parser:.0f}",
            _two(each.producer_cost),
            _two(each.worker_cost),
        )
        for each in walks
    ]
    aims = [
        Aim(f"Producer's peak memory, {each.count:,} messages", each.producer, 100.0, "MiB", most=True)
        for each in walks
    ]
    aims += [
        Aim(f"Worker's peak memory, {each.count:,} messages", each.worker, 120.0, "MiB", most=True) for each in walks
    ]
    late = min(LATE, large)
    grown = f"cost of message {late:,} over that of message {EARLY:,}"
    aims += [
        Aim(f"{who}: {grown}", _growth(cost, large, late), 1.1, most=True)
        for who, cost in (("Producer", long.producer_cost), ("Worker", long.worker_cost))
    ]
    return Section(
        "Memory and flatness",
        "The producer reads the whole mailbox while no worker runs, then a worker drains Redis into SQLite. "
        "Peaks are the most memory the process had (VmHWM); the worker's parser is a process of its own. Costs are CPU "
        "ms for the first message and for the last, on the line (Theil-Sen) through the costs of ten tenths: a slow "
        "moment of the machine does not bend it.",
        ("Backlog", "producer MiB", "worker MiB", "with its parser", "producer, first / last", "worker, first / last"),
        rows,
        aims,
        figures={
            "redis_bytes": corpus.memory,
            "aof_bytes": corpus.aof,
            "database_bytes": corpus.database,
            "producer_ms": corpus.producer_cost[1],
            "worker_ms": corpus.worker_cost[1],
        },
    )


def _two(cost: tuple[float, float]) -> str:
    return f"{cost[0]:.2f} / {cost[1]:.2f}"


def _growth(cost: tuple[float, float], count: int, late: int) -> float:
    """How much more than message EARLY the message `late` of `count` cost, where the first and the last cost `cost`."""
    first, last = cost
    at_early, at_late = (first + (last - first) * number / count for number in (EARLY, late))
    return at_late / at_early


@contextmanager
def _world() -> Iterator[tuple[Path, RedisServer]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, running_redis(Path(folder) / "redis") as redis:
        yield Path(folder), redis


def _walk(name: str, count: int, here: Place, redis: RedisServer, say: Say) -> Walk:
    with redis.client() as client:
        before = int(client.info("memory")["used_memory"])
        producer = here.producer("--once")
        cost, (memory, _) = _follow(producer, lambda: int(client.xlen(Keys().stream)), count)
        queued = (int(client.info("memory")["used_memory"]) - before) / count
        say(f"  {count:,} × {name}: producer {memory:.0f} MiB, CPU ms {_two(cost)}, {queued:,.0f} bytes in Redis each")
        worker = here.worker()
        rows = Rows(here.folder)
        worker_cost, (own, family) = _follow(worker, rows.last, count)
        wait(lambda: client.xlen(Keys().stream) == 0, 60, "the stream is empty")
        aof = int(client.info("persistence")["aof_current_size"]) / count
    code = worker.terminate()
    if code != 0 or rows.count() != count:
        raise Failed(f"the worker ended with {code} and {rows.count()} of {count} messages")
    say(f"  {count:,} × {name}: worker {own:.0f} MiB, {family:.0f} with its parser, CPU ms {_two(worker_cost)}")
    return Walk(name, count, memory, own, family, cost, worker_cost, queued, aof, rows.bytes() / count)


def _follow(running: Running, done: Callable[[], int], count: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Watch a process until `done()` is `count`; returns what the first and the last message cost, and its peaks."""
    samples: list[tuple[int, float]] = []
    top = (0.0, 0.0)
    until = time.monotonic() + PATIENCE
    while not samples or samples[-1][0] < count:
        if time.monotonic() > until:
            raise Failed(f"{running.stem} was not done in {PATIENCE:.0f} s")
        number = done()
        if not running.alive:
            if number < count:
                raise Failed(f"{running.stem} ended at {number} of {count} with {running.process.returncode}")
            break
        samples.append((number, used(running.process.pid)))
        top = max(top, peaks(running.process.pid))
        time.sleep(0.05)
    costs = [_cost(samples, count * part / SLICES, count * (part + 1) / SLICES) for part in range(SLICES)]
    return _line(costs), top


def _line(costs: list[float]) -> tuple[float, float]:
    """Both ends of the line through `costs`, each at the middle of its slice; its slope is the median of all pairs'."""
    pairs = combinations(enumerate(costs), 2)
    slope = median((cost - before) / (at - earlier) for (earlier, before), (at, cost) in pairs)
    begin = median(cost - slope * (at + 0.5) for at, cost in enumerate(costs))
    return begin, begin + slope * len(costs)


def _cost(samples: list[tuple[int, float]], low: float, high: float) -> float:
    """CPU ms for a message between two numbers of messages; what came before the first message is not counted."""
    seen = [(number, cpu) for number, cpu in samples if number]
    first, last = (seen[0][0], seen[-1][0]) if seen else (0, 0)
    if first == last:
        raise Failed("the backlog was too small to be watched")
    low, high = max(first, low), min(last, high)
    if low >= high:  # it was over before it was looked at so often
        low, high = first, last
    return 1000 * (_at(seen, high) - _at(seen, low)) / (high - low)


def _at(samples: list[tuple[int, float]], number: float) -> float:
    """The CPU seconds at a number of messages, between two samples in a straight line."""
    for (before, cpu), (after, more) in pairwise(samples):
        if before <= number <= after and before < after:
            return cpu + (more - cpu) * (number - before) / (after - before)
    raise Failed("the backlog was too small to be watched")
