"""Looks at things that may hang, for pages that must not: the look goes on in a thread, the page takes what is known.

A reading has a value only while it is fresh. What could not be looked at has none, and says why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from email_ingestion.background import start_now
from email_ingestion.errors import EmailIngestionError, ThreadUnavailable
from email_ingestion.ops.redaction import describe_unforeseen, redact

T = TypeVar("T")
FRESH_SECONDS = 15.0  # a value that is older is not shown as the present state


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What a look found; `value` is None where nothing is known now, and `problem` says why."""

    value: T | None
    problem: str
    at: float | None  # Unix seconds of the last look that found something
    failed: bool = False  # the look ended, with the problem; else its answer is still awaited


class Source(Generic[T]):
    """One thing that is looked at, in one thread at a time."""

    def __init__(self, name: str, look: Callable[[], T], max_age: float, *, patience: float = FRESH_SECONDS) -> None:
        """`max_age` is after how many seconds it is looked at again when somebody asks.

        What does not answer for `patience` seconds is not known, however fresh its last value is.
        """
        self.name = name
        self._look = look
        self._max_age = max_age
        self._patience = patience
        self._lock = threading.Lock()
        self._value: T | None = None
        self._at: float | None = None
        self._tick = -max(FRESH_SECONDS, max_age)  # monotonic seconds of the last success
        self._problem = ""
        self._ended = -1e9  # monotonic seconds of the last look's end
        self._started = 0.0
        self._under_way: threading.Event | None = None

    def get(self, wait: float = 0.0) -> Reading[T]:
        """Return what is known, after at most `wait` seconds for a look that is due."""
        done = self._start_if_due()
        if done is not None and wait > 0:
            done.wait(wait)
        with self._lock:
            now = time.monotonic()
            if self._problem:
                return Reading(None, self._problem, self._at, failed=True)
            waited = now - self._started if self._under_way else 0.0
            is_fresh = now - self._tick <= max(FRESH_SECONDS, self._max_age)
            if is_fresh and waited < self._patience and self._at is not None:
                return Reading(self._value, "", self._at)
            return Reading(None, f"{self.name} has not answered for {waited:.1f} s", self._at)

    def forget(self) -> None:
        """Look again at the next question: something was changed."""
        with self._lock:
            self._ended = -1e9

    def _start_if_due(self) -> threading.Event | None:
        with self._lock:
            if self._under_way is None and time.monotonic() - self._ended >= self._max_age:
                self._under_way = threading.Event()
                self._started = time.monotonic()
                make = partial(threading.Thread, name=f"look-{self.name}", daemon=True)
                try:
                    start_now(make(target=self._run, args=(self._under_way,)))
                except ThreadUnavailable as error:
                    self._problem, self._ended, self._under_way = str(error), self._started, None
            return self._under_way

    def _run(self, done: threading.Event) -> None:
        try:
            value, problem = self._look(), ""
        except EmailIngestionError as error:
            value, problem = None, redact(str(error))
        except Exception as error:  # noqa: BLE001 - what nobody foresaw is not known, and the next look may find it
            value, problem = None, f"an error that nobody foresaw: {describe_unforeseen(error)}"
        with self._lock:
            self._problem = problem
            self._ended = time.monotonic()
            if not problem:
                self._value, self._at, self._tick = value, time.time(), self._ended
            self._under_way = None
        done.set()


def wait_for(sources: list[Source[object]], seconds: float) -> None:
    """Let all sources look at once, and wait for them together."""
    deadline = time.monotonic() + seconds
    for source in sources:
        source.get()
    for source in sources:
        source.get(max(0.0, deadline - time.monotonic()))
