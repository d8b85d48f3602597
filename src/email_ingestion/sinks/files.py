"""The sinks that put each message into a directory: as .eml with its record beside it, or as a Maildir."""

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
    """Open `files:DIR`; raises ConfigurationError when the directory cannot be made."""
    del settings
    return FilesSink(_made(directory, "files"))


def open_maildir(settings: Settings, directory: str = "data/maildir") -> MaildirSink:
    """Open `maildir:DIR`; raises ConfigurationError when it cannot be made."""
    del settings
    root = _made(directory, "maildir")
    for folder in ("tmp", "new", "cur"):
        _made(str(root / folder), "maildir")
    return MaildirSink(root)


def _made(directory: str, kind: str) -> Path:
    path = Path(directory).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"SINKS: {kind}:{directory} cannot be made: {error.strerror}") from error
    return path


class FilesSink:
    """See `Sink`: `DIR/2026/01/31/<identity>.eml`, and `.json` once the first is whole; by the day of arrival, UTC."""

    name = "files"

    def __init__(self, root: Path) -> None:
        self._root = root

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """See `Sink`; a repetition writes the same files again."""
        try:
            folders = {self._write(parcel) for parcel in batch}
            for folder in folders:
                for path in (folder, *folder.parents[:3]):
                    sync_directory(path)
        except OSError as error:
            raise _unavailable(self._root, error) from error

    def ping(self) -> None:
        """See `Sink`; writes a block and removes it."""
        _try(self._root)

    def _write(self, parcel: SinkMessage) -> Path:
        folder = self._root / f"{parcel.email.envelope.internaldate:%Y/%m/%d}"
        name = _file_name(parcel.email)
        with atomic_write(folder / f"{name}.eml") as file:
            file.write(parcel.raw)
        with atomic_write(folder / f"{name}.json") as file:
            file.write(json.dumps(as_json(parcel.email, max_attachment_bytes=-1), ensure_ascii=False).encode())
        return folder


class MaildirSink:
    """See `Sink`; a message that a mail program has moved to `cur` is not put into `new` again."""

    name = "maildir"

    def __init__(self, root: Path) -> None:
        self._root = root

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """See `Sink`."""
        try:
            read = {name.partition(":")[0] for name in os.listdir(self._root / "cur")}
            for parcel in batch:
                if _maildir_name(parcel.email) not in read:
                    self._write(parcel)
            sync_directory(self._root / "new")
        except OSError as error:
            raise _unavailable(self._root, error) from error

    def ping(self) -> None:
        """See `Sink`; writes a block and removes it."""
        _try(self._root / "tmp")

    def _write(self, parcel: SinkMessage) -> None:
        path = self._root / "new" / _maildir_name(parcel.email)
        with atomic_write(path, drafts=self._root / "tmp") as file:
            file.write(parcel.raw)


def _file_name(email: Email) -> str:
    return email.email_id.replace(":", "-")  # which no Windows takes, and Maildir uses itself


def _maildir_name(email: Email) -> str:
    return f"{int(email.envelope.internaldate.timestamp())}.{_file_name(email)}.email-ingestion"


def _try(directory: Path) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".ping-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unavailable(directory, error) from error


def _unavailable(directory: Path, error: OSError) -> SinkUnavailable:
    return SinkUnavailable(f"the directory {directory} does not work: {error.strerror}")
