"""`audit.log`: one JSON object a line for every change an operator makes and for every read of mail.

Each line has the hash of the line before.

Who changes, removes or inserts a line breaks the chain there (`verify_audit`). Cutting lines off the end leaves a whole
chain: the hash of the last line, written down elsewhere, shows that.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from email_ingestion.atomic_files import file_lock, unreadable, unwritable
from email_ingestion.errors import ConfigurationError, OperationFailed

NAME = "audit.log"
PREVIOUS = "previous_sha256"
TAIL_BYTES = 64 * 1024


def write_audit(log_dir: Path, record: Mapping[str, Any]) -> None:
    """Append a record and fsync it. Raises ConfigurationError when the file cannot be written, DiskFull without room.

    A line that cannot be written whole leaves nothing behind: half a line would break the chain for ever.
    """
    path = (log_dir / NAME).resolve()  # in a container a link to the volume of the data: the folder may be read-only
    with file_lock(path):  # two processes must not follow the same line
        try:
            last, is_whole = _last_line(log_dir)
            chained = {"timestamp": datetime.now(UTC).isoformat(), **record, PREVIOUS: _hash(last) if last else ""}
            line = ("" if is_whole else "\n") + json.dumps(chained) + "\n"
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                _append(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unwritable(path, error) from error


def _append(descriptor: int, line: bytes) -> None:
    """Write the whole line to the disk, or leave the file as it was. Raises OSError."""
    size = os.fstat(descriptor).st_size
    try:
        rest = line
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


@contextmanager
def audited_action(
    log_dir: Path, record: Mapping[str, Any], unwritten: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Write the start and the end of an action; `record` says who does what.

    Yields a record; its items are written with the end. There are two lines because a process that is killed in the
    middle has done something too. Raises ConfigurationError before the block runs if the log cannot be written; for an
    action that must not wait for that, `unwritten` is a list, which takes the reason instead.
    """

    def write(result: str, **details: Any) -> None:
        try:
            write_audit(log_dir, {**record, **details, "result": result})
        except ConfigurationError as error:
            if unwritten is None:
                raise
            unwritten.append(str(error))

    write("started")
    outcome: dict[str, Any] = {}
    try:
        yield outcome
    except BaseException as error:
        with suppress(ConfigurationError):  # the operator must read the first error
            write("failed", **outcome, error_type=type(error).__name__)
        raise
    write("done", **outcome)


@dataclass(slots=True)
class AuditChain:
    """What reading the whole audit log found; `breaks` name file and line, `head` is the hash of the last line."""

    lines: int = 0
    unchained: int = 0  # of earlier releases, before the first line with a hash
    head: str = ""
    breaks: list[str] = field(default_factory=list)
    lost_head: bool = False  # an earlier head was asked for, and no line has that hash


def verify_audit(log_dir: Path, earlier_head: str = "") -> AuditChain:
    """Read every line of the log and of its rotated files, oldest first, and compare each with the hash after it.

    `earlier_head` is the hash of the last line at an earlier time.

    Raises OperationFailed when there is no audit log, or one of its files cannot be read.
    """
    files = audit_files(log_dir)
    if not files:
        raise OperationFailed(f"there is no {NAME} in {log_dir}: nothing was ever ordered here, or it was removed")
    chain = AuditChain(lost_head=bool(earlier_head))
    for path in files:
        for number, line in enumerate(_lines(path), start=1):
            _follow(chain, line, f"{path} line {number}")
            chain.lost_head = chain.lost_head and chain.head != earlier_head
    return chain


def read_audit(log_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of the log and of its rotated files, oldest first; lines that are no JSON object are left out.

    Raises OperationFailed when a file cannot be read.
    """
    for path in audit_files(log_dir):
        for line in _lines(path):
            record = parse_audit(line)
            if record is not None:
                yield record


def audit_files(log_dir: Path) -> list[Path]:
    """Return the log and its rotated files as logrotate names them, by the time of their first line.

    Raises OperationFailed when the folder or one of them cannot be read.
    """
    try:
        names = os.listdir(log_dir)  # `glob` finds nothing in a folder that it may not read
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(log_dir, error) from error
    paths = (log_dir / name for name in names if name.startswith(NAME))
    written = (path for path in paths if path.exists())  # not so a link before the first line
    return sorted(written, key=_first_timestamp)


def _follow(chain: AuditChain, line: bytes, place: str) -> None:
    record = parse_audit(line)
    chain.lines += 1
    if record is None:
        chain.breaks.append(f"{place} cannot be read")
    elif PREVIOUS not in record:
        if chain.lines - 1 == chain.unchained:
            chain.unchained += 1
        else:
            chain.breaks.append(f"{place} has no hash of the line before")
    elif record[PREVIOUS] != chain.head and (chain.head or chain.lines > 1):
        chain.breaks.append(f"{place} does not follow the line before: lines were changed, removed or inserted there")
    chain.head = _hash(line)


def parse_audit(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None when it is no JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from (line.rstrip(b"\n") for line in file)
    except (OSError, EOFError) as error:
        raise OperationFailed(f"cannot read {path}: {error}") from error


def _first_timestamp(path: Path) -> str:
    record = parse_audit(next(_lines(path), b""))
    return str(record.get("timestamp", "")) if record else "~"  # an empty file is the newest


def _last_line(log_dir: Path) -> tuple[bytes, bool]:
    """Return the last line, and whether it ends; where the log is empty, that of the newest rotated file."""
    path = log_dir / NAME
    if path.exists() and (tail := _tail(path)):
        return tail.rstrip(b"\n").rpartition(b"\n")[2], tail.endswith(b"\n")
    rotated = [each for each in audit_files(log_dir) if each != path]
    last = b""
    for line in _lines(rotated[-1]) if rotated else ():
        last = line
    return last, True


def _tail(path: Path) -> bytes:
    """Return the end of a file, with at least its last line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        wanted = TAIL_BYTES
        while True:
            file.seek(max(0, size - wanted))
            tail = file.read()
            if wanted >= size or b"\n" in tail.rstrip(b"\n"):
                return tail
            wanted *= 4


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
