"""Fixtures: what two processes show, and a log file to show it in."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from email_ingestion.ops.logs import configure_logs
from email_ingestion.ops.observers import Ops, open_ops
from tests.unit.ops.shown import PRODUCER, PRODUCER_NAMES, WORKER, WORKER_NAMES, FakeBreaker


@pytest.fixture
def redis_breaker() -> FakeBreaker:
    return FakeBreaker("redis")


@pytest.fixture
def worker(redis_breaker: FakeBreaker) -> Ops:
    return open_ops(WORKER, WORKER_NAMES, lambda: [redis_breaker])


@pytest.fixture
def producer(redis_breaker: FakeBreaker) -> Ops:
    return open_ops(PRODUCER, PRODUCER_NAMES, lambda: [redis_breaker, FakeBreaker("imap")])


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Path]:
    """The log file of a worker that logs everything; logging is as before afterwards."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    root = logging.getLogger()
    before, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    configure_logs(WORKER, tmp_path, "DEBUG", "json")
    yield tmp_path / "worker.log"
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    logging.getLogger("email_ingestion").setLevel(logging.NOTSET)
    logging.raiseExceptions = raising
    structlog.reset_defaults()
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
