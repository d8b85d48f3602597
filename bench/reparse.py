"""Yesterday's mail in today's record: `email-ingestion reparse`, and whether it gives the rows of a fresh delivery."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from bench import parser
from bench.corpus import letters
from bench.rounds import ROOT, Failed, Run, Say, finish, race
from bench.tables import Aim, Section
from email_ingestion.blobs import DiskBlobStore
from email_ingestion.ledger.model import LedgerWrite
from email_ingestion.ledger.store import open_ledger
from email_ingestion.parsing import parse
from email_ingestion.records import Envelope
from email_ingestion.routing import Router
from email_ingestion.sinks.database import DatabaseSink

PATIENCE = 600.0
BATCH = 100
STANDARD_MOST = 1_000  # more of them tell nothing new
BLOB_THRESHOLD = 262_144  # bytes, the default of BLOB_THRESHOLD_BYTES
OURS, STANDARD = "email-ingestion reparse", "standard library, the same record, nothing stored"
WHEN = datetime(2026, 1, 1, tzinfo=UTC)

# What an older version's rows lacked, or had read otherwise.
AGED = (
    "UPDATE emails SET parser_version = 0, cc_addrs = NULL, tags = NULL, priority = NULL, bounce = NULL",
    "UPDATE emails SET subject = 'was ' || subject, text = 'once ' || text WHERE uid % 3 = 0",
    "UPDATE emails SET defects = '[]', from_addr = NULL, message_id = NULL WHERE uid % 5 = 0",
    "DELETE FROM attachments WHERE rowid % 2 = 0",
)


def measure(*, count: int, rounds: int, say: Say) -> Section:
    """Fill a database, make its rows old, bring them up to date, and compare every row with the ones there were."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        archive = _Archive(Path(name), count)
        archive.fill()
        raws = list(letters(min(count, STANDARD_MOST)))
        found, out = race({OURS: archive.reparse, STANDARD: lambda: _standard(raws)}, rounds, say)
    if OURS not in found:
        raise Failed(out[OURS])
    ours, standard = found[OURS], found[STANDARD]
    rows = [
        (each.name, f"{each.rate:,.0f}", f"{each.cost:.2f}", f"± {each.spread / 2:.0%}") for each in (ours, standard)
    ]
    return Section(
        "Reparse",
        f"{count:,} messages of the corpus in an SQLite database, their rows made old: columns empty, texts and "
        "senders changed, attachments away. The whole command from its start to its end; after each round every row of "
        "mail and attachments, every content and every word of the index was the same as after the fresh delivery. The "
        f"standard library reads {min(count, STANDARD_MOST):,} of them on one core and stores nothing.",
        ("Program", "messages/s", "CPU ms/message", "spread"),
        rows,
        [
            Aim("Reparse, against reading the messages with the standard library", ours.rate / standard.rate, 1.5),
            Aim("Reparse, on two cores", ours.rate, 500.0, "messages/s"),
        ],
    )


class _Archive:
    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._file = folder / "data" / "email_ingestion.db"
        self._fresh = ""

    def fill(self) -> None:
        """Deliver the corpus as a worker does."""
        self._file.parent.mkdir()
        router = Router([], ())
        with closing(open_ledger(f"sqlite:///{self._file}")) as ledger:
            sink = DatabaseSink(ledger, DiskBlobStore(self._folder / "data" / "blobs"), BLOB_THRESHOLD)
            for batch in _batches(enumerate(letters(self._count), 1)):
                sink.deliver(
                    [LedgerWrite(router.decide(parse(_envelope(number, raw), raw)).email, raw) for number, raw in batch]
                )
        self._fresh = self._digest()

    def reparse(self) -> Run:
        """Make the rows old and bring them up to date."""
        with closing(sqlite3.connect(self._file)) as database:
            for statement in AGED:
                database.execute(statement)
            database.commit()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "PYTHONPATH": str(ROOT / "src"),
            "REDIS_URL": "redis://127.0.0.1:1",  # none: then no mail waits
            "BLOB_THRESHOLD_BYTES": str(BLOB_THRESHOLD),
        }
        command = [sys.executable, "-m", "email_ingestion", "reparse"]
        ended = finish(command, environment=environment, cwd=self._folder, patience=PATIENCE)
        if f"{self._count:,} changed" not in ended.output:
            raise Failed(f"it did not change every row: {ended.output.splitlines()[0]}")
        if self._digest() != self._fresh:
            raise Failed("the rows are not those of a fresh delivery")
        return Run(self._count, ended.seconds, ended.cpu, ended.peak)

    def _digest(self) -> str:
        """Of every row, and of every word of the indices."""
        digest = hashlib.sha256()
        with closing(sqlite3.connect(self._file)) as database:
            for index in ("email_words", "attachment_words"):
                database.execute(f"CREATE VIRTUAL TABLE temp.{index}_read USING fts5vocab(main, {index}, instance)")
            for query in (
                "SELECT * FROM emails ORDER BY email_id",
                "SELECT * FROM attachments ORDER BY email_id, position",
                "SELECT sha256, size, data FROM contents ORDER BY sha256",
                "SELECT * FROM temp.email_words_read ORDER BY 1, 2, 3, 4",
                "SELECT * FROM temp.attachment_words_read ORDER BY 1, 2, 3, 4",
            ):
                for row in database.execute(query):
                    digest.update(repr(row).encode())
        return digest.hexdigest()


def _envelope(number: int, raw: bytes) -> Envelope:
    date = WHEN + timedelta(minutes=number)
    sha256 = hashlib.sha256(raw).hexdigest()
    return Envelope("me", "INBOX", 1, number, number, number, ("\\Inbox",), ("\\Seen",), date, len(raw), sha256)


def _batches(numbered: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    rest = iter(numbered)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _standard(raws: Sequence[bytes]) -> Run:
    started, cpu = time.monotonic(), time.process_time()
    for raw in raws:
        parser.record(raw)
    return Run(len(raws), time.monotonic() - started, time.process_time() - cpu)
