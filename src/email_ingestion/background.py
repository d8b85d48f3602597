"""Threads for work outside the main loop: one job after another, or one job periodically.

They are daemon threads: none of them holds up the end of the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from email_ingestion.errors import ThreadUnavailable, is_shortage
from email_ingestion.process_limits import describe_thread_limits

T = TypeVar("T")

IDLE_SECONDS = 10.0
START_SECONDS = 1.0  # between two tries to start a thread

_process_ends = threading.Event()


def stop_waiting_for_threads() -> None:
    """Wait no more for a thread that cannot be started: the process ends."""
    _process_ends.set()


def start_now(thread: threading.Thread) -> None:
    """Start a thread. Raises ThreadUnavailable where a limit, or memory, leaves the process none to spare."""
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise ThreadUnavailable(f"no thread can be started ({describe_thread_limits()})") from error


def start_thread(
    make: Callable[[], threading.Thread], on_error: Callable[[Exception], None], stopped: Callable[[], bool]
) -> threading.Thread:
    """Start a thread and return it; where a limit leaves the process none to spare, wait until it does.

    `on_error` gets each failure. When `stopped` says so, or the process ends, the thread that is returned was not
    started.
    """
    while True:
        thread = make()  # for each try: Python starts none again that it could not start
        if stopped() or _process_ends.is_set():
            return thread
        try:
            start_now(thread)
        except ThreadUnavailable as error:
            on_error(error)
            _process_ends.wait(START_SECONDS)
        else:
            return thread


def wait_out_shortages(make: Callable[[], T], on_error: Callable[[Exception], None]) -> T:
    """Return what `make` returns; where this machine lacks descriptors, memory or room for it, wait until it does not.

    `on_error` gets each failure. Raises the last one when the process ends meanwhile, and whatever is no shortage.
    """
    while True:
        try:
            return make()
        except Exception as error:
            if not is_shortage(error) or _process_ends.is_set():
                raise
            on_error(error)
            _process_ends.wait(START_SECONDS)


def run_within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns. Raises TimeoutError after `seconds`; the call then goes on in its thread."""
    return BackgroundThread("deadline", 0.0).submit(call).result(seconds)


class BackgroundThread:
    """Runs the submitted jobs, `parallel` at once; a thread ends when there is no job for a while.

    `concurrent.futures` would keep the threads, wait at exit for a job that hangs, and run a job later whose `submit`
    raised because no thread could be started.
    """

    def __init__(self, name: str, idle: float = IDLE_SECONDS, parallel: int = 1) -> None:
        self._name = name
        self._idle = idle
        self._parallel = parallel
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # a thread that ends has no job
        self._threads = 0
        self._unfinished = 0  # jobs

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` after the jobs submitted before; the future has its result or its error.

        Raises ThreadUnavailable, and does not run it, where no thread can be started and there is none.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._unfinished >= self._threads < self._parallel:
                try:
                    start_now(threading.Thread(target=self._work, name=self._name, daemon=True))
                    self._threads += 1
                except ThreadUnavailable:
                    if not self._threads:
                        raise
            self._unfinished += 1
            self._jobs.put((future, job))
        return future

    def _work(self) -> None:
        while True:
            try:
                future, job = self._jobs.get(timeout=self._idle)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._threads -= 1
                        return
                continue
            try:
                result, error = job(), None
            except BaseException as raised:  # noqa: BLE001 - the caller gets it from the future
                result, error = None, raised
            with self._lock:
                self._unfinished -= 1
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del future, job, result, error  # the result may be large


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
