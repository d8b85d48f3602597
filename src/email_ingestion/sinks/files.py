"""The sinks that write each message to a directory: as .eml with its record beside it, or as a Maildir.

Names are made of checked identities alone, and no symbolic link below the directory is followed: whoever could write
an identity into the database, or a link into the directory, does not choose what else is written, read or removed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from errno import ELOOP, ENOENT
from pathlib import Path
from typing import TYPE_CHECKING

from email_ingestion.atomic_files import DRAFT_CHARACTERS, atomic_write, sync_directory
from email_ingestion.email_json import as_json
from email_ingestion.errors import ConfigurationError, PermanentError, SinkUnavailable
from email_ingestion.identity import EMAIL_ID
from email_ingestion.ledger.model import ErasableMessage
from email_ingestion.records import Envelope, SinkMessage

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

    def erase(self, messages: Sequence[ErasableMessage]) -> int:
        """Remove the files of these messages, and what killed workers left of them; return of how many there were any.

        Raises SinkUnavailable.
        """
        found = 0
        try:
            _require(self._root)
            for message in _writable(messages):
                folder, name = self._folder(message.envelope), _file_name(message.email_id)
                drafts = [f".{whole[:DRAFT_CHARACTERS]}-*" for whole in (f"{name}.eml", f"{name}.json")]
                patterns = (f"{name}.eml", f"{name}.json", *drafts)
                found += _remove(path for pattern in patterns for path in folder.glob(pattern))
        except OSError as error:
            raise _unavailable(self._root, error) from error
        return found

    def ping(self) -> None:
        """Write a block and remove it."""
        _probe(self._root)

    def _folder(self, envelope: Envelope) -> Path:
        folder = self._root / f"{envelope.internaldate:%Y/%m/%d}"
        _refuse_links(*reversed(folder.parents[:2]), folder)
        return folder

    def _write(self, message: SinkMessage) -> Path:
        name = _file_name(message.email.email_id)
        folder = self._folder(message.email.envelope)
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
            _refuse_links(*_parts(self._root))
            read = {name.partition(":")[0] for name in os.listdir(self._root / "cur")}
            for message in batch:
                if _maildir_name(message.email.envelope) not in read:
                    self._write(message)
            sync_directory(self._root / "new")
        except OSError as error:
            raise _unavailable(self._root, error) from error

    def erase(self, messages: Sequence[ErasableMessage]) -> int:
        """Remove these messages, wherever in the Maildir a mail program has moved them; return how many there were.

        Raises SinkUnavailable.
        """
        wanted = {_maildir_name(message.envelope): 0 for message in _writable(messages)}
        drafts = tuple(f".{name[:DRAFT_CHARACTERS]}-" for name in wanted)
        try:
            _require(self._root)
            for folder in (self._root, *self._root.glob(".*/")):  # of Maildir++
                _refuse_links(*([] if folder == self._root else [folder]), *_parts(folder))
                for path in (each for part in _parts(folder) for each in part.glob("*")):
                    name = path.name.partition(":")[0]
                    if name in wanted or path.name.startswith(drafts):
                        path.unlink(missing_ok=True)
                        wanted[name] = 1
        except OSError as error:
            raise _unavailable(self._root, error) from error
        return sum(wanted.values())

    def ping(self) -> None:
        """Write a block and remove it."""
        _probe(self._root / "tmp")

    def _write(self, message: SinkMessage) -> None:
        path = self._root / "new" / _maildir_name(message.email.envelope)
        with atomic_write(path, drafts=self._root / "tmp") as file:
            file.write(message.raw)


def _file_name(email_id: str) -> str:
    """Return the name of a message. Raises PermanentError for an identity that no release makes."""
    if not EMAIL_ID.fullmatch(email_id):
        raise PermanentError("its identity in the database is none of ours, and no file can be named by it")
    return email_id.replace(":", "-")  # which no Windows takes, and Maildir uses itself


def _maildir_name(envelope: Envelope) -> str:
    return f"{int(envelope.internaldate.timestamp())}.{_file_name(envelope.email_id)}.email-ingestion"


def _parts(maildir: Path) -> list[Path]:
    return [maildir / part for part in ("new", "cur", "tmp")]


def _writable(messages: Sequence[ErasableMessage]) -> Iterable[ErasableMessage]:
    """Leave out the messages of which no file can be."""
    return (message for message in messages if EMAIL_ID.fullmatch(message.email_id))


def _refuse_links(*folders: Path) -> None:
    """Raise OSError for a symbolic link in the place of a folder of ours: it may lead anywhere."""
    for folder in folders:
        if folder.is_symlink():
            raise OSError(ELOOP, f"{folder} is a symbolic link, which is not followed; put a folder in its place")


def _require(root: Path) -> None:
    """Raise FileNotFoundError where the directory is gone: its disk may not be mounted."""
    if not root.is_dir():
        raise FileNotFoundError(ENOENT, "it is not there; is its disk mounted?")


def _remove(paths: Iterable[Path]) -> bool:
    """Delete files and sync their directories; return whether there were any."""
    folders = set()
    for path in paths:
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        sync_directory(folder)
    return bool(folders)


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
