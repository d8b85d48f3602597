"""Names what of erased mail stays elsewhere, and until when: for the report of an erasure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from email_ingestion.backup.archive import list_archives
from email_ingestion.erasure.report import Remainder
from email_ingestion.settings import Settings

BACKUP_DAYS = 30  # the default of `backup --retention-days`
INCIDENTS = Path("data/incidents")
BY_HAND = "you delete it"


def remainders(settings: Settings, *, scrubbed: bool) -> Iterator[Remainder]:
    """Yield them; `scrubbed` says that database, Redis and lines of JSON were written anew."""
    yield Remainder("the mail server: it was only ever read", "its owner deletes it there")
    yield from _backups(settings)
    yield Remainder("files that drain, dlq export, dlq purge and export wrote", BY_HAND)
    yield from _database(settings, scrubbed=scrubbed)
    yield from _redis(scrubbed=scrubbed)
    yield from _sinks(settings, scrubbed=scrubbed)
    if settings.blob_url.startswith("s3:"):
        yield Remainder("older versions of objects, where the bucket keeps versions", "its lifecycle rules delete them")
    for folder in sorted(INCIDENTS.glob("INC-*")):
        yield Remainder(f"{folder}: the notes and logs of an incident, with identities", BY_HAND)
    yield Remainder(f"{settings.log_dir}: identities (account:gm:…), no addresses", "logrotate: 14 days by default")
    yield Remainder(f"{settings.erasure_dir}: tombstones, which are hashes", "for good, or the mail comes back")
    yield Remainder(
        "freed blocks of disks, snapshots of volumes", "they are written over, or deleted where you keep them"
    )


def _backups(settings: Settings) -> Iterator[Remainder]:
    for archive in list_archives(settings.backup_dir):
        end = archive.manifest.created_at + timedelta(days=BACKUP_DAYS)
        yield Remainder(
            f"backup {archive.path.name}; a restore of it erases the mail again",
            f"{end:%Y-%m-%d} with `--retention-days {BACKUP_DAYS}`, the default",
        )
    yield Remainder("copies of backups elsewhere, and of the blob directory", BY_HAND)


def _database(settings: Settings, *, scrubbed: bool) -> Iterator[Remainder]:
    if settings.database_url.startswith("sqlite"):
        if not scrubbed:
            yield Remainder("the database file: free pages, its -wal, segments of the full-text index", "erase --scrub")
        return
    if not scrubbed:
        yield Remainder("the database server: dead rows, index pages", "VACUUM and new rows, or erase --scrub")
    yield Remainder("the database server: its write-ahead log, replicas, base backups", "by its own settings")


def _redis(*, scrubbed: bool) -> Iterator[Remainder]:
    if not scrubbed:
        yield Remainder(
            "Redis: append-only file and snapshot, and memory beside entries that stay",
            "its next rewrite (auto-aof-rewrite-percentage, BGREWRITEAOF), or erase --scrub",
        )
    yield Remainder("replicas of Redis: their files", "their next rewrite")


def _sinks(settings: Settings, *, scrubbed: bool) -> Iterator[Remainder]:
    for name in settings.sinks:
        kind, _, target = name.partition(":")
        if kind == "ndjson" and target and not scrubbed:
            yield Remainder(f"the lines of {target}", "erase --scrub, or you delete them")
        if kind == "ndjson":
            yield Remainder("lines of JSON that were rotated, shipped or printed", "their receiver deletes them")
        elif kind not in {"database", "files", "maildir", "stream"}:
            yield Remainder(f"what the sink {name} has got", "its receiver deletes it")
