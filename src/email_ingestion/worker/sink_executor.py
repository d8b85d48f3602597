"""The threads that call a sink: one for whole batches, or several with a message each; they decide nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from email_ingestion.breaker import Breaker
from email_ingestion.errors import EmailIngestionError, SinkFailed
from email_ingestion.records import SinkMessage
from email_ingestion.sinks import Sink

Answer = tuple[Sequence[SinkMessage], EmailIngestionError | None]


class SinkExecutor:
    """For one thread that gives and listens. The threads are daemons: a sink that hangs must not keep a process."""

    def __init__(self, name: str, sink: Sink, breaker: Breaker) -> None:
        self._name = name
        self._sink = sink
        self._breaker = breaker
        parallel = getattr(sink, "parallel", 0)
        self._singly = parallel > 0
        self._stopped = threading.Event()
        self._tasks: queue.SimpleQueue[Sequence[SinkMessage] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"sink {name} {number}", daemon=True)
            for number in range(1, max(1, parallel) + 1)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, parcels: Sequence[SinkMessage], *, singly: bool = False) -> int:
        """Have parcels delivered; returns how many answers there will be."""
        chunks = [[parcel] for parcel in parcels] if singly or self._singly else [parcels] if parcels else []
        for chunk in chunks:
            self._tasks.put(chunk)
        return len(chunks)

    def next_result(self, seconds: float) -> Answer | None:
        """The next answer, None when there is none within that time."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def stop(self) -> None:
        """Begin with nothing more: what was given and not begun is answered by an empty sequence."""
        self._stopped.set()

    def close(self) -> None:
        """Let the threads end after what they have in hand."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (chunk := self._tasks.get()) is not None:
            self._answers.put(((), None) if self._stopped.is_set() else (chunk, self._deliver(chunk)))

    def _deliver(self, chunk: Sequence[SinkMessage]) -> EmailIngestionError | None:
        try:
            self._breaker.run(lambda: self._asked(chunk))
        except EmailIngestionError as error:
            return error
        return None

    def _asked(self, chunk: Sequence[SinkMessage]) -> None:
        try:
            self._sink.deliver(chunk)
        except EmailIngestionError:
            raise
        except Exception as error:
            raise SinkFailed(f"sink {self._name} failed: {type(error).__name__}") from error
