"""The threads that call a sink: one for whole batches, or several with a message each; they decide nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from email_ingestion.breaker import Breaker
from email_ingestion.errors import EmailIngestionError, SinkFailed
from email_ingestion.records import SinkMessage
from email_ingestion.sinks import Sink

Result = tuple[Sequence[SinkMessage], EmailIngestionError | None]


class SinkExecutor:
    """Used by a single thread, which submits messages and reads results.

    Its threads are daemons: a sink that hangs must not keep the process.
    """

    def __init__(self, name: str, sink: Sink, breaker: Breaker) -> None:
        self._name = name
        self._sink = sink
        self._breaker = breaker
        parallel = getattr(sink, "parallel", 0)
        self._singly = parallel > 0
        self._stopped = threading.Event()
        self._tasks: queue.SimpleQueue[Sequence[SinkMessage] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"sink {name} {number}", daemon=True)
            for number in range(1, max(1, parallel) + 1)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, messages: Sequence[SinkMessage], *, singly: bool = False) -> int:
        """Have messages delivered; return how many results there will be."""
        chunks = [[message] for message in messages] if singly or self._singly else [messages] if messages else []
        for chunk in chunks:
            self._tasks.put(chunk)
        return len(chunks)

    def next_result(self, seconds: float) -> Result | None:
        """Return the next result, None when there is none within that time."""
        try:
            return self._results.get(timeout=seconds)
        except queue.Empty:
            return None

    def stop(self) -> None:
        """Start no further delivery: the result of a submitted chunk that has not begun is an empty sequence."""
        self._stopped.set()

    def close(self) -> None:
        """Let the threads end after their present delivery."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (chunk := self._tasks.get()) is not None:
            self._results.put(((), None) if self._stopped.is_set() else (chunk, self._deliver(chunk)))

    def _deliver(self, chunk: Sequence[SinkMessage]) -> EmailIngestionError | None:
        try:
            self._breaker.run(lambda: self._call_sink(chunk))
        except EmailIngestionError as error:
            return error
        return None

    def _call_sink(self, chunk: Sequence[SinkMessage]) -> None:
        try:
            self._sink.deliver(chunk)
        except EmailIngestionError:
            raise
        except Exception as error:
            raise SinkFailed(f"sink {self._name} failed: {type(error).__name__}") from error
