"""The bytes of a message and its parser: batches are parsed in a thread beside the one that settles them.

What is away here, the blob store or the parser's process, is no fault of a message: it is raised for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeAlias, TypeVar

from email_ingestion.background import BackgroundThread
from email_ingestion.blobs import BlobStore
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    EmailIngestionError,
    ParserUnavailable,
    SinkUnavailable,
    ThreadUnavailable,
    TransientError,
)
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import Email, RawMessage
from email_ingestion.worker.slow_lane import BUDGET_SECONDS

T = TypeVar("T")
# Of one message: its email, the error of one whose bytes are missing, or None when it takes too long for the flow.
Parsed: TypeAlias = Email | EmailIngestionError | None


class ParseStage:
    """Parses messages in a thread of its own. For the thread of the worker; `interrupt` is for any."""

    def __init__(self, parser: IsolatedParser, blobs: BlobStore, breaker: Breaker) -> None:
        """`breaker` is that of the database, whose ping asks the blob store too."""
        self._parser = parser
        self._blobs = blobs
        self._breaker = breaker
        self._thread = BackgroundThread("parse")
        self._is_away = False

    def submit(self, messages: Sequence[RawMessage]) -> Future[list[Parsed]]:
        """Have messages parsed; ask `result` for what comes of it. Raises ParserUnavailable."""
        return self._in_thread(lambda: self._parse(messages))

    def result(self, parsed: Future[list[Parsed]]) -> list[Parsed]:
        """Return what became of each message.

        Raises ParserDied when one of them ended the parser, ParserUnavailable when it does not start, and
        SinkUnavailable when the blob store is away.
        """
        try:
            return parsed.result()
        except ParserUnavailable:
            self._is_away = True
            raise

    def ensure_ready(self) -> None:
        """Try the parser again if it was away. Raises ParserUnavailable as long as it parses nothing."""
        if self._is_away:
            self._in_thread(self._parser.check).result()
            self._is_away = False

    def interrupt(self) -> None:
        """End the parsing of what is parsed now; thread-safe."""
        self._parser.interrupt()

    def parse_slowly(self, message: RawMessage, parser: IsolatedParser) -> list[Parsed]:
        """Parse one message with another parser, however long it takes; for the thread of the slow lane."""
        raw = self._bytes_of(message)
        return [raw] if isinstance(raw, EmailIngestionError) else [*parser.parse([(message.envelope, raw)])]

    def _in_thread(self, job: Callable[[], T]) -> Future[T]:
        try:
            return self._thread.submit(job)
        except ThreadUnavailable as error:
            raise ParserUnavailable(f"the parser is not asked: {error}") from error

    def _parse(self, messages: Sequence[RawMessage]) -> list[Parsed]:
        found: list[bytes | EmailIngestionError] = [self._bytes_of(message) for message in messages]
        inputs = [
            (message.envelope, raw) for message, raw in zip(messages, found, strict=True) if isinstance(raw, bytes)
        ]
        errors = [raw if isinstance(raw, EmailIngestionError) else None for raw in found]
        del found
        emails = iter(self._parser.parse_within(BUDGET_SECONDS, inputs) if inputs else ())
        return [error or next(emails) for error in errors]

    def _bytes_of(self, message: RawMessage) -> bytes | EmailIngestionError:
        if message.raw is not None:
            return message.raw
        try:
            return self._blobs.get(message.raw_ref or "")
        except SinkUnavailable as error:
            self._count_blob_store_failure(error)
            raise
        except EmailIngestionError as error:
            return error

    def _count_blob_store_failure(self, error: SinkUnavailable) -> None:
        def fail() -> None:
            raise error

        with suppress(TransientError):
            self._breaker.run(fail)
