"""How long a search takes in a ledger of many small messages: `python -m bench.mail_search --messages 1000000`.

The messages are written straight into the tables, so that filling takes minutes; the words in them are distributed as
in a language, with a word that every third message has and one that ten messages have. Printed are the median and the
95th percentile of a page of twenty hits and of the count beside it, and how busy the machine was meanwhile.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sqlalchemy import make_url

from email_ingestion.ledger.search_filter import SearchFilter
from email_ingestion.ledger.store import Ledger, open_ledger

BATCH = 5_000
LEAST = 3  # times that each is asked
VOCABULARY = 20_000
WORDS = 25  # of a message
COMMON, RARE = "quarterly", "zygomatic"
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
COLUMNS = (
    *("email_id", "account", "mailbox", "uidvalidity", "uid", "gm_msgid", "gm_thrid", "labels", "message_id"),
    *("subject", "from_addr", "from_name", "to_addrs", "date", "internaldate", "size", "sha256", "text", "headers"),
    *("defects", "raw_ref", "processed_at", "flags", "tags", "priority", "cc_addrs", "bounce", "parser_version"),
)

BOUNCE = COLUMNS.index("bounce")  # which PostgreSQL wants as a truth value
COUNT_SECONDS = 0.3  # as the pages and the API have it


def say(text: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Fill the ledger of a folder unless it is filled, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("data/bench-search"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--database", help="an empty database on PostgreSQL instead, postgresql+psycopg://…")
    asked = parser.parse_args()
    url = asked.database or f"sqlite:///{asked.folder}/ledger.db"
    with closing(open_ledger(url)) as ledger:
        here = ledger.count()
        if here < asked.messages:
            say(f"writing {asked.messages - here:,} messages")
            if asked.database:
                fill_server(url, here, asked.messages)
            else:
                fill(asked.folder / "ledger.db", here, asked.messages)
        say(f"{ledger.count():,} messages, {os.cpu_count()} processors")
        for name, question in questions(ledger):
            say(f"{name:<44} {measured(question, asked.rounds)}")
    say(f"load average {os.getloadavg()[0]:.1f}: above 1 the numbers say more of the machine than of the search")


def fill(path: Path, start: int, end: int) -> None:
    """Write the messages from number `start` on."""
    insert = f"INSERT INTO emails ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - our own names
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous=OFF")
        for rows in _batches(start, end):
            database.execute("BEGIN")
            database.executemany(insert, rows)
            database.execute("COMMIT")


def _batches(start: int, end: int) -> Iterator[Iterator[tuple[Any, ...]]]:
    chance = random.Random(start)  # noqa: S311 - the same words each time
    words = [f"w{number:x}" for number in range(VOCABULARY)]
    weights = [1.0 / (rank + 3) for rank in range(VOCABULARY)]
    for first in range(start, end, BATCH):
        numbers = range(first, min(first + BATCH, end))
        yield _rows(numbers, chance.choices(words, weights, k=WORDS * len(numbers)), end)


def fill_server(url: str, start: int, end: int) -> None:
    """Write the same messages into PostgreSQL."""
    import psycopg  # noqa: PLC0415 - an extra

    with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)) as database:
        for rows in _batches(start, end):
            with database.cursor().copy(f"COPY emails ({', '.join(COLUMNS)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row([bool(row[place]) if place == BOUNCE else row[place] for place in range(len(row))])
            database.commit()
        database.autocommit = True
        database.execute("VACUUM ANALYZE emails")


def _rows(numbers: range, chosen: list[str], end: int) -> Iterator[tuple[Any, ...]]:
    step = max(1, end // 10)
    for place, number in enumerate(numbers):
        text = " ".join(chosen[place * WORDS : (place + 1) * WORDS])
        text += f" {COMMON}" if number % 3 == 0 else ""
        text += f" {RARE}" if number % step == step // 2 else ""
        at = (EPOCH + timedelta(minutes=number)).isoformat()
        gm_msgid = 1_700_000_000_000_000_000 + number
        yield (
            *(
                f"default:gm:{gm_msgid}",
                "default",
                "INBOX",
                1,
                number,
                gm_msgid,
                gm_msgid - number % 4,
                '["\\\\Inbox"]',
            ),
            *(f"<{number}@example.org>", f"letter {number % 1000}", f"p{number % 500}@example.org", "Ann"),
            *('[{"name": "Bob", "addr": "bob@example.com"}]', at, at, 1000, "0" * 64, text, "[]"),
            *("[]", "sha256:" + "0" * 64, at, "[]", "[]", 5, "[]", 0, 1),
        )


def questions(ledger: Ledger) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is asked, by name."""
    pages, middle = ledger.pages, ledger.pages.page(limit=1000)[-1].place
    only = SearchFilter(sender="p77@example.org")
    for name, words in (
        ("rare", RARE),
        ("common", COMMON),
        ("two common", f"{COMMON} w1"),
        ("both", f"{COMMON} {RARE}"),
    ):
        yield f"{name} words, a page", lambda words=words: pages.page(words)
        yield f"{name} words, the count", lambda words=words: pages.count(words, seconds=COUNT_SECONDS)
    yield "no words, a page", pages.page
    yield "no words, a page further back", lambda: pages.page(after=middle)
    yield "excluded words, a page", lambda: pages.page(f"{COMMON} -w1")
    yield "excluded words, the count", lambda: pages.count(f"{COMMON} -w1", seconds=COUNT_SECONDS)
    yield "a sender, a page", lambda: pages.page(only=only)
    yield "a sender, the count", lambda: pages.count(only=only, seconds=COUNT_SECONDS)
    yield "a common word of a sender, a page", lambda: pages.page(COMMON, only)
    yield "the beginning of an identity", lambda: ledger.mail_search.matching_ids("17000000000005")


def measured(question: Callable[[], object], rounds: int) -> str:
    """Return the median and the 95th percentile of the time that a question takes."""
    taken = []
    until = time.monotonic() + 20
    while len(taken) < LEAST or (len(taken) < rounds and time.monotonic() < until):
        started = time.perf_counter()
        question()
        taken.append((time.perf_counter() - started) * 1000)
    worst = quantiles(taken, n=20)[-1]
    return f"median {median(taken):8.1f} ms   p95 {worst:8.1f} ms   ({len(taken)} times)"


if __name__ == "__main__":
    main()
