"""The threads that call a sink: one for whole batches, or several with a message each; they decide nothing."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from email_ingestion.background import start_thread
from email_ingestion.breaker import Breaker
from email_ingestion.errors import EmailIngestionError, PermanentError, SinkFailed, SinkThrottled, SinkUnavailable
from email_ingestion.records import SinkMessage
from email_ingestion.sinks import Sink

Result = tuple[Sequence[SinkMessage], EmailIngestionError | None]


@dataclass(frozen=True, slots=True)
class RunningCall:
    """A call that has not returned; `since` in Unix seconds, `seconds` it has lasted."""

    email_ids: tuple[str, ...]
    since: float
    seconds: float


class SinkExecutor:
    """Used by a single thread, which submits messages and reads results; any thread may call `revoke`.

    Its threads are daemons: a sink that hangs must not keep the process.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        breaker: Breaker,
        is_held: Callable[[Collection[str]], bool],
        on_error: Callable[[Exception], None],
    ) -> None:
        """`is_held`, asked right before each call, says whether the messages are still this worker's to hand over.

        `on_error` gets the reason why a thread cannot be started yet, and failures of our own.
        """
        self._is_held = is_held
        self._on_error = on_error
        self._name = name
        self._sink = sink
        self._breaker = breaker
        parallel = getattr(sink, "parallel", 0)
        self._singly = parallel > 0
        self._stopped = threading.Event()
        self._throttled = threading.Event()  # the sink asked for a pause since the last `submit`
        self._tasks: queue.SimpleQueue[Sequence[SinkMessage] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._running: dict[int, tuple[tuple[str, ...], float]] = {}  # by thread: messages, and since when, monotonic
        self._revoked: set[str] = set()
        self.outstanding = 0  # results that are still to be read
        make = partial(threading.Thread, target=self._work, daemon=True)
        self._threads = [
            start_thread(partial(make, name=f"sink {name} {number}"), on_error, self._stopped.is_set)
            for number in range(1, max(1, parallel) + 1)
        ]

    def submit(self, messages: Sequence[SinkMessage], *, singly: bool = False) -> None:
        """Have messages delivered; `outstanding` tells how many results there will be.

        When the sink asks for a pause, or the claim is lost, those that have not begun have an empty sequence as their
        result.
        """
        self._throttled.clear()
        chunks = [[message] for message in messages] if singly or self._singly else [messages] if messages else []
        self.outstanding += len(chunks)
        for chunk in chunks:
            self._tasks.put(chunk)

    def withdraw(self) -> list[Sequence[SinkMessage]]:
        """Take back the chunks that have not begun; there will be no results of them."""
        chunks: list[Sequence[SinkMessage]] = []
        while True:
            try:
                chunk = self._tasks.get_nowait()
            except queue.Empty:
                return chunks
            if chunk is not None:
                chunks.append(chunk)
                self.outstanding -= 1

    def next_result(self, seconds: float) -> Result | None:
        """Return the next result, None when there is none within that time."""
        try:
            result = self._results.get(timeout=seconds)
        except queue.Empty:
            return None
        self.outstanding -= 1
        return result

    def running(self) -> list[RunningCall]:
        """Return the calls that have not returned, the oldest first."""
        now, wall = time.monotonic(), time.time()
        calls = sorted(self._running.copy().values(), key=lambda call: call[1])
        return [RunningCall(ids, wall - (now - started), now - started) for ids, started in calls]

    def revoke(self, email_id: str) -> None:
        """Do not begin the call with this message; end it if it runs and the sink can end it."""
        self._revoked.add(email_id)
        interrupt = getattr(self._sink, "interrupt", None)
        if interrupt:
            interrupt(email_id)

    def forget_revoked(self, email_id: str) -> None:
        """Allow a message again: what was revoked has been decided on."""
        self._revoked.discard(email_id)

    def stop(self) -> None:
        """Start no further delivery: the result of a submitted chunk that has not begun is an empty sequence."""
        self._stopped.set()

    def close(self) -> None:
        """Let the threads end after their present delivery."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (chunk := self._tasks.get()) is not None:
            try:
                result = self._handle(chunk)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the result would wait for ever
                self._on_error(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))
                why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
                result = (chunk, SinkUnavailable(f"nothing could be handed over: {why}"))
            self._results.put(result)

    def _handle(self, chunk: Sequence[SinkMessage]) -> Result:
        held = self._is_held([message.email.email_id for message in chunk])
        if not held or self._stopped.is_set() or self._throttled.is_set():
            return ((), None)
        error = self._deliver(chunk)
        if isinstance(error, SinkThrottled):
            self._throttled.set()
        return (chunk, error)

    def _deliver(self, chunk: Sequence[SinkMessage]) -> EmailIngestionError | None:
        email_ids = tuple(message.email.email_id for message in chunk)
        if len(email_ids) == 1 and email_ids[0] in self._revoked:
            return PermanentError("revoked by an operator")
        thread = threading.get_ident()
        self._running[thread] = (email_ids, time.monotonic())
        try:
            self._breaker.run(lambda: self._call_sink(chunk))
        except EmailIngestionError as error:
            return error
        finally:
            del self._running[thread]
        return None

    def _call_sink(self, chunk: Sequence[SinkMessage]) -> None:
        try:
            self._sink.deliver(chunk)
        except EmailIngestionError:
            raise
        except BaseException as error:  # sys.exit() in a sink must end no thread
            raise SinkFailed(f"sink {self._name} failed: {type(error).__name__}") from error
