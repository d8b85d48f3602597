"""Wires an erasure: for the command, for the restore, and for the nightly run of the producer."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from email_ingestion.app.remainders import remainders
from email_ingestion.blobs import open_blobs
from email_ingestion.erasure.eraser import Eraser, ErasingSink, NoticeSink
from email_ingestion.erasure.report import write_report
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.errors import SinkUnavailable
from email_ingestion.identity import tombstone
from email_ingestion.ledger.fingerprint import sqlite_path
from email_ingestion.settings import Settings
from email_ingestion.sinks import close_sink, load_sink
from email_ingestion.sinks.ndjson import FileSink
from email_ingestion.stream import RedisLink, read_presences
from email_ingestion.stream.queue_erasure import QueueErasure
from email_ingestion.stream.queue_scrub import QueueScrub

if TYPE_CHECKING:
    from email_ingestion.erasure.mail_selector import Selector
    from email_ingestion.ledger.store import Ledger

# Sinks without anything that could be erased from here, or that are erased otherwise.
WEBHOOK = "webhook"
OTHER_KINDS = ("database", "stream", "ndjson", "python", WEBHOOK)
FOLDERS = {"files": "data/files", "maildir": "data/maildir"}


def new_run() -> str:
    """Return a name for a run; the names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


@contextmanager
def open_eraser(settings: Settings, link: RedisLink, ledger: Ledger, run: str) -> Iterator[Eraser]:
    """Yield an eraser for one run. Raises ConfigurationError when a sink of SINKS cannot be opened."""
    with ExitStack() as cleanup:
        sinks: dict[str, ErasingSink] = {}
        receivers: dict[str, NoticeSink] = {}
        told_by_feed = {name for name in settings.sinks if "erased" in settings.changes_told(name)}
        eraser = Eraser(
            run,
            ledger,
            open_blobs(settings.blob_url),
            QueueErasure(link, sink_streams(settings, link)),
            TombstoneFile(settings.erasure_dir),
            sinks=sinks,
            receivers=receivers,
            processes_run=lambda: bool(read_presences(link)),
            told_by_feed=told_by_feed,
        )
        for name in settings.sinks:
            kind, _, target = name.partition(":")
            if kind == WEBHOOK and (settings.webhook_erased or name in told_by_feed):
                webhook = load_sink(name, settings)
                cleanup.callback(close_sink, webhook)
                receivers[name] = cast("NoticeSink", webhook)
            if kind in OTHER_KINDS:
                continue
            folder = Path(target or FOLDERS[kind]) if kind in FOLDERS else None
            if folder and not folder.is_dir():  # opening the sink would make it
                eraser.summary.failed_sinks[name] = f"{folder} is not on this machine: erase there as well"
                continue
            sink = load_sink(name, settings)
            cleanup.callback(close_sink, sink)
            if hasattr(sink, "erase"):
                sinks[name] = cast("ErasingSink", sink)
        yield eraser


def reapply_tombstones(settings: Settings, link: RedisLink) -> int:
    """Erase again whatever has a tombstone; return how many messages that were. Raises as `Eraser.reapply` does."""
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - with it comes SQLAlchemy

    with (
        closing(open_ledger(settings.database_url)) as ledger,
        open_eraser(settings, link, ledger, new_run()) as eraser,
    ):
        for _ in eraser.reapply():
            pass
        return eraser.summary.matched + sum(eraser.summary.removed[name] for name in ("stream", "dead_letters"))


@contextmanager
def erased_names(settings: Settings) -> Iterator[Callable[[Collection[str]], set[str]]]:
    """Yield a function that returns those of some identities that were erased, by the file and by the database.

    Where the database is away the file must do: a worker asks the database before it records anything.
    """
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - with it comes SQLAlchemy

    in_file = TombstoneFile(settings.erasure_dir).read().tombstones
    with ExitStack() as cleanup:
        ledger = None
        file = sqlite_path(settings.database_url)
        if file is None or file.exists():
            with suppress(SinkUnavailable):
                ledger = cleanup.enter_context(closing(open_ledger(settings.database_url)))

        def erased(identities: Collection[str]) -> set[str]:
            found = {each for each in identities if tombstone(each) in in_file}
            if ledger:
                with suppress(SinkUnavailable):
                    found |= ledger.erasure.erased(identities)
            return found

        yield erased


def scrub(settings: Settings, link: RedisLink, ledger: Ledger) -> list[str]:
    """Have database, Redis and files of JSON lines let go of the bytes of what was erased; return what could not be.

    Raises SinkUnavailable, ConfigurationError and OperationFailed when one of them is away.
    """
    from email_ingestion.ledger.maintenance import scrub_ledger  # noqa: PLC0415 - with it comes SQLAlchemy

    tombstones, problems = set(ledger.erasure.tombstones()), []
    for name in settings.sinks:
        kind, _, target = name.partition(":")
        if kind == "ndjson" and target not in {"", "-"}:
            sink = FileSink(Path(target), settings.blob_threshold_bytes)
            try:
                sink.erase_lines(lambda each: tombstone(each) in tombstones)
            except SinkUnavailable as error:
                problems.append(str(error))
    return [*problems, *scrub_ledger(settings.database_url), *QueueScrub(link, sink_streams(settings, link)).run()]


def report_erasure(settings: Settings, eraser: Eraser, selector: Selector | None, *, scrubbed: bool) -> dict[str, str]:
    """Write the signed report of a run; return what the audit log tells of it."""
    found = eraser.summary
    facts = {
        "chosen": selector.describe() if selector else {"reapply": True},
        "matched": found.matched,
        "held": found.held,
        "accounts": dict(found.by_account),
        "removed": dict(+found.removed),
        "tombstones": found.tombstones,
        "open": list(found.open_points()),
        "scrubbed": scrubbed,
    }
    stays = list(remainders(settings, scrubbed=scrubbed))
    path, digest = write_report(settings.erasure_dir, eraser.name, facts, stays)
    return {"report": str(path), "report_sha256": digest}


def sink_streams(settings: Settings, link: RedisLink) -> list[str]:
    """Return the Redis Streams that the sink `stream` writes to, or wrote to by its usual name."""
    named = [name.partition(":")[2] for name in settings.sinks if name.partition(":")[0] == "stream"]
    return list(dict.fromkeys([link.keys.sink_stream, *filter(None, named)]))
