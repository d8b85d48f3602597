"""Dead letters, or the queue, as a file that outlives Redis: JSON lines, complete or missing, and verifiable.

    {"format": "email-ingestion dead letters", "version": 1, "exported_at": …, "filter": …}
    {"id": "1767225600000-0", "fields": {"account": "default", …}, "base64": {"raw": "KLUv/…"}}
    {"count": 1, "sha256": …}

A file of the queue has another `format`. `fields` has the fields that are text, `base64` the others; `raw` is the
RFC 822 message in zstd. The SHA-256 in the last line is that of all bytes before it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from email_ingestion.atomic_files import atomic_write, sync_directory
from email_ingestion.errors import OperationFailed
from email_ingestion.stream.dead_letters import message_identity
from email_ingestion.stream.entry_scan import StreamEntry

FORMAT = "email-ingestion dead letters"
VERSION = 1


@dataclass(frozen=True, slots=True)
class ExportFile:
    """The content of a file, as read back from the disk."""

    letters: dict[str, str | None]  # entry id → identity of its message, if it has one
    sha256: str  # hex digest of everything above the last line


def write_entries(
    path: Path,
    entries: Iterable[StreamEntry],
    origin: Mapping[str, Any],
    on_entry: Callable[[], None],
    *,
    form: str = FORMAT,
) -> None:
    """Write a new file, mode 0600, that is on the disk when this returns; calls `on_entry` after each entry.

    Raises OperationFailed when the file exists already or cannot be written; nothing is left then.
    """
    if path.exists():
        raise OperationFailed(f"{path} exists already: name another file")
    try:
        with atomic_write(path) as file:
            _write(file, entries, {"format": form, "version": VERSION, **origin}, on_entry)
        sync_directory(path.parent)
    except OSError as error:
        raise OperationFailed(f"cannot write {path}: {error.strerror}") from error


def _write(
    file: BinaryIO, entries: Iterable[StreamEntry], head: Mapping[str, Any], on_entry: Callable[[], None]
) -> None:
    digest, count = hashlib.sha256(), 0

    def put(record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        digest.update(line)
        file.write(line)

    put(head)
    for letter_id, fields in entries:
        put({"id": letter_id, **_as_json(fields)})
        count += 1
        on_entry()
    put({"count": count, "sha256": digest.hexdigest()})


def _as_json(fields: Mapping[bytes, bytes]) -> dict[str, dict[str, str]]:
    texts: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, value in fields.items():
        # A name that is not UTF-8 is from another program: the same error handler restores its bytes.
        key = name.decode("utf-8", "surrogateescape")
        try:
            texts[key] = value.decode()
        except UnicodeDecodeError:
            others[key] = base64.b64encode(value).decode()
    return {"fields": texts, "base64": others}


def verify_file(path: Path, *, form: str = FORMAT) -> ExportFile:
    """Return the content of a file; raises OperationFailed unless it is complete and unchanged."""
    try:
        head, letters, sha256, end = _read(path)
    except OSError as error:
        raise OperationFailed(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OperationFailed(f"{path} is damaged or no file of ours: {error}") from error
    if head.get("format") != form or head.get("version") != VERSION:
        raise OperationFailed(f"{path} is no file of {form!r}, version {VERSION}")
    if end != {"count": len(letters), "sha256": sha256}:
        raise OperationFailed(f"{path} is damaged: what is on the disk is not what was written")
    return ExportFile(letters, sha256)


def read_entries(path: Path) -> Iterator[StreamEntry]:
    """Yield the entries of a file that `verify_file` has accepted."""
    with path.open("rb") as file:
        next(file)
        for line in file:
            record = json.loads(line)
            if "id" in record:
                yield record["id"], _as_fields(record)


def _as_fields(record: Mapping[str, Any]) -> dict[bytes, bytes]:
    texts = {_name(name): value.encode() for name, value in record["fields"].items()}
    return texts | {_name(name): base64.b64decode(value) for name, value in record["base64"].items()}


def _name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str | None], str, Any]:
    digest, line = hashlib.sha256(), b""
    head: dict[str, Any] = {}
    letters: dict[str, str | None] = {}
    with path.open("rb") as file:
        for following in file:
            if line:
                digest.update(line)
                record = json.loads(line)
                if "id" in record:
                    letters[record["id"]] = message_identity(record["fields"])
                head = head or record
            line = following
    return head, letters, digest.hexdigest(), json.loads(line)
