"""Reads the log files of this machine's processes, rotated ones too; `ops.logs` writes them."""

from __future__ import annotations

import gzip
import heapq
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

from email_ingestion.atomic_files import unreadable

Record = dict[str, Any]
STEMS = ("producer", "worker", "web")
FOLLOW_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Selects log records by time, level and component."""

    since: datetime | None = None
    level: str = "DEBUG"
    component: str | None = None

    def matches(self, record: Record) -> bool:
        """Return whether a record is selected."""
        return (
            _number(record.get("level")) >= _number(self.level)
            and self.component in {None, record.get("component")}
            and (self.since is None or _when(record) >= self.since)
        )


def read_records(log_dir: Path, log_filter: LogFilter, gaps: list[str] | None = None) -> Iterator[Record]:
    """Yield the records written so far, by time; skip other lines, such as a native crash leaves.

    `gaps` gets a sentence for everything that could not be read, with the place to look instead; it is complete when
    the last record was yielded.
    """
    gaps = [] if gaps is None else gaps
    gaps += unwritten_logs(log_dir)
    return _merged({path: _size(path) for path in log_files(log_dir)}, log_filter, gaps)


def logs_elsewhere(log_dir: Path) -> list[Path]:
    """Return the logs that are links to a stream, as in a container."""
    return [path for stem in STEMS if (path := log_dir / f"{stem}.log").is_symlink() and not path.is_file()]


def unwritten_logs(log_dir: Path) -> Iterator[str]:
    """Yield where the log is when it is not in files of this folder."""
    streams = logs_elsewhere(log_dir)
    for path in streams:
        name = path.stem
        yield (
            f"{path} is the standard error of that process: see `docker compose logs {name}`,"
            f" `kubectl logs --all-containers -l app={name}`"
        )
    if not streams and not log_files(log_dir):
        try:
            next(log_dir.iterdir(), None)
            problem = "has no log of a producer or worker"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        yield (
            f"{log_dir} {problem}: perhaps nothing ran here yet, or LOG_DIR is another folder;"
            " under systemd see also `journalctl -u 'email-ingestion-*'`"
        )


def unread_logs(log_dir: Path) -> Iterator[str]:
    """Yield what cannot be read of the logs that are written now, with the place to look instead."""
    yield from unwritten_logs(log_dir)
    for path in log_files(log_dir):
        try:
            if path.suffix == ".log":
                path.open("rb").close()
        except PermissionError as error:
            yield str(unreadable(path, error))


def follow_records(log_dir: Path, log_filter: LogFilter) -> Iterator[Record]:
    """Yield the same, then new records for ever; rotated and new files are followed as well."""
    sizes = {path: _size(path) for path in log_files(log_dir)}
    tails = {path: _Tail(path, size) for path, size in sizes.items() if path.suffix == ".log"}
    yield from _merged(sizes, log_filter, [])
    while True:
        for path in log_files(log_dir):
            if path.suffix == ".log" and path not in tails:
                tails[path] = _Tail(path, 0)
        for tail in tails.values():
            yield from filter(log_filter.matches, tail.more())
        time.sleep(FOLLOW_SECONDS)


@dataclass
class _Tail:
    path: Path
    offset: int
    inode: int | None = None
    rest: bytes = field(default=b"")

    def more(self) -> Iterator[Record]:
        """Yield the records appended since the last call."""
        with suppress(OSError), self.path.open("rb") as file:
            found = os.fstat(file.fileno())
            if self.inode not in {None, found.st_ino} or found.st_size < self.offset:
                self.offset, self.rest = 0, b""
            self.inode = found.st_ino
            file.seek(self.offset)
            data = self.rest + file.read()
            self.offset = file.tell()
            *lines, self.rest = data.split(b"\n")
            for line in lines:
                if record := _record(line):
                    yield record


def _merged(sizes: Mapping[Path, int], log_filter: LogFilter, gaps: list[str]) -> Iterator[Record]:
    since = log_filter.since.timestamp() if log_filter.since else 0.0
    files = [_read(path, size, gaps) for path, size in sizes.items() if _changed(path) >= since]
    merged = heapq.merge(*files, key=lambda record: str(record["timestamp"]))
    return (record for record in merged if log_filter.matches(record))


def log_files(log_dir: Path) -> list[Path]:
    """Return the log files: `worker.log`, and its rotated ones such as `worker.log.1`, `worker.log-20260131.gz`."""
    found = (path for stem in STEMS for path in log_dir.glob(f"{stem}*.log*"))
    return sorted(path for path in found if path.is_file())


def _read(path: Path, size: int, gaps: list[str]) -> Iterator[Record]:
    """Yield the records in the first `size` bytes of a file; `gaps` gets why the rest could not be read."""
    try:
        with closing(_open(path)) as file:
            for line in file:
                if path.suffix != ".gz" and file.tell() > size:
                    return
                if record := _record(line):
                    yield record
    except FileNotFoundError:
        return  # rotated away meanwhile: what it held is read under its other name
    except (OSError, EOFError, zlib.error) as error:
        gaps.append(f"{path} cannot be read to its end: {getattr(error, 'strerror', None) or error}")


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _record(line: bytes) -> Record | None:
    if not line.startswith(b"{"):
        return None
    with suppress(ValueError):
        found = json.loads(line)
        return found if isinstance(found, dict) and {"timestamp", "level", "event"} <= found.keys() else None
    return None


def _when(record: Record) -> datetime:
    try:
        found = datetime.fromisoformat(str(record["timestamp"]))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _number(level: Any) -> int:
    return logging.getLevelNamesMapping().get(str(level), logging.NOTSET)
