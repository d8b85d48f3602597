"""Create a backup: read, pack, load into a scratch server and compare; only then does the file get its name."""

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
    DAMAGED,
    Archive,
    Manifest,
    archive_name,
    delete_archives,
    describe_file,
    list_archives,
    read_archive,
    unpack_archive,
    write_archive,
    write_manifest_file,
)
from email_ingestion.erasure.tombstones import NAME as TOMBSTONES
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.ledger.copy import LedgerCopy, check_copy, copy_ledger
from email_ingestion.settings import RedisAddress
from email_ingestion.stream import RedisLink, SnapshotRestore, Tally, open_link, read_server_info, read_snapshot
from email_ingestion.stream.snapshot import SnapshotTorn

REDIS = "redis.jsonl.zst"
UNFINISHED = ".unfinished-"
ATTEMPTS = 3
MAX_LINE_BYTES = 256 * 1024**2  # of a snapshot; a message over BLOB_THRESHOLD_BYTES is not in it
MIN_FREE_BYTES = 64 * 1024**2  # that the disk keeps when a copy is unpacked there
FRAME_HEADER_BYTES = 18
STALE_SECONDS = 86_400  # a backup that was killed leaves its working directory, with mail in it

ScratchServer = Callable[[], AbstractContextManager[str]]
"""Starts a Redis server for the block; yields its address."""


@dataclass(frozen=True, slots=True)
class BackupProgress:
    """Callbacks for the progress of a backup or a restore."""

    start_step: Callable[[str, int | None], None]  # its name, and how many units it has, if known
    update: Callable[[int, int | None], None]  # units done, and their total if it has changed


def create_backup(
    link: RedisLink,
    database_url: str | None,
    directory: Path,
    scratch: ScratchServer,
    progress: BackupProgress,
    *,
    tombstones: TombstoneFile,
) -> Archive:
    """Create and prove a backup in `directory`; without `database_url` it holds Redis and the tombstones alone.

    Raises RedisConnectionError, SinkUnavailable, ConfigurationError and OperationFailed, and then leaves no file.
    """
    created_at = datetime.now(UTC)
    with working_directory(directory) as folder:
        redis = _snapshot(link, folder / REDIS, progress)
        database = _copy_database(database_url, folder, progress) if database_url else None
        tombstones.copy_to(folder / TOMBSTONES)
        files = tuple(describe_file(path) for path in sorted(folder.iterdir()))
        manifest = Manifest(created_at, redis, database, files)
        draft = folder / archive_name(created_at)
        progress.start_step("writing the archive", None)
        write_archive(draft, manifest, folder)
        for member in files:  # they are unpacked again, from what is on the disk
            (folder / member.name).unlink()
        rehearse_restore(read_archive(draft), scratch, progress, folder)
        path = directory / draft.name
        os.replace(draft, path)
        write_manifest_file(path, manifest)
    return Archive(path, manifest)


def rehearse_restore(archive: Archive, scratch: ScratchServer, progress: BackupProgress, folder: Path) -> None:
    """Load a backup into a scratch server, read the copy of the ledger to its end, and compare with the manifest.

    `folder` takes its unpacked files. Raises OperationFailed when the backup is not what its manifest says.
    """
    progress.start_step("unpacking", None)
    unpack_archive(archive, folder)
    with scratch() as address:
        there = RedisAddress(address, partitions=partitions_of(archive))
        load_snapshot(SnapshotRestore(open_link(there, "email-ingestion-rehearsal")), archive, folder, progress)
    check_ledger(archive, folder, progress)


def partitions_of(archive: Archive) -> int:
    """Return the number of partitions of the Redis that was backed up."""
    return int(archive.manifest.redis.get("partitions", 1))


def load_snapshot(restore: SnapshotRestore, archive: Archive, folder: Path, progress: BackupProgress) -> None:
    """Load the unpacked snapshot beside the keyspace, and compare it with the manifest."""
    expected = archive.manifest.redis
    progress.start_step("loading into Redis", expected["stream_length"] + expected["dlq_depth"])
    try:
        restore.load(_with_progress(read_snapshot_file(folder / REDIS), progress))
        progress.start_step("comparing with the manifest", None)
        restore.verify({name: expected[name] for name in Tally().summary()})
    except (*DAMAGED, RecursionError, zstandard.ZstdError) as error:
        restore.abandon()
        name = archive.path.name
        raise OperationFailed(f"{name} is damaged and was not used: its copy of Redis cannot be read") from error
    except BaseException:
        restore.abandon()
        raise


def delete_expired(directory: Path, days: float, keep: Archive) -> list[Archive]:
    """Delete the backups older than `days`, never `keep`, which was just proven; return the deleted ones."""
    limit = datetime.now(UTC) - timedelta(days=days)
    old = [each for each in list_archives(directory) if each.manifest.created_at < limit and each.path != keep.path]
    delete_archives(old)
    return old


def check_ledger(archive: Archive, folder: Path, progress: BackupProgress) -> Path | None:
    """Return the copy of the ledger in `folder`, decompressed and found to be what the manifest says; None without one.

    Raises OperationFailed.
    """
    copied = ledger_summary(archive)
    if copied is None:
        return None
    progress.start_step("checking the copy of the database", None)
    packed = folder / _ledger_name(asdict(copied))
    path = packed.with_suffix("") if packed.suffix == ".zst" else packed
    if path != packed:
        _decompress(packed, path, archive.path.name)
    check_copy(path, copied)
    return path


def _decompress(packed: Path, path: Path, name: str) -> None:
    """Decompress a file; one that would fill the disk is refused, for a few bytes may unpack to any number."""
    room = shutil.disk_usage(path.parent).free - MIN_FREE_BYTES
    too_large = f"the database in {name} unpacks to more than there is room for below {path.parent.parent}: make room"
    try:
        with packed.open("rb") as source, path.open("wb") as target:
            if zstandard.frame_content_size(source.read(FRAME_HEADER_BYTES)) > room:
                raise OperationFailed(too_large)
            source.seek(0)
            content = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
            while chunk := content.read(1024 * 1024):
                room -= len(chunk)
                if room < 0:
                    raise OperationFailed(too_large)
                target.write(chunk)
    except zstandard.ZstdError as error:
        raise OperationFailed(f"{name} is damaged: its copy of the database cannot be read") from error


def ledger_summary(archive: Archive) -> LedgerCopy | None:
    """Return what the manifest says of the ledger; None when there was none."""
    return LedgerCopy(**archive.manifest.database) if archive.manifest.database else None


@contextmanager
def working_directory(directory: Path) -> Iterator[Path]:
    """Yield a private temporary directory beside the backups; remove first the directories of killed backups."""
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


def _snapshot(link: RedisLink, path: Path, progress: BackupProgress) -> dict[str, Any]:
    for attempt in range(ATTEMPTS):
        facts = read_server_info(link)
        progress.start_step("reading Redis", None)
        tally = Tally()
        try:
            with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
                for line in _with_progress(map(tally.count, read_snapshot(link)), progress):
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


def read_snapshot_file(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a snapshot as dictionaries."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as content:
        left: list[bytes] = []  # the pieces of a line whose end has not come
        while chunk := content.read(1024 * 1024):
            first, *lines = chunk.split(b"\n")
            left.append(first)
            if lines:
                *lines, last = [b"".join(left), *lines]
                yield from map(json.loads, lines)
                left = [last]
            elif sum(map(len, left)) > MAX_LINE_BYTES:
                raise ValueError("it has a line without end")


def _copy_database(url: str, folder: Path, progress: BackupProgress) -> dict[str, Any] | None:
    progress.start_step("copying the database", None)
    path = folder / "database"
    copied = copy_ledger(url, path, progress.update)
    if copied is None:
        path.unlink(missing_ok=True)
        return None
    record = asdict(copied)
    packed = folder / _ledger_name(record)
    if packed.suffix == ".zst":
        progress.start_step("compressing the copy", None)
        with path.open("rb") as source, packed.open("wb") as target:
            zstandard.ZstdCompressor().copy_stream(source, target, size=path.stat().st_size)
        path.unlink()
    else:
        path.rename(packed)
    return record


def _ledger_name(database: dict[str, Any]) -> str:
    return "database.sqlite.zst" if database["kind"] == "sqlite" else "database.pgdump"  # pg_dump compresses itself


def _with_progress(lines: Iterator[dict[str, Any]], progress: BackupProgress) -> Iterator[dict[str, Any]]:
    entries = 0
    for line in lines:
        if "id" in line:
            entries += 1
            if entries % 100 == 0:
                progress.update(entries, None)
        yield line
