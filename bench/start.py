"""What a large mailbox costs at the start: seconds from `python producer.py` to mail in the database."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

from bench.rounds import Say
from bench.system import Rows, installed, wait
from bench.tables import Aim, Section
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.servers.processes import gmail_settings
from tests.servers.redis import running_redis

LIVE = b"Subject: live\r\nMessage-ID: <live@example.org>\r\nFrom: a@example.org\r\n\r\nnew\r\n"
SIZES = (1_000, 200_000, 1_000_000)


def measure(*, rounds: int, say: Say, sizes: tuple[int, ...] = SIZES) -> Section:
    """A new message comes while the producer starts for the first time, and another while it walks the old ones."""
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            found[size].append(_once(size))
            say(f"  {size:,} old messages: up {found[size][-1][0]:.2f} s, live {found[size][-1][1]:.2f} s")
    middle = {size: (median(up for up, _ in each), median(live for _, live in each)) for size, each in found.items()}
    rows = [(f"{size:,}", f"{up:.2f}", f"{live:.2f}") for size, (up, live) in middle.items()]
    largest, smallest = max(sizes), min(sizes)
    aims = [
        Aim(f"First run on {size:,} messages: a new one → row", middle[size][1], 2.0, "s", most=True) for size in sizes
    ]
    aims.append(
        Aim(
            f"Start on {largest:,} old messages over {smallest:,}",
            middle[largest][0] - middle[smallest][0],
            0.5,
            "s",
            most=True,
        )
    )
    return Section(
        "Start on a large mailbox",
        "The first run on a sandbox with this many old messages and a worker that already runs: seconds from the start "
        "of the process to its first old message in the database, and from the delivery of a new message at that "
        "moment to its row, while the old ones are walked.",
        ("Old messages", "start → first row s", "new message → row s"),
        rows,
        aims,
    )


def _once(size: int) -> tuple[float, float]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        running_redis(Path(name) / "redis") as redis,
        running_sandbox(SandboxSettings(mail=f"bulk:{size}")) as server,
        installed(Path(name) / "place", redis.url, **gmail_settings(server, Path(name) / "place")) as here,
    ):
        here.worker().url()
        rows = Rows(here.folder)
        started = time.monotonic()
        here.producer()
        wait(lambda: rows.last() > 0, 60, "the first old message", every=0.005)
        up = time.monotonic() - started
        delivered = time.monotonic()
        server.deliver(LIVE)
        database = here.folder / "data" / "email_ingestion.db"
        with closing(sqlite3.connect(database, timeout=30)) as connection:
            query = "SELECT 1 FROM emails WHERE rowid > 0 AND subject = 'live' LIMIT 1"
            wait(lambda: connection.execute(query).fetchone() is not None, 120, "the new message", every=0.005)
        return up, time.monotonic() - delivered
