"""A sink that appends one CSV row for each message: `SINKS=csv:/srv/mail/mail.csv`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from email_ingestion import ConfigurationError, Email, Reject, Sink, SinkMessage, SinkUnavailable

# A spreadsheet runs a cell that begins with one of these; some read full-width signs so too, and skip a tab before.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - they are meant


def open_sink(settings: object, target: str = "") -> Sink:
    """Open `csv:FILE`. The entry point in pyproject.toml names this function; it must not connect to anything."""
    del settings  # private: a sink is configured by its target, or by environment variables of its own
    if not target:
        raise ConfigurationError("SINKS: csv needs a file, such as csv:/srv/mail/mail.csv")
    return CsvSink(Path(target))


class CsvSink:
    """Appends rows. The file is opened for each batch, so that it may be rotated."""

    name = "csv"

    def __init__(self, path: Path) -> None:
        self._path = path

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Append the rows of the batch and sync them; after a failure the whole batch comes again."""
        rows = io.StringIO(newline="")
        csv.writer(rows).writerows(_row(message.email) for message in batch)
        try:
            with self._path.open("ab") as file:
                file.write(rows.getvalue().encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SinkUnavailable(f"{self._path} cannot be written: {error.strerror}") from error

    def ping(self) -> None:
        """Check that the file can be opened for writing."""
        try:
            self._path.open("ab").close()
        except OSError as error:
            raise SinkUnavailable(f"{self._path} cannot be written: {error.strerror}") from error


def _row(email: Email) -> list[str]:
    if email.from_ is None:
        raise Reject("it has no sender")  # a dead letter: a repetition would not help
    date = email.date or email.envelope.internaldate
    names = " ".join(attachment.filename or "" for attachment in email.attachments)
    return [email.email_id, date.isoformat(), *map(_plain, (email.from_.addr, email.subject, names))]


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
