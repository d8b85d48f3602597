"""Replays, exports and purges dead letters for an operator, with progress; the same for a command and for a page.

Everything may be interrupted and given again: a letter is replayed or removed once, and is in the file before it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from email_ingestion.app.account import LedgerOnDemand
from email_ingestion.app.nightly_scrub import MailServers
from email_ingestion.blobs import open_blobs
from email_ingestion.errors import OperationFailed, RedisConnectionError, SinkUnavailable
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.reconcile.content_scrub import restore_dead_letter
from email_ingestion.settings import Settings
from email_ingestion.stream import DeadLetterQueue, EntryScanner, RedisLink
from email_ingestion.stream.dead_letter_file import ExportFile, verify_file, write_entries
from email_ingestion.stream.dead_letters import count_letters

MOST_NAMED = 1000  # letters in a line of the audit log

Advance = Callable[[int], None]
"""Told how many more letters are done."""


def fetch_lost(settings: Settings, link: RedisLink, ids: Sequence[str]) -> dict[str, str]:
    """Fetch the bytes that the blob store lacks; return the ids of the letters that stay without, each with why."""
    store = open_blobs(settings.blob_url)
    wanted, problems = set(ids), {}
    ledger = LedgerOnDemand(settings.database_url)
    with closing(ledger), MailServers(settings, link, ledger, store, lambda _: None) as servers:
        for keys in link.partitions:
            for page in EntryScanner(link, keys).dead_letter_pages():
                for entry in page.entries:
                    letter_id = keys.format_entry_id(entry.id)
                    if entry.raw_ref and letter_id in wanted:
                        with suppress(SinkUnavailable):  # the store is away: the worker waits for it
                            if problem := restore_dead_letter(store, entry, servers.fetch):
                                problems[letter_id] = problem
    return problems


def replay_letters(dead_letters: DeadLetterQueue, ids: Sequence[str], outcome: dict[str, Any], advance: Advance) -> int:
    """Put letters back into the stream; return how many still existed. `outcome` always has the number of now.

    Raises OperationFailed when Redis takes no more of them.
    """
    outcome["replayed"] = 0
    try:
        for moved in dead_letters.replay(ids):
            outcome["replayed"] += moved
            advance(moved)
    except RedisConnectionError as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; {outcome['replayed']} of {count_letters(len(ids))} were put back, the others "
            "stay: run the same command again when Redis takes mail"
        ) from error
    return int(outcome["replayed"])


def export_letters(
    dead_letters: DeadLetterQueue, ids: Sequence[str], path: Path, selected: Mapping[str, Any], advance: Advance
) -> ExportFile:
    """Write letters with their messages to a new file and read it again; `selected` describes which they are."""
    origin = {"exported_at": datetime.now(UTC).isoformat(), "filter": selected}
    write_entries(path, dead_letters.entries(ids), origin, lambda: advance(1))
    return verify_file(path)


@contextmanager
def purging_ledger(settings: Settings) -> Iterator[Ledger | None]:
    """Yield the ledger, which records the purged messages; None if no database has them."""
    if "database" not in settings.sinks:
        yield None
        return
    try:
        with closing(open_ledger(settings.database_url)) as ledger:
            ledger.ping()
            yield ledger
    except SinkUnavailable as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; it must note what is purged: try again when it is up"
        ) from error


def remove_letters(
    dead_letters: DeadLetterQueue,
    ledger: Ledger | None,
    exported: ExportFile,
    path: Path,
    outcome: dict[str, Any],
    *,
    advance: Advance,
) -> int:
    """Delete first and record it then: after an interruption a message comes back instead of being lost."""
    outcome["deleted"] = 0
    try:
        for deleted in dead_letters.remove(exported.letters):
            if ledger:
                ledger.record_purged(filter(None, map(exported.letters.get, deleted)))
            outcome["deleted"] += len(deleted)
            advance(len(deleted))
    except RedisConnectionError as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; {outcome['deleted']} of {count_letters(len(exported.letters))} were deleted, "
            f"all are in {path}: run the same command again"
        ) from error
    return int(outcome["deleted"])


def export_path(settings: Settings) -> Path:
    """Return where an export goes when nobody names a file."""
    return settings.backup_dir / f"dlq-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl"
