"""Waits for new changes on behalf of all who ask for them: one look at the database serves everybody who waits.

A request that waits holds neither a thread nor a connection of the database between two looks.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

LOOK_SECONDS = 0.5  # between two looks, however many wait
MAX_WAITING = 32  # requests; who comes beyond them is answered at once, for a server has few connections


class FeedWatch:
    """The last number of the change feed, as it was at the latest look."""

    def __init__(self) -> None:
        self._waiting = 0
        self._closing = threading.Event()
        self._look: asyncio.Task[int] | None = None
        self._seen = (0, -LOOK_SECONDS)  # the number, and when it was asked for

    @property
    def closing(self) -> bool:
        """Whether nobody waits any more because the process stops."""
        return self._closing.is_set()

    def close(self) -> None:
        """Answer all who wait, soon; from any thread."""
        self._closing.set()

    async def wait(
        self,
        after: int,
        seconds: float,
        last: Callable[[], Awaitable[int]],
        disconnected: Callable[[], Awaitable[bool]],
    ) -> bool:
        """Wait up to `seconds` for a change behind `after`; return whether there is one. Raises what `last` raises."""
        if seconds <= 0 or self._waiting >= MAX_WAITING:
            return False
        end = time.monotonic() + seconds
        self._waiting += 1
        try:
            while not self.closing and not await disconnected():
                if await self._latest(last) > after:
                    return True
                left = end - time.monotonic()
                if left <= 0:
                    return False
                await asyncio.sleep(min(LOOK_SECONDS, left))
            return False
        finally:
            self._waiting -= 1

    async def _latest(self, last: Callable[[], Awaitable[int]]) -> int:
        number, at = self._seen
        if time.monotonic() - at < LOOK_SECONDS / 2:
            return number
        if self._look is None or self._look.done():
            self._look = asyncio.ensure_future(last())
        number = await asyncio.shield(self._look)  # one who goes away does not end it for the others
        self._seen = (number, time.monotonic())
        return number
