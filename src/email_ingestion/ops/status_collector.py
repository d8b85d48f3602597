"""Every second: read Redis for `/status` and the metrics, announce this process in Redis, and find its peers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from email_ingestion.background import PeriodicThread
from email_ingestion.daemon import read_pid, running_pid
from email_ingestion.errors import CircuitBreakerError, ConfigurationError, RedisConnectionError, TransientError
from email_ingestion.events import LoopFailed, LoopTick, Probed
from email_ingestion.ops.observers import Ops
from email_ingestion.ops.status_records import DlqState, Identity, Peer, RedisState, StreamState
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.stream import (
    Gauges,
    RedisLink,
    SharedOverrides,
    announce_presence,
    check_writable,
    read_gauges,
    withdraw_presence,
)

LOOP = "collect"
COLLECT_SECONDS = 1.0
FAILOVER_SECONDS = 0.25  # while another server may be about to take over


class StatusCollector:
    """`start` it, `close` it."""

    def __init__(
        self,
        link: RedisLink,
        ops: Ops,
        identity: Identity,
        ops_url: str,
        pid_dir: Path,
        *,
        overrides: OperatorOverrides,
        ledger_fingerprint: Callable[[], str | None],
        refuse: Callable[[ConfigurationError], None],
    ) -> None:
        """`refuse` is called when this Redis holds mail that these settings do not fit."""
        self._link = link
        self._overrides = overrides
        self._shared_overrides = SharedOverrides(link)
        self._ops = ops
        self._identity = identity
        self._ops_url = ops_url
        self._pid_dir = pid_dir
        self._ledger_fingerprint = ledger_fingerprint
        self._refuse = refuse
        self._thread = PeriodicThread(LOOP, COLLECT_SECONDS, self._collect, immediate=True, on_error=self._failed)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and take our presence out of Redis if it answers."""
        self._thread.close(COLLECT_SECONDS)
        with suppress(TransientError):
            withdraw_presence(self._link, self._presence())

    def _collect(self) -> float | None:
        try:
            self._ops.status.collect(self._read)
        except ConfigurationError as error:
            self._refuse(error)
        finally:
            self._ops.observe(LoopTick(LOOP))
        return FAILOVER_SECONDS if self._probe_failover() else None

    def _failed(self, error: Exception) -> None:
        self._ops.observe(LoopFailed(LOOP, error))

    def _probe_failover(self) -> bool:
        """Return whether Redis is away and another server may take over; if one has, let the breaker probe it now.

        The breaker spares a Redis that is ill. After a failover another one answers, and is not ill.
        """
        if not self._link.fails_over or self._link.breaker.closed:
            return False
        with suppress(RedisConnectionError):
            check_writable(self._link)
            self._link.breaker.allow_probe()
        return True

    def _read(self) -> RedisState:
        gauges: list[Gauges] = []
        announced = False
        try:
            probe(self._ops, "redis", lambda: self._exchange(gauges))
            announced = True
        except TransientError:
            if not gauges:
                raise
            # It can be read, and its operator must see what a full Redis holds.
        finally:
            processes = gauges[0].processes if gauges else ()
            self._ops.status.set_peers(list(peers(self._identity.instance, processes, self._pid_dir)))
        return redis_state(gauges[0], announced=announced)

    def _exchange(self, gauges: list[Gauges]) -> None:
        """Read through the breaker, write past it: a full Redis refuses writes and must still be drained."""
        gauges.append(read_gauges(self._link))
        self._overrides.apply_shared(self._shared_overrides.read())
        announce_presence(self._link, self._presence())

    def _presence(self) -> dict[str, Any]:
        return {
            "component": self._identity.component,
            "instance": self._identity.instance,
            "stem": self._identity.stem,
            "pid": os.getpid(),
            "ready": self._ops.status.readiness().ok,
            "paused": self._overrides.active_pause() is not None,
            "level": self._overrides.level,
            "min_priority": self._overrides.min_priority,
            "ops_url": self._ops_url,
            "ledger": self._ledger_fingerprint(),
            "seen": time.time(),
        }


def probe(ops: Ops, dependency: str, call: Callable[[], object]) -> None:
    """Call a dependency and announce whether it works. Raises the error of `call`."""
    started = time.monotonic()
    try:
        call()
    except CircuitBreakerError:
        raise  # it was not called: the last result stands
    except TransientError as error:
        ops.observe(Probed(dependency, ok=False, seconds=time.monotonic() - started, error=error))
        raise
    ops.observe(Probed(dependency, ok=True, seconds=time.monotonic() - started, error=None))


def redis_state(gauges: Gauges, *, announced: bool) -> RedisState:
    """Convert gauges for the status. Where this process cannot announce itself none can: active workers are unknown."""
    workers = sum(process["component"] == "worker" for process in gauges.processes)
    return RedisState(
        stream=StreamState(
            depth=gauges.depth,
            pending=gauges.pending,
            waiting=max(0, gauges.depth - gauges.pending),
            oldest_timestamp=gauges.oldest,
            max_deliveries=gauges.max_deliveries,
            oldest_pending_timestamp=gauges.oldest_pending,
        ),
        dlq=DlqState(gauges.dlq_depth, gauges.dlq_oldest, gauges.dlq_replayed),
        active_workers=workers if announced else None,
        memory_used_bytes=gauges.memory_used,
        memory_max_bytes=gauges.memory_max,
        evicted_keys=gauges.evicted,
    )


def peers(own: str, processes: tuple[dict[str, Any], ...], pid_dir: Path) -> Iterator[Peer]:
    """Yield the other processes: those with a heartbeat in Redis, and those of this machine with a PID file."""
    files = {path.stem: path for path in sorted(pid_dir.glob("*.pid")) if path.stem.startswith(("producer", "worker"))}
    for process in sorted(processes, key=lambda process: str(process["instance"])):
        path = files.get(process["stem"])
        local = path is not None and read_pid(path) == process["pid"]
        if local:
            del files[process["stem"]]
        if process["instance"] != own:
            alive = running_pid(path) is not None if local and path else True
            yield Peer(
                process["component"],
                process["instance"],
                process["pid"],
                alive,
                process["ready"] if alive else False,
                process["ops_url"],
                process["seen"],
            )
    for stem, path in files.items():
        pid = read_pid(path)
        if pid != os.getpid():
            alive = running_pid(path) is not None
            yield Peer(stem.partition("-")[0], stem, pid, alive, None if alive else False, None, None)
