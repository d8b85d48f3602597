"""Reads what a sink beside the database has: files, a Maildir, lines of JSON, a Redis Stream; an entry a message.

Entries come in whatever order they lie in, and only their names and digests are kept. What is there and cannot be read
is named in `unreadable`: of a sink that has such a thing nobody can say that it is complete.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from errno import EINVAL
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import zstandard

from email_ingestion.email_json import is_change
from email_ingestion.errors import OperationFailed, SinkUnavailable
from email_ingestion.reconcile.record_digest import digest_of_record
from email_ingestion.stream.sink import StreamSink

_NAME = r"(?P<account>[a-z0-9][a-z0-9_-]{0,62})-(?P<value>gm-\d+|sha256-[0-9a-f]{64})"
_MAIL_FILE = re.compile(rf"{_NAME}\.(?P<kind>eml|json)", re.ASCII)
_MAILDIR_FILE = re.compile(rf"(?P<seconds>-?\d+)\.{_NAME}\.email-ingestion(?:[,;:!].*)?", re.ASCII)
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """A message that a sink has. `sha256` is that of its bytes and `record` that of its record, empty if not read."""

    email_id: str
    month: str  # of its arrival, as the sink has it
    sha256: str = ""
    record: str = ""


@dataclass
class SinkContents(ABC):
    """What one sink has. Errors of the whole of it are SinkUnavailable."""

    has_bytes: ClassVar[bool]  # entries have `sha256`
    has_records: ClassVar[bool]  # entries have `record`

    presence: bool = False  # identities only are read
    foreign: int = 0  # things there that no delivery of ours is
    unreadable: list[str] = field(default_factory=list)
    gone_is_missing: bool = True  # what is not there was lost; else readers take away what they have used

    @abstractmethod
    def entries(self) -> Iterator[KeptMessage]:
        """Yield every message that is there, as often as it is there."""

    def _note_links(self, folders: Iterable[Path]) -> bool:
        """Name those that are symbolic links, which no sink of ours follows; return whether there is one."""
        links = [f"{folder}: it is a symbolic link" for folder in folders if folder.is_symlink()]
        self.unreadable += links
        return bool(links)


@dataclass
class FolderContents(SinkContents):
    """Those of `files:DIR`: a message is there when its .eml and its .json are."""

    root: Path = Path()

    has_bytes = True
    has_records = True

    def entries(self) -> Iterator[KeptMessage]:
        """Yield them, a directory at a time."""
        _require_directory(self.root)
        for folder, folders, names in os.walk(self.root, onerror=self._note_error):
            self._note_links(Path(folder, each) for each in folders)
            mails: dict[str, set[str]] = {}
            for name in names:
                if name.startswith("."):  # a draft
                    continue
                match = _MAIL_FILE.fullmatch(name)
                if match is None:
                    self.foreign += 1
                    continue
                mails.setdefault(name.rpartition(".")[0], set()).add(match["kind"])
            for stem, kinds in mails.items():
                if "eml" in kinds:
                    yield from self._entry(Path(folder), stem, whole="json" in kinds)

    def _entry(self, folder: Path, stem: str, *, whole: bool) -> Iterator[KeptMessage]:
        month = "-".join(folder.parts[-3:-1])
        if self.presence:
            if whole:
                yield KeptMessage(_identity(stem), month)
            return
        try:
            sha256 = _sha256(folder / f"{stem}.eml")
            record = _record_in(folder / f"{stem}.json") if whole else "absent"
        except OSError as error:
            self.unreadable.append(f"{folder / stem}: {error.strerror}")
            return
        yield KeptMessage(_identity(stem), month, sha256, record)

    def _note_error(self, error: OSError) -> None:
        self.unreadable.append(f"{error.filename}: {error.strerror}")


@dataclass
class MaildirContents(SinkContents):
    """Those of `maildir:DIR`, in whatever folder of it a mail program has moved them to."""

    root: Path = Path()

    has_bytes = True
    has_records = False

    def entries(self) -> Iterator[KeptMessage]:
        """Yield them; `new` is listed before `cur`, for mail programs move mail that way."""
        _require_directory(self.root)
        folders = sorted(self.root.glob(".*/"))  # of Maildir++
        self._note_links(folders)
        for folder in (self.root, *(each for each in folders if not each.is_symlink())):
            for part in ("new", "cur"):
                yield from self._part(folder / part)

    def _part(self, folder: Path) -> Iterator[KeptMessage]:
        try:
            if self._note_links([folder]):
                return
            with os.scandir(folder) as names:
                for each in names:
                    if not each.name.startswith("."):
                        yield from self._entry(each)
        except FileNotFoundError as error:
            if folder.parent == self.root:
                raise SinkUnavailable(f"{folder} is not there: is its disk mounted?") from error
        except OSError as error:
            self.unreadable.append(f"{folder}: {error.strerror}")

    def _entry(self, file: os.DirEntry[str]) -> Iterator[KeptMessage]:
        match = _MAILDIR_FILE.fullmatch(file.name)
        if match is None:
            self.foreign += 1
            return
        try:
            sha256 = "" if self.presence else _sha256(Path(file.path))
        except FileNotFoundError:  # a mail program moved it in this moment: it is read where it is now
            renamed = self._find(file.name.partition(":")[0])
            if renamed is None:
                return
            sha256 = _sha256(renamed)
        except OSError as error:
            self.unreadable.append(f"{file.path}: {error.strerror}")
            return
        yield KeptMessage(_identity(f"{match['account']}-{match['value']}"), _month(match["seconds"]), sha256)

    def _find(self, name: str) -> Path | None:
        return next(self.root.glob(f"**/cur/{name}*"), None)


@dataclass
class LinesContents(SinkContents):
    """Those of `ndjson:FILE` and of the files it was rotated into: FILE.1, FILE-20260131.gz and the like."""

    path: Path = Path()

    has_bytes = False
    has_records = True

    def entries(self) -> Iterator[KeptMessage]:
        """Yield a line at a time, the longest of which is in memory."""
        files = [each for each in sorted(self.path.parent.glob(f"{_literal(self.path.name)}*")) if each.is_file()]
        files = [each for each in files if re.fullmatch(r"([.-].*)?", each.name[len(self.path.name) :])]
        if not files:
            raise SinkUnavailable(f"{self.path} is not there: is its disk mounted?")
        for file in files:
            try:
                with _open_any(file) as lines:
                    yield from self._read(lines)
            except (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
                self.unreadable.append(f"{file}: {getattr(error, 'strerror', None) or error}")

    def _read(self, lines: Iterable[bytes]) -> Iterator[KeptMessage]:
        for line in lines:
            found = _kept_record(line, presence=self.presence)
            if isinstance(found, KeptMessage):
                yield found
            elif found is None and line.strip() and line.endswith(b"\n"):  # else a worker is writing it
                self.foreign += 1


@dataclass
class StreamContents(SinkContents):
    """Those of `stream:KEY`. Members of a consumer group delete what they have used."""

    sink: StreamSink | None = None

    has_bytes = False
    has_records = True

    def entries(self) -> Iterator[KeptMessage]:
        """Yield the entries, the oldest first."""
        assert self.sink is not None  # noqa: S101 - a field with a default, because the class above has some
        self.gone_is_missing = not self.sink.has_groups()
        for record in self.sink.records():
            found = _kept_record(record, presence=self.presence)
            if isinstance(found, KeptMessage):
                yield found
            elif found is None:
                self.foreign += 1


def _open_any(path: Path) -> IO[bytes]:
    """Open a file that may have been compressed when it was rotated."""
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zstandard.open}
    lines: IO[bytes] = openers.get(path.suffix, open)(path, "rb")
    return lines


def _kept_record(text: bytes, *, presence: bool) -> KeptMessage | Literal["change"] | None:
    """Return a message, that it is a change of one, or None for what is not ours."""
    try:
        record = json.loads(text)
        if is_change(record):
            return "change"
        email_id, month = record["email_id"], str(record.get("internaldate"))[:7]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(email_id, str):
        return None
    return KeptMessage(email_id, month, record="" if presence else digest_of_record(record))


def _record_in(path: Path) -> str:
    try:
        with _open_file(path) as file:
            return digest_of_record(json.loads(file.read()))
    except (ValueError, RecursionError):
        return digest_of_record(None)


def _identity(stem: str) -> str:
    return ":".join(stem.rsplit("-", 2))  # an account may have a hyphen


def _open_file(path: Path) -> IO[bytes]:
    """Open a file itself: a link in its place may lead anywhere, and a pipe would be waited for without end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    file = open(descriptor, "rb")  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(EINVAL, "it is no file")
    return file


def _sha256(path: Path) -> str:
    with _open_file(path) as file:
        digest = hashlib.sha256()
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _month(seconds: str) -> str:
    try:
        return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m}"
    except (OverflowError, ValueError, OSError):
        return ""


def _literal(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _require_directory(root: Path) -> None:
    if not root.is_dir():
        raise SinkUnavailable(f"{root} is not there: is its disk mounted?")


def contents_of(name: str, open_stream: Callable[[str], StreamSink], *, presence: bool) -> SinkContents:
    """Return what the sink of this name in SINKS has. Raises OperationFailed for one that nobody can look into."""
    kind, _, target = name.partition(":")
    if kind == "files":
        return FolderContents(presence, root=Path(target or "data/files").absolute())
    if kind == "maildir":
        return MaildirContents(presence, root=Path(target or "data/maildir").absolute())
    if kind == "ndjson" and target not in {"", "-"}:
        return LinesContents(presence, path=Path(target).absolute())
    if kind == "stream":
        return StreamContents(presence, sink=open_stream(target))
    raise OperationFailed(
        f"nobody can look into the sink {name} from here: export its identities and compare them with "
        "`email-ingestion reconcile --against FILE`"
    )
