"""Waits for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_SECONDS = 0.2


def comes_true(what: Callable[[], bool], seconds: float) -> bool:
    """Whether it does within this time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() >= deadline:
            return False
        time.sleep(STEP_SECONDS)
    return True
