"""The file of tombstones: what was erased, by hashes, outside of database and Redis, so that neither brings it back.

    {"timestamp": …, "run": "20260131T080000Z-1f0c", "tombstones": ["…", …], "previous_sha256": "…"}

A line for each batch, only ever appended, each with the hash of the line before as in `audit.log`. Every backup has a
copy; a restore takes the union of that and of the file that is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from email_ingestion.atomic_files import file_lock, sync_directory, unwritable, write_private
from email_ingestion.errors import ConfigurationError, OperationFailed

NAME = "tombstones.jsonl"
REAPPLY = "restore-unfinished"
UNFINISHED = "unfinished-"  # and the hash of an order that began
PREVIOUS = "previous_sha256"
PER_LINE = 1_000  # tombstones that came from elsewhere


@dataclass(slots=True)
class TombstoneRecord:
    """What a file of tombstones holds; `breaks` names the lines that were changed, removed or inserted."""

    tombstones: set[str] = field(default_factory=set)
    lines: int = 0
    head: str = ""  # the hash of the last line
    breaks: list[str] = field(default_factory=list)


class TombstoneFile:
    """The file in one directory; processes may share it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self._marker = directory / REAPPLY

    @property
    def reapply_pending(self) -> bool:
        """Whether a restore began and has not erased again what had been erased."""
        return self._marker.exists()

    def expect_reapply(self) -> None:
        """Mark that a restore begins; no process starts until `reapplied` is called.

        Raises ConfigurationError when the directory cannot be written.
        """
        write_private(self._marker, "a restore has not erased again what had been erased\n")

    def reapplied(self) -> None:
        """Remove the mark: all that was erased was erased again."""
        self._marker.unlink(missing_ok=True)

    def begin(self, order: Mapping[str, Any]) -> str:
        """Mark that an erasure begins; return its name, the same when the order is given again.

        Raises ConfigurationError when the directory cannot be written.
        """
        conditions = {key: value for key, value in order.items() if key != "before"}  # which is another each time
        name = hashlib.sha256(json.dumps([conditions, "before" in order], sort_keys=True).encode()).hexdigest()[:16]
        write_private(self.path.with_name(f"{UNFINISHED}{name}"), json.dumps({"order": dict(order)}) + "\n")
        return name

    def end(self, name: str) -> None:
        """Remove the mark of an erasure: nothing of what was found is left."""
        self.path.with_name(f"{UNFINISHED}{name}").unlink(missing_ok=True)

    def unfinished(self) -> list[Path]:
        """Return the marks of erasures that did not come to their end, or could not erase everything, and restores."""
        marks = sorted(self.path.parent.glob(f"{UNFINISHED}*"))
        return [*marks, self._marker] if self.reapply_pending else marks

    def append(self, tombstones: Collection[str], run: str) -> None:
        """Append tombstones and sync them to the disk. Raises ConfigurationError when the file cannot be written."""
        with file_lock(self.path):
            try:
                self._append(sorted(tombstones), run)
            except OSError as error:
                found = unwritable(self.path, error, "make ERASURE_DIR writable")
                raise type(found)(f"{found}: nothing was erased") from error

    def add_missing(self, tombstones: Collection[str], run: str) -> int:
        """Append those that the file does not have; return how many."""
        missing = sorted(set(tombstones) - self.read().tombstones)
        for start in range(0, len(missing), PER_LINE):
            self.append(missing[start : start + PER_LINE], run)
        return len(missing)

    def copy_to(self, path: Path) -> None:
        """Write a copy of the whole lines to a new file; nothing where nothing was ever erased."""
        lines = b"".join(_lines(self.path))
        if lines:
            path.write_bytes(lines)

    def read(self) -> TombstoneRecord:
        """Read all of it; what can be read counts, whatever else is damaged. Raises OperationFailed."""
        return read_tombstones(self.path)

    def _append(self, tombstones: list[str], run: str) -> None:
        is_new = not self.path.exists()
        with open(os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as file:
            # Nothing was erased for an incomplete line: its writer was killed before it went on.
            content = _Tail(file)
            file.truncate(content.end)
            record: dict[str, Any] = {"timestamp": datetime.now(UTC).isoformat(), "run": run, "tombstones": tombstones}
            record[PREVIOUS] = hashlib.sha256(content.last_line).hexdigest() if content.last_line else ""
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_directory(self.path.parent)


def refuse_unfinished_restore(directory: Path) -> None:
    """Raise ConfigurationError while a restore has not erased again what had been erased."""
    if TombstoneFile(directory).reapply_pending:
        raise ConfigurationError(
            "a restore ended before it erased again what had been erased: give it again, or email-ingestion erase "
            "--reapply"
        )


class _Tail:
    """The last whole line of a file, and where it ends."""

    def __init__(self, file: Any) -> None:
        size = file.seek(0, os.SEEK_END)
        wanted = 64 * 1024
        while True:
            start = max(0, size - wanted)
            file.seek(start)
            lines = file.read()
            end = lines.rfind(b"\n") + 1
            before = lines.rfind(b"\n", 0, end - 1) + 1 if end else 0
            if start == 0 or (end and before):
                break
            wanted *= 4
        self.end = start + end
        self.last_line: bytes = lines[before : end - 1] if end else b""


def read_tombstones(path: Path) -> TombstoneRecord:
    """Read a file of tombstones; none is there where nothing was ever erased. Raises OperationFailed."""
    found = TombstoneRecord()
    try:
        for number, line in enumerate(_lines(path), start=1):
            _follow(found, line, f"{path} line {number}")
    except OSError as error:
        raise OperationFailed(f"cannot read {path}: {error.strerror}; nothing was restored or erased again") from error
    return found


def _lines(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _follow(found: TombstoneRecord, line: bytes, place: str) -> None:
    found.lines += 1
    line = line.rstrip(b"\n")
    try:
        record = json.loads(line)
        tombstones = {str(each) for each in record["tombstones"]}
    except (ValueError, KeyError, TypeError):
        found.breaks.append(f"{place} cannot be read")
    else:
        found.tombstones |= tombstones
        if record.get(PREVIOUS) != found.head:
            found.breaks.append(f"{place} does not follow the line before: lines were changed, removed or inserted")
    found.head = hashlib.sha256(line).hexdigest()
