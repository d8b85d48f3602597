"""Our worker as it is, but for what is measured: `fill` and `work` as the peers have them, see `bench.peers.common`.

With the parser `ours` every room is real, the sink excepted, which takes everything and does nothing; `database` is
the real one.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.corpus_file import read
from email_ingestion.app.runner import identify
from email_ingestion.blobs import open_blobs
from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import RedisConnectionError, SinkUnavailable
from email_ingestion.ledger.store import open_ledger
from email_ingestion.ops.logs import configure_logs
from email_ingestion.ops.observers import open_ops
from email_ingestion.ops.status_records import Names
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import Cursor, Envelope, RawMessage, SinkMessage
from email_ingestion.routing import Router
from email_ingestion.sinks import Sink
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.stream import Appender, Consumer, Keys, RedisLink, SyntheticMessages, connect
from email_ingestion.worker import Worker
from email_ingestion.worker.loop import LOOP
from email_ingestion.worker.processor import BatchProcessor

BATCH = 100
THRESHOLD = 262_144  # BLOB_THRESHOLD_BYTES
ACCOUNT, MAILBOX = "default", "INBOX"


class Nowhere:
    """A sink that has everything it is given."""

    name = "nowhere"

    def deliver(self, batch: Sequence[SinkMessage]) -> set[str]:
        """Take it."""
        del batch
        return set()

    def ping(self) -> None:
        """Be there."""


def messages(raws: Iterator[bytes], folder: Path) -> Iterator[RawMessage]:
    """As the producer makes them: large ones lie in the blob store."""
    blobs = open_blobs(f"file:{folder / 'blobs'}")
    now = datetime.now(UTC)
    for uid, raw in enumerate(raws, 1):
        sha256 = hashlib.sha256(raw).hexdigest()
        envelope = Envelope(ACCOUNT, MAILBOX, 1, uid, uid, uid, ("\\Inbox",), (), now, len(raw), sha256)
        large = len(raw) > THRESHOLD
        yield RawMessage(envelope, None if large else raw, blobs.put(raw) if large else None)


def link_to(url: str) -> RedisLink:
    """A link whose breaker watches."""
    breaker = Breaker("redis", BreakerPolicy(), (RedisConnectionError,), lambda _: None)
    return RedisLink(connect(url, "bench"), Keys(), breaker)


def fill(url: str, raws: Iterator[bytes], folder: Path) -> None:
    """Append everything."""
    appender = Appender(link_to(url))
    cursor = appender.restart_cursor(ACCOUNT, MAILBOX, Cursor(1, 0))
    batch: list[RawMessage] = []
    for message in messages(raws, folder):
        batch.append(message)
        if len(batch) == BATCH:
            _, cursor = appender.append(ACCOUNT, MAILBOX, cursor, message.envelope.uid, batch)
            batch = []
    if batch:
        appender.append(ACCOUNT, MAILBOX, cursor, batch[-1].envelope.uid, batch)


def work(url: str, sink: Sink, folder: Path) -> dict[str, float]:
    """Drain the stream with a worker; returns what it took, without its start."""
    identity = identify("worker")
    ops = open_ops(identity, Names(sinks=(sink.name,), loops={LOOP: 60.0}), list)
    configure_logs(identity, folder / "logs", "INFO", "json", ops.metrics.count_log)
    link = link_to(url)
    consumer = Consumer(link, identity.instance, 60.0)
    consumer.ensure_group()
    parser = IsolatedParser(60.0)
    parser.parse([])
    settlement = BatchProcessor(
        consumer,
        sink,
        Breaker(sink.name, BreakerPolicy(), (SinkUnavailable,), ops.observe),
        open_blobs(f"file:{folder / 'blobs'}"),
        parser,
        synthetic=SyntheticMessages(link),
        further_sinks=(),
        router=Router((), ()),
        on_recorded=lambda: None,
        max_retries=5,
        instance=identity.instance,
        observe=ops.observe,
    )
    paused = OperatorOverrides("worker").active_pause
    worker = Worker(
        consumer,
        settlement,
        suspects=threading.Lock(),
        batch=lambda: BATCH,
        lease=60.0,
        paused=paused,
        min_priority=lambda: 0,
        observe=ops.observe,
    )
    started, cpu = time.monotonic(), _cpu()
    worker.drain()
    seconds = time.monotonic() - started
    parser.close()
    return {"seconds": seconds, "cpu": _cpu() - cpu}


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    """`fill|work REDIS_URL CORPUS COUNT ours|database`, in the folder that is to be used."""
    command, url, corpus, count, kind = sys.argv[1:6]
    folder = Path.cwd()
    if command == "fill":
        fill(url, read(Path(corpus), int(count)), folder)
        return
    blobs = open_blobs(f"file:{folder / 'blobs'}")
    url_of_it = f"sqlite:///{folder / 'bench.db'}"
    sink = DatabaseSink(open_ledger(url_of_it), blobs, THRESHOLD) if kind == "database" else Nowhere()
    sys.stdout.write(json.dumps(work(url, sink, folder)) + "\n")


if __name__ == "__main__":
    main()
