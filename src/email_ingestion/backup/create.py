"""Makes a backup: read, packed, loaded into a scratch server and compared; only then does it get its name."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import zstandard

from email_ingestion.backup.archive import (
    Archive,
    Manifest,
    archives,
    discard,
    member_of,
    name_of,
    read_archive,
    unpack_archive,
    write_archive,
    write_beside,
)
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.ledger.copy import LedgerCopy, check_copy, copy_ledger
from email_ingestion.settings import RedisAddress
from email_ingestion.stream import RedisLink, SnapshotRestore, Tally, open_link, read_server_info, read_snapshot
from email_ingestion.stream.snapshot import SnapshotTorn

REDIS = "redis.jsonl.zst"
UNFINISHED = ".unfinished-"
ATTEMPTS = 3
STALE_SECONDS = 86_400  # a backup that was killed leaves its working directory, with mail in it

Scratch = Callable[[], AbstractContextManager[str]]
"""Starts a Redis of its own and gives its address."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Told what goes on: a step's name and how many units it has, if known; and how far it is."""

    begin: Callable[[str, int | None], None]
    at: Callable[[int, int | None], None]


def back_up(link: RedisLink, database_url: str | None, directory: Path, scratch: Scratch, steps: Steps) -> Archive:
    """A new, proven backup in `directory`; without `database_url` of Redis alone.

    Raises RedisConnectionError, SinkUnavailable, ConfigurationError and OperationFailed, and leaves nothing then.
    """
    created_at = datetime.now(UTC)
    with working_directory(directory) as folder:
        redis = _snapshot(link, folder / REDIS, steps)
        database = _copy(database_url, folder, steps) if database_url else None
        files = tuple(member_of(path) for path in sorted(folder.iterdir()))
        manifest = Manifest(created_at, redis, database, files)
        draft = folder / name_of(created_at)
        steps.begin("writing the archive", None)
        write_archive(draft, manifest, folder)
        for member in files:  # they are unpacked again, from what is on the disk
            (folder / member.name).unlink()
        rehearse(read_archive(draft), scratch, steps, folder)
        path = directory / draft.name
        os.replace(draft, path)
        write_beside(path, manifest)
    return Archive(path, manifest)


def rehearse(archive: Archive, scratch: Scratch, steps: Steps, folder: Path) -> None:
    """Load a backup into a scratch server, read the copy of the ledger to its end, and compare with the manifest.

    `folder` has room for what is in it. Raises OperationFailed when the backup is not what its manifest says.
    """
    steps.begin("unpacking", None)
    unpack_archive(archive, folder)
    with scratch() as address:
        there = RedisAddress(address, partitions=partitions_in(archive))
        load(SnapshotRestore(open_link(there, "email-ingestion-rehearsal")), archive, folder, steps)
    if copied := copied_of(archive):
        steps.begin("checking the copy of the database", None)
        check_copy(ledger_in(archive, folder), copied)


def partitions_in(archive: Archive) -> int:
    """Into how many partitions its mail is spread."""
    return int(archive.manifest.redis.get("partitions", 1))


def load(reload: SnapshotRestore, archive: Archive, folder: Path, steps: Steps) -> None:
    """Load the unpacked snapshot beside the keyspace, and prove it."""
    expected = archive.manifest.redis
    steps.begin("loading into Redis", expected["stream_length"] + expected["dlq_depth"])
    try:
        reload.load(_counted(read_lines(folder / REDIS), steps))
        steps.begin("comparing with the manifest", None)
        reload.verify({name: expected[name] for name in Tally().summary()})
    except BaseException:
        reload.abandon()
        raise


def retire(directory: Path, days: float, keep: Archive) -> list[Archive]:
    """Delete the backups older than `days`, never `keep`, which was just proven; returns those deleted."""
    limit = datetime.now(UTC) - timedelta(days=days)
    old = [each for each in archives(directory) if each.manifest.created_at < limit and each.path != keep.path]
    discard(old)
    return old


def ledger_in(archive: Archive, folder: Path) -> Path:
    """The unpacked copy of the ledger, ready to be opened."""
    packed = folder / _ledger_name(archive.manifest.database or {})
    if packed.suffix != ".zst":
        return packed
    path = packed.with_suffix("")
    with packed.open("rb") as source, path.open("wb") as target:
        zstandard.ZstdDecompressor().copy_stream(source, target)
    return path


def copied_of(archive: Archive) -> LedgerCopy | None:
    """What the manifest says of the ledger; None when there was none."""
    return LedgerCopy(**archive.manifest.database) if archive.manifest.database else None


@contextmanager
def working_directory(directory: Path) -> Iterator[Path]:
    """A private directory beside the backups, gone afterwards; those that a killed backup left go first."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in directory.glob(f"{UNFINISHED}*"):
            if left.stat().st_mtime < time.time() - STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        made = tempfile.TemporaryDirectory(dir=directory, prefix=UNFINISHED)
    except OSError as error:
        raise ConfigurationError(f"cannot write {directory}: {error.strerror}; name another --output-dir") from error
    with made as name:
        try:
            yield Path(name)
        except OSError as error:
            raise OperationFailed(f"cannot write the backup below {directory}: {error.strerror or error}") from error


def _snapshot(link: RedisLink, path: Path, steps: Steps) -> dict[str, Any]:
    for attempt in range(ATTEMPTS):
        facts = read_server_info(link)
        steps.begin("reading Redis", None)
        tally = Tally()
        try:
            with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
                for line in _counted(map(tally.count, read_snapshot(link)), steps):
                    packed.write(json.dumps(line).encode() + b"\n")
        except SnapshotTorn:
            if attempt + 1 == ATTEMPTS:
                raise
        else:
            break
    return {
        "server": facts[0].version,
        "dbsize": sum(each.dbsize for each in facts),
        "partitions": len(link.partitions),
        **tally.summary(),
    }


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a snapshot."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as content:
        left = b""
        while chunk := content.read(1024 * 1024):
            *lines, left = (left + chunk).split(b"\n")
            yield from map(json.loads, lines)


def _copy(url: str, folder: Path, steps: Steps) -> dict[str, Any] | None:
    steps.begin("copying the database", None)
    path = folder / "database"
    copied = copy_ledger(url, path, steps.at)
    if copied is None:
        path.unlink(missing_ok=True)
        return None
    record = asdict(copied)
    packed = folder / _ledger_name(record)
    if packed.suffix == ".zst":
        steps.begin("compressing the copy", None)
        with path.open("rb") as source, packed.open("wb") as target:
            zstandard.ZstdCompressor().copy_stream(source, target)
        path.unlink()
    else:
        path.rename(packed)
    return record


def _ledger_name(database: dict[str, Any]) -> str:
    return "database.sqlite.zst" if database["kind"] == "sqlite" else "database.pgdump"  # pg_dump compresses itself


def _counted(lines: Iterator[dict[str, Any]], steps: Steps) -> Iterator[dict[str, Any]]:
    entries = 0
    for line in lines:
        if "id" in line:
            entries += 1
            if entries % 100 == 0:
                steps.at(entries, None)
        yield line
