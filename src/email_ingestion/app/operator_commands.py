"""What operators may do to a running process; `ops.admin` decides who may."""

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
IDLE_SECONDS = 5.0  # how long a pause waits for the work in progress before it is answered
POLL_SECONDS = 0.05


class OperatorCommands:
    """The commands of one process. Its service adds the pings of its dependencies, and the parts that only it has."""

    def __init__(self, breakers: Callable[[str], Breaker], overrides: OperatorOverrides, level: LogLevel) -> None:
        self._breakers = breakers
        self._overrides = overrides
        self._level = level
        self.pings: dict[str, Ping] = {}
        self.revoke: Callable[[str], bool] | None = None
        self.is_idle: Callable[[], bool] = lambda: True

    def desk(self) -> Desk:
        """Return the commands as `ops.admin` calls them."""
        return Desk(
            self._breaker, self._pause, self._resume, self._degrade, self._priority, self._log_level, self._revoke
        )

    def _breaker(self, name: str, order: BreakerOrder) -> Answer:
        breaker = self._breakers(name)
        if order.state == "AUTO":
            breaker.release()
        else:
            if order.state == "CLOSED":
                self._ping(name)
            breaker.force(order.state, order.ttl_seconds)
        return asdict(breaker.snapshot())

    def _ping(self, name: str) -> None:
        """Refuse to close a breaker while its dependency is away: that would only hide the failure."""
        try:
            self.pings[name]()
        except KeyError as error:
            raise OperationFailed(f"{name} cannot be asked yet: the process is starting; try again") from error
        except EmailIngestionError as error:
            raise OperationFailed(f"{name} does not work, so its breaker stays as it is: {error}") from error

    def _pause(self, seconds: float, by: str) -> Answer:
        self._overrides.pause(seconds, by)
        deadline = time.monotonic() + IDLE_SECONDS
        while not self.is_idle() and time.monotonic() < deadline:  # the work in progress ends first
            time.sleep(POLL_SECONDS)
        return status_json.control(self._overrides)

    def _resume(self) -> Answer:
        self._overrides.resume()
        return status_json.control(self._overrides)

    def _degrade(self, level: Level, seconds: float, by: str) -> Answer:
        self._overrides.set_level(level, seconds, by)
        return status_json.control(self._overrides)

    def _priority(self, min_priority: int, seconds: float, by: str) -> Answer:
        self._overrides.prioritize(min_priority, seconds, by)
        return status_json.control(self._overrides)

    def _log_level(self, order: LogOrder) -> Answer:
        self._level.set_for(order.level, order.ttl_seconds)
        return {"level": self._level.current}

    def _revoke(self, email_id: str) -> Answer:
        if self.revoke is None:
            raise OperationFailed("this process handles no messages: ask a worker")
        return {"revoked": self.revoke(email_id)}
