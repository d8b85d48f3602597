"""Where an operator's orders reach the live objects of a process; who may give them is `ops.admin`'s business."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from email_ingestion.breaker import Breaker
from email_ingestion.errors import EmailIngestionError, OperationFailed
from email_ingestion.ops import status_json
from email_ingestion.ops.admin import Answer, Desk
from email_ingestion.ops.logs import LogLevel
from email_ingestion.overrides import Level, OperatorOverrides

if TYPE_CHECKING:
    from email_ingestion.ops.orders import BreakerOrder, LogOrder

Ping = Callable[[], object]
REST_SECONDS = 5.0  # how long a pause is given to take hold before it is answered
STEP_SECONDS = 0.05


class Front:
    """The orders of one process. Its body adds how each dependency is asked, and who can revoke a message."""

    def __init__(self, breakers: Callable[[str], Breaker], control: OperatorOverrides, level: LogLevel) -> None:
        self._breakers = breakers
        self._control = control
        self._level = level
        self.pings: dict[str, Ping] = {}
        self.revoke: Callable[[str], bool] | None = None
        self.at_rest: Callable[[], bool] = lambda: True

    def desk(self) -> Desk:
        """What `ops.admin` calls."""
        return Desk(
            self._breaker, self._pause, self._resume, self._degrade, self._priority, self._log_level, self._revoke
        )

    def _breaker(self, name: str, order: BreakerOrder) -> Answer:
        breaker = self._breakers(name)
        if order.state == "AUTO":
            breaker.release()
        else:
            if order.state == "CLOSED":
                self._ask(name)
            breaker.force(order.state, order.ttl_seconds)
        return asdict(breaker.snapshot())

    def _ask(self, name: str) -> None:
        """Closing a breaker while its dependency is away would only hide that."""
        try:
            self.pings[name]()
        except KeyError as error:
            raise OperationFailed(f"{name} cannot be asked yet: the process is starting; try again") from error
        except EmailIngestionError as error:
            raise OperationFailed(f"{name} does not work, so its breaker stays as it is: {error}") from error

    def _pause(self, seconds: float, by: str) -> Answer:
        self._control.pause(seconds, by)
        deadline = time.monotonic() + REST_SECONDS
        while not self.at_rest() and time.monotonic() < deadline:  # what is in hand is finished first
            time.sleep(STEP_SECONDS)
        return status_json.control(self._control)

    def _resume(self) -> Answer:
        self._control.resume()
        return status_json.control(self._control)

    def _degrade(self, level: Level, seconds: float, by: str) -> Answer:
        self._control.set_level(level, seconds, by)
        return status_json.control(self._control)

    def _priority(self, least: int, seconds: float, by: str) -> Answer:
        self._control.prioritize(least, seconds, by)
        return status_json.control(self._control)

    def _log_level(self, order: LogOrder) -> Answer:
        self._level.set_for(order.level, order.ttl_seconds)
        return {"level": self._level.current}

    def _revoke(self, email_id: str) -> Answer:
        if self.revoke is None:
            raise OperationFailed("this process handles no messages: ask a worker")
        return {"revoked": self.revoke(email_id)}
