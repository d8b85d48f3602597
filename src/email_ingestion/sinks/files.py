"""The sinks that write each message to a directory: as .eml with its record beside it, or as a Maildir."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from email_ingestion.atomic_files import atomic_write, sync_directory
from email_ingestion.email_json import as_json
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.records import Email, SinkMessage

if TYPE_CHECKING:
    from email_ingestion.settings import Settings


def open_files(settings: Settings, directory: str = "data/files") -> FilesSink:
    """Open `files:DIR`. Raises ConfigurationError when the directory cannot be created."""
    del settings
    return FilesSink(_make_directory(directory, "files"))


def open_maildir(settings: Settings, directory: str = "data/maildir") -> MaildirSink:
    """Open `maildir:DIR`. Raises ConfigurationError when it cannot be created."""
    del settings
    root = _make_directory(directory, "maildir")
    for folder in ("tmp", "new", "cur"):
        _make_directory(str(root / folder), "maildir")
    return MaildirSink(root)


def _make_directory(directory: str, kind: str) -> Path:
    path = Path(directory).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"SINKS: {kind}:{directory} cannot be made: {error.strerror}") from error
    return path


class FilesSink:
    """Writes `DIR/2026/01/31/<identity>.eml`, then `.json`; the directory is the day of arrival in UTC."""

    name = "files"

    def __init__(self, root: Path) -> None:
        self._root = root

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Write and sync the files; a repetition writes the same files again."""
        try:
            folders = {self._write(message) for message in batch}
            for folder in folders:
                for path in (folder, *folder.parents[:3]):
                    sync_directory(path)
        except OSError as error:
            raise _unavailable(self._root, error) from error

    def ping(self) -> None:
        """Write a block and remove it."""
        _probe(self._root)

    def _write(self, message: SinkMessage) -> Path:
        folder = self._root / f"{message.email.envelope.internaldate:%Y/%m/%d}"
        name = _file_name(message.email)
        with atomic_write(folder / f"{name}.eml") as file:
            file.write(message.raw)
        with atomic_write(folder / f"{name}.json") as file:
            file.write(json.dumps(as_json(message.email, max_attachment_bytes=-1), ensure_ascii=False).encode())
        return folder


class MaildirSink:
    """Writes a Maildir; a message that a mail program has moved to `cur` is not written to `new` again."""

    name = "maildir"

    def __init__(self, root: Path) -> None:
        self._root = root

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Write the messages that are not in `cur` to `new`."""
        try:
            read = {name.partition(":")[0] for name in os.listdir(self._root / "cur")}
            for message in batch:
                if _maildir_name(message.email) not in read:
                    self._write(message)
            sync_directory(self._root / "new")
        except OSError as error:
            raise _unavailable(self._root, error) from error

    def ping(self) -> None:
        """Write a block and remove it."""
        _probe(self._root / "tmp")

    def _write(self, message: SinkMessage) -> None:
        path = self._root / "new" / _maildir_name(message.email)
        with atomic_write(path, drafts=self._root / "tmp") as file:
            file.write(message.raw)


def _file_name(email: Email) -> str:
    return email.email_id.replace(":", "-")  # which no Windows takes, and Maildir uses itself


def _maildir_name(email: Email) -> str:
    return f"{int(email.envelope.internaldate.timestamp())}.{_file_name(email)}.email-ingestion"


def _probe(directory: Path) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".ping-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unavailable(directory, error) from error


def _unavailable(directory: Path, error: OSError) -> SinkUnavailable:
    return SinkUnavailable(f"the directory {directory} does not work: {error.strerror}")
