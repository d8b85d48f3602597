"""What the processes said while a fault lasted: whether mail stood still and none of them gave a reason."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from bench.crash_matrix.world import World

LOOK_SECONDS = 0.5
SILENCE_SECONDS = 30.0  # for which mail may stand still before somebody says why


@dataclass
class Truth:
    """The longest time for which mail stood still and every `/ready` said ready, and what was said first."""

    silent: float = 0.0  # seconds
    reason: str = ""
    after: float = 0.0  # seconds of standstill until it was said

    def merge(self, other: Truth) -> None:
        """Keep the worse of two."""
        self.silent = max(self.silent, other.silent)
        if not self.reason or (other.reason and other.after > self.after):
            self.reason, self.after = other.reason, other.after


@contextmanager
def watching(world: World, deliverable: int) -> Iterator[Truth]:
    """Look at progress and at every `/ready` until the block ends; `deliverable` messages were there before."""
    truth, ended = Truth(), threading.Event()
    thread = threading.Thread(target=_watch, args=(world, truth, ended, deliverable), name="truth", daemon=True)
    thread.start()
    try:
        yield truth
    finally:
        ended.set()
        thread.join()


def _watch(world: World, truth: Truth, ended: threading.Event, delivered: int) -> None:
    moved = time.monotonic()  # when mail moved last, or none waited
    while not ended.wait(LOOK_SECONDS):
        reason = _reason(world)
        with suppress(sqlite3.Error):
            now = world.here.rows("SELECT count(*) FROM emails")[0][0]
            if now != delivered or now >= world.arrived:
                delivered, moved = now, time.monotonic()
        standing = time.monotonic() - moved
        if reason and standing > LOOK_SECONDS and not truth.reason:
            truth.reason, truth.after = reason, standing
        if not reason:
            truth.silent = max(truth.silent, standing)


def _reason(world: World) -> str:
    """Return the first reason of any process; empty while all are ready."""
    for name, running in list(world.running.items()):
        try:
            answer = json.loads(running.get("/ready")[1])
        except (AssertionError, OSError, ValueError):
            return f"{name} does not answer"
        if answer["status"] != "ready":
            return f"{name}: {answer['status']}: {'; '.join(answer['reasons'])}"
    return ""
