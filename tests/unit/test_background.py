"""Threads for work outside the main loop: jobs one after another, and periodic ones."""

from __future__ import annotations

import errno
import os
import queue
import resource
import threading
from functools import partial

import pytest

from email_ingestion import background
from email_ingestion.background import BackgroundThread, PeriodicThread, start_thread, wait_out_shortages

PATIENCE = 30.0


def test_a_background_thread_ends_when_there_is_nothing_to_do_and_comes_back():
    background = BackgroundThread("background-of-the-test", idle=0.0)
    for number in range(200):
        assert background.submit(lambda number=number: number).result(PATIENCE) == number
    jobs = [background.submit(lambda number=number: number) for number in range(200)]
    assert [job.result(PATIENCE) for job in jobs] == list(range(200))
    for thread in [thread for thread in threading.enumerate() if thread.name == "background-of-the-test"]:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_periodic_thread_runs_at_its_start_or_after_its_period():
    ran = threading.Event()
    for immediate, seconds in ((True, 3600.0), (False, 0.01)):
        ran.clear()
        thread = PeriodicThread("periodic-of-the-test", seconds, ran.set, immediate=immediate, on_error=print)
        thread.start()
        assert ran.wait(PATIENCE)
        thread.close(PATIENCE)
    thread = PeriodicThread("periodic-of-the-test", 3600.0, ran.clear, immediate=False, on_error=print)
    thread.start()
    thread.close(None)
    assert ran.is_set()


def test_a_periodic_thread_runs_when_it_is_woken_and_when_its_job_says_so():
    runs: queue.SimpleQueue[int] = queue.SimpleQueue()
    seconds = iter((0.0, None))

    def job() -> float | None:
        runs.put(1)
        return next(seconds, None)

    thread = PeriodicThread("periodic-of-the-test", 3600.0, job, immediate=False, on_error=print)
    thread.start()
    for _ in range(2):
        thread.run_now()
        runs.get(timeout=PATIENCE)
    thread.run_now()
    runs.get(timeout=PATIENCE)
    thread.close(None)
    assert thread.is_closed()


def test_a_periodic_thread_outlives_the_errors_of_its_job():
    errors: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def job() -> None:
        raise OSError("away")

    thread = PeriodicThread("periodic-of-the-test", 0.01, job, immediate=True, on_error=errors.put)
    thread.start()
    assert [str(errors.get(timeout=PATIENCE)) for _ in range(3)] == ["away"] * 3
    thread.close(None)


def test_a_periodic_thread_that_was_not_started_can_be_closed():
    PeriodicThread("periodic-of-the-test", 0.01, lambda: None, immediate=True, on_error=print).close(None)


def test_a_thread_is_waited_for_where_there_is_none_to_spare(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(background, "START_SECONDS", 0.01)
    ran, errors = threading.Event(), []
    refusals = iter(range(3))

    class Scarce(threading.Thread):
        """One that the system does not always give; Python starts none again that it could not start."""

        tried = False

        def start(self) -> None:
            if self.tried:
                raise RuntimeError("thread already started")
            self.tried = True
            if next(refusals, None) is not None:
                raise RuntimeError("can't start new thread")
            super().start()

    start_thread(partial(Scarce, target=ran.set), errors.append, lambda: False).join()
    assert ran.is_set()
    assert [str(error.__cause__) for error in errors] == ["can't start new thread"] * 3
    refusals = iter(range(10**6))
    assert not start_thread(Scarce, errors.append, lambda: len(errors) >= 5).is_alive()
    assert len(errors) == 5


def test_what_lacks_a_descriptor_is_tried_until_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(background, "START_SECONDS", 0.0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 1, limits[1]))
    heard: list[Exception] = []

    def hear(error: Exception) -> None:
        heard.append(error)
        if len(heard) == 3:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    try:
        with pytest.raises(OSError, match="Too many open files"):
            used.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(1000))
        used.append(wait_out_shortages(lambda: os.open(os.devnull, os.O_RDONLY), hear))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in used:
            os.close(each)
    assert [error.errno for error in heard if isinstance(error, OSError)] == [errno.EMFILE] * 3


def test_what_is_no_shortage_is_not_waited_out():
    def fail() -> None:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        wait_out_shortages(fail, print)
