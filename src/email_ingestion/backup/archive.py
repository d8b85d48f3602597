"""One backup as one file: a tar that begins with its manifest, mode 0600, never half written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from email_ingestion import __version__
from email_ingestion.atomic_files import write_private
from email_ingestion.background import PeriodicThread
from email_ingestion.errors import OperationFailed
from email_ingestion.events import BackupFound, LoopFailed, Observe

FORMAT = "email-ingestion backup"
VERSION = 1
MANIFEST = "manifest.json"
PATTERN = "email-ingestion-*.tar"
CHUNK = 64 * 1024
MAX_READ = 64 * 1024  # bytes at once, of a header too: we write none longer than a block
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MONITOR_SECONDS = 60.0


# What the library raises for a file that is no tar, or half of one.
DAMAGED = (tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, OverflowError)


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file in the archive."""

    name: str
    bytes: int
    sha256: str


Count = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Text = Annotated[str, Field(max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _FileRecord(_Strict):
    name: Name
    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _RedisRecord(_Strict):
    server: Text
    dbsize: Count
    partitions: Annotated[int, Field(ge=1, le=64)] = 1
    key_count: Count
    stream_length: Count
    pending: Count
    dlq_depth: Count
    last_ids: dict[str, str]
    last_delivered_ids: dict[str, str]
    digest: Text


class _DatabaseRecord(_Strict):
    model_config = ConfigDict(strict=True, extra="forbid")

    kind: Literal["sqlite", "postgresql"]
    schema_: Annotated[Name, Field(alias="schema")]
    rows: dict[Name, Count]


class _Record(_Strict):
    """What a manifest must be; it may come from anywhere, and what lies behind counts on it."""

    made_by: Text
    created_at: Text
    redis: _RedisRecord
    database: _DatabaseRecord | None
    files: Annotated[list[_FileRecord], Field(max_length=10)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a backup."""

    created_at: datetime
    redis: dict[str, Any]  # see `Tally.summary`, and the server's version and DBSIZE
    database: dict[str, Any] | None  # kind, schema, rows by table
    files: tuple[ArchivedFile, ...]
    made_by: str = __version__

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON has it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "made_by": self.made_by,
            "created_at": self.created_at.isoformat(),
            "redis": self.redis,
            "database": self.database,
            "files": [asdict(member) for member in self.files],
        }


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup on the disk."""

    path: Path
    manifest: Manifest

    def as_dict(self) -> dict[str, Any]:
        """Return the backup as `--list --json` prints it."""
        return {"file": str(self.path), "bytes": self.path.stat().st_size, **self.manifest.as_dict()}


def archive_name(created_at: datetime) -> str:
    """Return the file name of a backup; the names sort by time."""
    return f"email-ingestion-{created_at:%Y%m%dT%H%M%S%fZ}.tar"


def describe_file(path: Path) -> ArchivedFile:
    """Return size and SHA-256 of a file."""
    with path.open("rb") as file:
        return ArchivedFile(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def write_archive(path: Path, manifest: Manifest, folder: Path) -> None:
    """Pack the manifest and the files it names, which lie in `folder`, and sync the archive to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            head = json.dumps(manifest.as_dict(), indent=2).encode()
            _add(tar, MANIFEST, len(head), manifest.created_at, io.BytesIO(head))
            for member in manifest.files:
                with (folder / member.name).open("rb") as content:
                    _add(tar, member.name, member.bytes, manifest.created_at, content)
        file.flush()
        os.fsync(file.fileno())


def _add(tar: tarfile.TarFile, name: str, size: int, at: datetime, content: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(at.timestamp())
    tar.addfile(info, content)


def write_manifest_file(path: Path, manifest: Manifest) -> None:
    """Write the manifest, with the archive's checksum, into a file of its own, for people and `sha256sum`."""
    whole = describe_file(path)
    record = {"file": whole.name, "bytes": whole.bytes, "sha256": whole.sha256, **manifest.as_dict()}
    write_private(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")


def read_archive(path: Path) -> Archive:
    """Open a backup by its manifest alone. Raises OperationFailed for a file that is no backup."""
    try:
        with _open_tar(path) as tar:
            return Archive(path, _parse_manifest(json.loads(_read_manifest(next(_members(tar), None), tar))))
    except OSError as error:
        raise OperationFailed(f"cannot read {path}: {error.strerror or error}") from error
    except (*DAMAGED, RecursionError) as error:
        raise OperationFailed(f"{path} is no backup, or a damaged one: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"in its manifest {'.'.join(map(repr, first['loc']))}: {first['msg'].lower()}"
    return str(error) or type(error).__name__


class _BoundedReads(io.BufferedReader):
    """A file of which nobody reads more than MAX_READ at once: a header of a tar may announce any number of bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes. Raises tarfile.ReadError for more than MAX_READ."""
        if size is None or not 0 <= size <= MAX_READ:
            raise tarfile.ReadError("it has a header that we do not write")
        return super().read(size)


@contextmanager
def _open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe in its place is not waited for
    with _BoundedReads(io.FileIO(descriptor)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        yield tar


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members one after the other; those before are forgotten, for there may be any number.

    Raises tarfile.ReadError for one that lies before its predecessor: `tarfile` would come by for ever.
    """
    behind = 0
    while (member := tar.next()) is not None:
        if member.size < 0 or member.offset_data <= behind:
            raise tarfile.ReadError(f"{member.name!r} lies where it cannot")
        behind = member.offset_data
        tar.members.clear()  # type: ignore[attr-defined]  # typeshed lacks it
        yield member


def _read_manifest(first: tarfile.TarInfo | None, tar: tarfile.TarFile) -> bytes:
    if first is None or first.name != MANIFEST:
        raise ValueError("it has no manifest, scripts/backup.py did not write it")
    if first.size > MAX_MANIFEST_BYTES:
        raise ValueError(f"its manifest has {first.size} bytes")
    return b"".join(_pieces(_open_member(tar, first)))


def _pieces(content: Any) -> Iterator[bytes]:
    while piece := content.read(CHUNK):
        yield piece


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    """Return the content of a plain file: a link or a sparse file may be far more than the archive holds."""
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None:
        raise tarfile.ReadError(f"{member.name!r} is no plain file")
    return content


def _parse_manifest(record: Any) -> Manifest:
    if record["format"] != FORMAT:
        raise ValueError(f"its format is {record['format']!r}")
    if not isinstance(record["version"], int) or record["version"] > VERSION:
        raise ValueError(f"it has version {record['version']!r}, this release reads up to {VERSION}: upgrade it")
    checked = _Record.model_validate(record)
    return Manifest(
        _time(checked.created_at),
        record["redis"],
        record["database"],
        tuple(ArchivedFile(**member.model_dump()) for member in checked.files),
        record["made_by"],
    )


def _time(written: str) -> datetime:
    time = datetime.fromisoformat(written)
    if time.tzinfo is None:
        raise ValueError("its time has no zone")
    return time.astimezone(UTC)


def unpack_archive(archive: Archive, folder: Path) -> None:
    """Write the files of a backup into `folder`. Raises OperationFailed for a file that differs from the manifest."""
    try:
        with _open_tar(archive.path) as tar:
            members = _members(tar)
            next(members, None)  # the manifest
            for member in archive.manifest.files:
                found = next(members, None)
                if found is None or (found.name, found.size) != (member.name, member.bytes):
                    raise tarfile.ReadError(f"{member.name} is missing or has changed")
                _write(folder / member.name, _open_member(tar, found))
            if next(members, None):
                raise tarfile.ReadError("it has more in it than its manifest says")
    except (*DAMAGED, OSError, RecursionError) as error:
        raise OperationFailed(f"{archive.path} is truncated or damaged and was not used: {error}") from error
    for member in archive.manifest.files:
        if describe_file(folder / member.name) != member:
            raise OperationFailed(f"{archive.path} is truncated or damaged and was not used: {member.name} has changed")


def _write(path: Path, content: Any) -> None:
    file: BinaryIO
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for piece in _pieces(content):
            file.write(piece)


def read_member(archive: Archive, name: str, folder: Path) -> Path | None:
    """Write one file of a backup into `folder` and return it; None when the backup does not have it, or is damaged."""
    member = next((each for each in archive.manifest.files if each.name == name), None)
    path = folder / f"{archive.path.stem}-{name}"
    if member is None:
        return None
    try:
        with _open_tar(archive.path) as tar:
            members = islice(_members(tar), 1 + len(archive.manifest.files))
            found = next((each for each in members if each.name == name), None)
            if found is None or found.size != member.bytes:
                return None
            _write(path, _open_member(tar, found))
    except (*DAMAGED, OSError, RecursionError):
        return None
    return path if describe_file(path).sha256 == member.sha256 else None


def list_archives(directory: Path) -> Iterator[Archive]:
    """Yield the backups in a directory, newest first by their names; skip unreadable files."""
    for path in sorted(directory.glob(PATTERN), reverse=True):
        with suppress(OperationFailed):
            yield read_archive(path)


def newest_backup_time(directory: Path) -> datetime | None:
    """Return the time of the newest backup. A file gets its name only after it was loaded and compared."""
    return next((archive.manifest.created_at for archive in list_archives(directory)), None)


def delete_archives(chosen: Sequence[Archive]) -> None:
    """Delete backups and the manifests beside them."""
    for archive in chosen:
        archive.path.unlink(missing_ok=True)
        archive.path.with_suffix(".json").unlink(missing_ok=True)


def backup_monitor(directory: Path, observe: Observe) -> PeriodicThread:
    """Return a thread that announces the newest backup: the directory may hang on a network, and no loop may wait."""

    def check() -> None:
        if created_at := newest_backup_time(directory):
            observe(BackupFound(created_at.timestamp()))

    def failed(error: Exception) -> None:
        observe(LoopFailed("backups", error, MONITOR_SECONDS))

    return PeriodicThread("backups", MONITOR_SECONDS, check, immediate=True, on_error=failed)
