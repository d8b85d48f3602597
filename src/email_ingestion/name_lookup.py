"""Looks names up for a limited time: the system's resolver waits as long as its servers make it, and nothing ends that.

`limit_lookups` puts it in the place of `socket.getaddrinfo`, which every client of ours goes through. A look-up that
takes longer goes on by itself, and whoever asks for the name next gets its answer: a resolver that needs ten seconds
for each name is slow then, and not away.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

SECONDS = 5.0  # for which an asker waits
KEPT_SECONDS = 30.0  # for which a late answer is kept for the next one who asks
_Question = tuple[Any, ...]
_ask_system: Callable[..., Any] = socket.getaddrinfo
_running: dict[_Question, _Lookup] = {}
_lock = threading.Lock()  # of `_running`


class _Lookup(threading.Thread):
    """One question to the system, which nobody can take back."""

    def __init__(self, question: _Question, ask: Callable[[], Any]) -> None:
        super().__init__(name="name lookup", daemon=True)
        self._question = question
        self._ask = ask
        self._answered = threading.Event()
        self._answered_at = float("inf")
        self._result: Any = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._result = self._ask()
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            self._error = error
        self._answered_at = time.monotonic()
        self._answered.set()

    @property
    def is_over(self) -> bool:
        """Whether it was answered too long ago."""
        return time.monotonic() - self._answered_at > KEPT_SECONDS

    def answer(self, host: str) -> Any:
        """Return or raise what the system answers. Raises gaierror when that takes too long."""
        if not self._answered.wait(SECONDS):
            raise socket.gaierror(
                socket.EAI_AGAIN,
                f"no answer within {SECONDS:g} s to the question where {host} is: getent hosts {host}, and look at "
                "/etc/resolv.conf",
            )
        with _lock:
            if _running.get(self._question) is self:
                del _running[self._question]
        if self._error:
            raise self._error
        return self._result


def limit_lookups() -> None:
    """Have all look-ups of this process take no longer than SECONDS for whoever asks."""
    socket.getaddrinfo = _look_up


def _look_up(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
    """Answer as `socket.getaddrinfo`, which takes these arguments in either way."""
    ask = partial(_ask_system, host, port, *rest, **named)
    if not isinstance(host, str) or not host or _is_address(host):
        return ask()
    question = (host, port, *rest, *sorted(named.items()))
    with _lock:
        lookup = _running.get(question)
        if lookup is None or lookup.is_over:
            lookup = _Lookup(question, ask)
            try:
                lookup.start()
            except (RuntimeError, MemoryError):  # no thread to spare
                lookup = None
            else:
                _running[question] = lookup
    return lookup.answer(host) if lookup else ask()


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False
