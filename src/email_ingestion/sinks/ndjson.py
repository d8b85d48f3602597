"""The sink that writes each message as a line of JSON, to standard output or a file, for log shippers and the like."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from email_ingestion.atomic_files import atomic_write, file_lock, sync_directory
from email_ingestion.email_json import CHANGE_SCHEMA, as_json, change_record, missed_record
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.records import ChangeEvent, ChangeKind, SinkMessage

if TYPE_CHECKING:
    from email_ingestion.settings import Settings

_BLOCK_BYTES = 65_536


def open_sink(settings: Settings, path: str = "-") -> StdoutSink | FileSink:
    """Open `ndjson`, standard output, or `ndjson:FILE`; raises ConfigurationError when the file cannot be written."""
    if path == "-":
        return StdoutSink(settings.blob_threshold_bytes)
    sink = FileSink(Path(path), settings.blob_threshold_bytes)
    try:
        sink.ping()
    except SinkUnavailable as error:
        raise ConfigurationError(f"SINKS: {error}") from error
    return sink


class StdoutSink:
    """Writes to standard output; the log goes to standard error."""

    name = "ndjson"

    def __init__(self, max_attachment_bytes: int) -> None:
        self._max_attachment_bytes = max_attachment_bytes  # bytes of an attachment that still travels along

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Write the lines and flush them."""
        self._write(_lines(batch, self._max_attachment_bytes))

    def tell_changes(self, events: Sequence[ChangeEvent]) -> None:
        """Write a line for each change."""
        self._write(_json_lines(map(change_record, events)))

    def tell_missed(self, start_from: int) -> None:
        """Write a line that says so."""
        self._write(_json_lines([missed_record(start_from)]))

    def _write(self, lines: bytes) -> None:
        try:
            sys.stdout.buffer.write(lines)
            sys.stdout.buffer.flush()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise SinkUnavailable(f"standard output does not work: {error}") from error

    def ping(self) -> None:
        """Do nothing: only a delivery shows whether standard output works."""


class FileSink:
    """Appends to a file. It is opened for each batch, so that it may be rotated, and several workers may share it."""

    name = "ndjson"

    def __init__(self, path: Path, max_attachment_bytes: int) -> None:
        self._path = path
        self._max_attachment_bytes = max_attachment_bytes

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Append all lines of the batch and sync them; on an error none is kept."""
        self._append_locked(_lines(batch, self._max_attachment_bytes))

    def tell_changes(self, events: Sequence[ChangeEvent]) -> None:
        """Append a line for each change, as `deliver` does."""
        self._append_locked(_json_lines(map(change_record, events)))

    def tell_missed(self, start_from: int) -> None:
        """Append a line that says so."""
        self._append_locked(_json_lines([missed_record(start_from)]))

    def _append_locked(self, lines: bytes) -> None:
        try:
            with file_lock(self._path):
                self._append(lines)
        except (OSError, ConfigurationError) as error:
            raise self._unavailable(error) from error

    def ping(self) -> None:
        """Create the file if necessary and open it for writing."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        except OSError as error:
            raise self._unavailable(error) from error

    def erase_lines(self, is_erased: Callable[[str], bool]) -> int:
        """Write the file anew without the lines of erased messages; return how many. A reader must open it again."""
        removed = 0
        try:
            with file_lock(self._path):
                if not self._path.exists():
                    return 0
                with self._path.open("rb") as lines:
                    removed = sum(_is_erased(line, is_erased) for line in lines)
                    if removed:
                        lines.seek(0)
                        with atomic_write(self._path) as kept:
                            kept.writelines(line for line in lines if not _is_erased(line, is_erased))
        except (OSError, ConfigurationError) as error:
            raise self._unavailable(error) from error
        return removed

    def _append(self, lines: bytes) -> None:
        is_new = not self._path.exists()
        with open(os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as file:
            end = _end_of_lines(file)
            file.truncate(end)  # remove the incomplete line of a killed worker: its batch comes again
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
        if is_new:
            sync_directory(self._path.parent)

    def _unavailable(self, error: Exception) -> SinkUnavailable:
        return SinkUnavailable(f"the file {self._path} cannot be written: {getattr(error, 'strerror', error)}")


def _lines(batch: Sequence[SinkMessage], max_attachment_bytes: int) -> bytes:
    return _json_lines(as_json(message.email, max_attachment_bytes) for message in batch)


def _json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _is_erased(line: bytes, is_erased: Callable[[str], bool]) -> bool:
    try:
        record = json.loads(line)
        is_erasure = (
            record.get("schema") == CHANGE_SCHEMA and record.get("kind") == ChangeKind.ERASED
        )  # what readers need
        return not is_erasure and is_erased(str(record["email_id"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False  # not a line of ours


def _end_of_lines(file: BinaryIO) -> int:
    end = file.seek(0, os.SEEK_END)
    while end:
        start = file.seek(max(0, end - _BLOCK_BYTES))
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
