"""Looks names up for a limited time: the system's resolver waits as long as its servers make it, and nothing ends that.

`limit_lookups` puts it in the place of `socket.getaddrinfo`, which every client of ours goes through. A look-up that
takes longer goes on by itself, and whoever asks for the name next gets its answer: a resolver that needs ten seconds
for each name is slow then, and not away.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

SECONDS = 5.0  # for which an asker waits
KEPT_SECONDS = 30.0  # for which a late answer is kept for the next one who asks
_ask_system: Callable[..., Any] = socket.getaddrinfo
_open: dict[tuple[Any, ...], _Question] = {}
_lock = threading.Lock()  # of `_open`


class _Question:
    """One that the system was asked, by threads that nobody can end; the first answer counts."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._asked_at = -math.inf
        self._answered = threading.Event()
        self._answered_at = math.inf
        self._result: Any = None
        self._error: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether it was answered too long ago."""
        return time.monotonic() - self._answered_at > KEPT_SECONDS

    def ask(self) -> None:
        """Ask the system, unless somebody has just done so: where it hangs, a new question may be answered sooner.

        Raises RuntimeError or MemoryError where there is no thread to spare.
        """
        if not self._answered.is_set() and time.monotonic() - self._asked_at >= SECONDS:
            threading.Thread(target=self._run, name="name lookup", daemon=True).start()
            self._asked_at = time.monotonic()

    def wait(self) -> bool:
        """Wait for the answer, for a limited time; return whether it is there."""
        return self._answered.wait(SECONDS)

    def result(self) -> Any:
        """Return or raise what the system answered."""
        if self._error:
            raise self._error
        return self._result

    def _run(self) -> None:
        result, error = None, None
        try:
            result = self._ask()
        except Exception as raised:  # noqa: BLE001 - whoever asked gets it
            error = raised
        if not self._answered.is_set():
            self._result, self._error, self._answered_at = result, error, time.monotonic()
            self._answered.set()


def limit_lookups() -> None:
    """Have all look-ups of this process take no longer than SECONDS for whoever asks."""
    socket.getaddrinfo = _look_up


def _look_up(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
    """Answer as `socket.getaddrinfo`, which takes these arguments in either way."""
    ask = partial(_ask_system, host, port, *rest, **named)
    if not isinstance(host, str) or not host or _is_address(host):
        return ask()
    key = (host, port, *rest, *sorted(named.items()))
    try:
        with _lock:
            question = _open.get(key)
            if question is None or question.is_over:
                question = _Question(ask)
            question.ask()
            _open[key] = question
    except (RuntimeError, MemoryError):  # no thread to spare
        return ask()
    if not question.wait():
        raise socket.gaierror(
            socket.EAI_AGAIN,
            f"no answer within {SECONDS:g} s to the question where {host} is: getent hosts {host}, and look at "
            "/etc/resolv.conf",
        )
    with _lock:
        if _open.get(key) is question:
            del _open[key]
    return question.result()


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False
