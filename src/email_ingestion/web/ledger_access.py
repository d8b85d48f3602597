"""The ledger and the blob store of the web process: opened when they are first needed, asked with little patience.

Nothing that is asked may keep a page waiting: who gives the answer works in a thread, and is left alone when it takes
longer than the caller may wait. The threads are few, so that a database which answers nobody costs no more than those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from email_ingestion.blobs import BlobStore, open_blobs
from email_ingestion.errors import SinkUnavailable
from email_ingestion.ledger.store import Ledger, open_impatient_ledger
from email_ingestion.settings import Settings
from email_ingestion.web.api_errors import WebError

Answer = TypeVar("Answer")
QUICK_SECONDS = 0.8  # for what a healthy database answers at once: the rest of a second is for the page itself
SEARCH_SECONDS = 10.0  # for a search that looks into every message
COUNT_SECONDS = 0.3  # for counting what a search finds: then it is more than what was counted
THREADS = 32


class LedgerAccess:
    """Opens the ledger once; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None
        self._blobs: BlobStore | None = None
        self._threads: anyio.CapacityLimiter | None = None

    @property
    def ledger(self) -> Ledger:
        """The ledger. Raises SinkUnavailable when it cannot be opened now, ConfigurationError when never."""
        if self._ledger is None:
            if not self._lock.acquire(timeout=QUICK_SECONDS):
                raise SinkUnavailable("the database is being opened, and does not answer")
            try:
                if self._ledger is None:
                    self._ledger = open_impatient_ledger(self._settings.database_url)
            finally:
                self._lock.release()
        return self._ledger

    @property
    def blobs(self) -> BlobStore:
        """The blob store."""
        if self._blobs is None:
            self._blobs = open_blobs(self._settings.blob_url)
        return self._blobs

    async def ask(self, question: Callable[[Ledger], Answer], seconds: float = QUICK_SECONDS) -> Answer:
        """Return what `question` says of the ledger. Raises WebError 503 when it does not say it within `seconds`."""
        return await self.within(seconds, lambda: question(self.ledger), "the database")

    async def within(self, seconds: float, function: Callable[[], Answer], whose: str) -> Answer:
        """Call `function` in a thread. Raises WebError 503, which names `whose` answer is missing, after `seconds`."""
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(THREADS)
        try:
            with anyio.fail_after(seconds):
                return await anyio.to_thread.run_sync(partial(function), abandon_on_cancel=True, limiter=self._threads)
        except TimeoutError as error:
            raise WebError(503, f"{whose} has not answered within {seconds:g} s") from error

    def close(self) -> None:
        """Close the connections."""
        if self._ledger is not None:
            self._ledger.close()
