"""Threads for work outside the main loop: one job after another, or one job periodically.

They are daemon threads: none of them holds up the end of the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

IDLE_SECONDS = 10.0
START_SECONDS = 1.0  # between two tries to start a thread


def start_thread(
    make: Callable[[], threading.Thread], on_error: Callable[[Exception], None], stopped: Callable[[], bool]
) -> threading.Thread:
    """Start a thread and return it; where a limit leaves the process none to spare, wait until it does.

    `on_error` gets each failure. When `stopped` says so, the thread that is returned was not started.
    """
    while True:
        thread = make()  # for each try: Python starts none again that it could not start
        if stopped():
            return thread
        try:
            thread.start()
        except RuntimeError as error:
            on_error(error)
            time.sleep(START_SECONDS)
        else:
            return thread


def run_within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns. Raises TimeoutError after `seconds`; the call then goes on in its thread."""
    return BackgroundThread("deadline", 0.0).submit(call).result(seconds)


class BackgroundThread:
    """Runs the submitted jobs one after another; its thread starts with a job and ends when there is none for a while.

    `concurrent.futures` would keep the thread, and wait at exit for a job that hangs.
    """

    def __init__(self, name: str, idle: float = IDLE_SECONDS) -> None:
        self._name = name
        self._idle = idle
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # a thread that ends has no job
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` after the jobs submitted before; the future has its result or its error."""
        future: Future[T] = Future()
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            self._jobs.put((future, job))
        return future

    def _work(self) -> None:
        while True:
            try:
                future, job = self._jobs.get(timeout=self._idle)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._thread = None
                        return
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - the caller gets it from the future
                future.set_exception(error)
            del future, job  # the result may be large


class PeriodicThread:
    """Runs `job` every `seconds` in a thread, from `start` to `close`.

    `job` may return another number of seconds until its next run. An exception goes to `on_error`, and the job runs
    again.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        job: Callable[[], float | None],
        *,
        immediate: bool,
        on_error: Callable[[Exception], None],
    ) -> None:
        """`immediate`: the first run is at the start, not `seconds` later."""
        self._seconds = seconds
        self._job = job
        self._immediate = immediate
        self._on_error = on_error
        self._closed = threading.Event()
        self._wake = threading.Event()
        self._make_thread = partial(threading.Thread, target=self._run, name=name, daemon=True)
        self._thread = self._make_thread()

    def start(self) -> None:
        """Start the thread, as soon as there is one to spare."""
        self._thread = start_thread(self._make_thread, self._on_error, self._closed.is_set)

    def close(self, timeout: float | None = 0.0) -> None:
        """Run the job no more; wait up to `timeout` seconds for a run that goes on, None for as long as it takes."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def run_now(self) -> None:
        """Run the job now, or again as soon as the present run ends."""
        self._wake.set()

    def is_closed(self, timeout: float = 0.0) -> bool:
        """Tell whether `close` was called, or is within `timeout` seconds: for a job that waits."""
        return self._closed.wait(timeout)

    def _run(self) -> None:
        seconds = 0.0 if self._immediate else self._seconds
        while True:
            self._wake.wait(seconds)
            self._wake.clear()
            if self._closed.is_set():  # after `clear`, which may have taken back the wake-up of `close`
                return
            seconds = self._run_job()

    def _run_job(self) -> float:
        try:
            other_seconds = self._job()
        except Exception as error:  # noqa: BLE001 - no thread of ours may end in silence
            self._on_error(error)
            other_seconds = None
        return self._seconds if other_seconds is None else other_seconds
