"""Every second: read Redis for `/status` and the metrics, announce this process in Redis, and find its peers."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from email_ingestion.background import PeriodicThread
from email_ingestion.errors import CircuitBreakerError, ConfigurationError, RedisConnectionError, TransientError
from email_ingestion.events import LoopFailed, LoopTick, Probed
from email_ingestion.ops.observers import Ops
from email_ingestion.ops.peers import is_replaced, missing_processes, peers
from email_ingestion.ops.status_records import DlqState, Identity, Peer, RedisState, StreamState
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.stream import (
    Gauges,
    RedisLink,
    SharedOverrides,
    announce_presence,
    check_writable,
    forget_process,
    read_gauges,
    withdraw_presence,
)

LOOP = "collect"
COLLECT_SECONDS = 1.0
OFFSET_SECONDS = 10.0  # by which clocks may differ: times are taken from the servers, and shown by our own
COMMANDS_SECONDS = 10.0  # between two looks whether Redis permits every command that we use
FAILOVER_SECONDS = 0.25  # while another server may be about to take over
LEAVE_SECONDS = 60.0  # after which somebody is called for the last worker that took its leave, as by Prometheus


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
        ended_orderly: Callable[[], bool] = lambda: True,
        ops_proof: str | None = None,
    ) -> None:
        """`refuse` is called when this Redis holds mail that these settings do not fit.

        A process that has not `ended_orderly` stays known in Redis as one that should run. `ops_proof` shows others
        that the address is that of a process of ours (`peers.address_proof`).
        """
        self._ended_orderly = ended_orderly
        self._link = link
        self._overrides = overrides
        self._shared_overrides = SharedOverrides(link)
        self._ops = ops
        self._identity = identity
        self._ops_url = ops_url
        self._ops_proof = ops_proof
        self._pid_dir = pid_dir
        self._ledger_fingerprint = ledger_fingerprint
        self._refuse = refuse
        self._unattended_since: float | None = None  # monotonic seconds
        self._had_workers = False
        self._left_at: float | None = None  # monotonic seconds: when the last worker took its leave
        self._life = secrets.token_hex(8)  # tells this process from another of its name: PIDs of containers are alike
        self._announced = False
        self._namesakes = 0  # looks in a row that found the record of another process under our name
        self._thread = PeriodicThread(LOOP, COLLECT_SECONDS, self._collect, immediate=True, on_error=self._failed)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and take our presence out of Redis if it answers."""
        self._thread.close(COLLECT_SECONDS)
        with suppress(TransientError):
            withdraw_presence(self._link, self._identity.instance, orderly=self._ended_orderly())

    def _collect(self) -> float | None:
        try:
            self._ops.status.collect(self._read)
        except ConfigurationError as error:
            self._refuse(error)
        finally:
            self._ops.observe(LoopTick(LOOP))
        return FAILOVER_SECONDS if self._probe_failover() else None

    def _failed(self, error: Exception) -> None:
        self._ops.observe(LoopFailed(LOOP, error, COLLECT_SECONDS))

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
            missing = self._judge_peers(gauges[0] if gauges else None)
        return redis_state(gauges[0], missing, announced=announced)

    def _judge_peers(self, gauges: Gauges | None) -> Counter[str]:
        """Show the other processes, and let readiness tell which of the other kind should run and do not.

        Returns how many should run and do not, of either kind, those included that were replaced and left a PID file.
        """
        found = list(
            peers(
                self._identity.instance,
                gauges.processes if gauges else (),
                self._pid_dir,
                lost=gauges.lost if gauges else (),
                pending=gauges.pending_by_consumer if gauges else None,
            )
        )
        self._ops.status.set_peers(found)
        own = Peer(
            self._identity.component,
            self._identity.instance,
            os.getpid(),
            alive=True,
            ready=None,
            ops_url=self._ops_url,
            seen_at=None,
        )
        everyone = [own, *found]
        unattended = self._unattended(gauges, everyone)
        missing = missing_processes(everyone, time.time(), unattended_seconds=unattended)
        other = "worker" if self._identity.component == "producer" else "producer"
        reasons = [each.reason for each in missing if each.component == other]
        self._ops.status.set_condition(other, "; ".join(reasons) or None)
        names = {each["instance"] for each in (gauges.lost if gauges else ())}
        for each in found:
            if each.instance in names and not each.alive and is_replaced(each, everyone, time.time()):
                with suppress(TransientError):
                    forget_process(self._link, each.instance)
        unplanned = 0.0 if gauges and self._left_lately(everyone) else unattended
        counted = missing_processes(everyone, time.time(), unattended_seconds=unplanned, count_pid_files=True)
        return Counter(each.component for each in counted)

    def _left_lately(self, everyone: Sequence[Peer]) -> bool:
        """Tell whether the last worker took its leave lately, as for a restart: nobody is called for that at once.

        One that died stands among the dead.
        """
        workers = [each.alive for each in everyone if each.component == "worker"]
        if self._had_workers and not workers:
            self._left_at = time.monotonic()
        self._had_workers = any(workers)
        return not workers and self._left_at is not None and time.monotonic() - self._left_at < LEAVE_SECONDS

    def _unattended(self, gauges: Gauges | None, everyone: Sequence[Peer]) -> float:
        """Return for how many seconds mail has been waiting without a worker."""
        attended = any(each.component == "worker" and each.alive for each in everyone)
        if gauges is None or not gauges.depth or attended:
            self._unattended_since = None
            return 0.0
        self._unattended_since = self._unattended_since or time.monotonic()
        return time.monotonic() - self._unattended_since

    def _exchange(self, gauges: list[Gauges]) -> None:
        """Read through the breaker, write past it: a full Redis refuses writes and must still be drained."""
        gauges.append(read_gauges(self._link))
        self._ops.status.set_condition("clock", describe_offset("Redis", gauges[0].clock_offset))
        if self._link.refusal or time.monotonic() - self._link.commands_checked_at > COMMANDS_SECONDS:
            self._link.check_commands()
        self._overrides.apply_shared(self._shared_overrides.read())
        self._report_namesake(gauges[0])
        announce_presence(self._link, self._presence())
        self._announced = True

    def _report_namesake(self, gauges: Gauges) -> None:
        """Tell that another process writes its presence under our name: it does so between two of our own records.

        Workers of one name take each other's mail for their own, and spend its attempts. One such look may be the last
        word of a process that we replaced.
        """
        own = next((each for each in gauges.processes if each["instance"] == self._identity.instance), None)
        foreign = self._announced and own is not None and own.get("life") != self._life
        self._namesakes = self._namesakes + 1 if foreign else 0
        reason = (
            f"another process runs as {self._identity.instance}, for its host has the same name: give one of the hosts "
            "or containers another name, or of two workers one another number (--instance)"
        )
        self._ops.status.set_condition("name", reason if self._namesakes > 1 else None)

    def _presence(self) -> dict[str, Any]:
        return {
            "component": self._identity.component,
            "instance": self._identity.instance,
            "stem": self._identity.stem,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "life": self._life,
            "ready": self._ops.status.readiness().ok,
            "paused": self._overrides.active_pause() is not None,
            "level": self._overrides.level,
            "min_priority": self._overrides.min_priority,
            "ops_url": self._ops_url,
            "ops_proof": self._ops_proof,
            "ledger": self._ledger_fingerprint(),
            "sink_calls": self._ops.status.sink_calls(),
            "sinks_oldest": self._ops.status.sinks_oldest(),
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


def describe_offset(server: str, seconds: float) -> str | None:
    """Say what is wrong with a clock that differs by `seconds` from that of a server; None where that is little."""
    if abs(seconds) < OFFSET_SECONDS:
        return None
    direction = "before" if seconds > 0 else "behind"
    return f"this machine's is {abs(seconds):.0f} s {direction} that of {server}; sudo timedatectl set-ntp true"


def redis_state(gauges: Gauges, missing: Mapping[str, int], *, announced: bool) -> RedisState:
    """Convert gauges for the status. Where this process cannot announce itself none can: active workers are unknown."""
    workers = [process for process in gauges.processes if process["component"] == "worker"]
    oldest: dict[str, float] = {}
    for process in gauges.processes:
        for sink, at in (process.get("sinks_oldest") or {}).items():
            oldest[sink] = min(at, oldest.get(sink, at))
    return RedisState(
        stream=StreamState(
            depth=gauges.depth,
            pending=gauges.pending,
            waiting=max(0, gauges.depth - gauges.pending),
            oldest_timestamp=gauges.oldest,
            max_deliveries=gauges.max_deliveries,
            oldest_pending_timestamp=gauges.oldest_pending,
            newer=gauges.newer,
        ),
        dlq=DlqState(gauges.dlq_depth, gauges.dlq_oldest, gauges.dlq_replayed),
        active_workers=len(workers) if announced else None,
        idle_workers=sum(process.get("ready") is False for process in workers) if announced else None,
        memory_used_bytes=gauges.memory_used,
        memory_max_bytes=gauges.memory_max,
        evicted_keys=gauges.evicted,
        clock_offset=gauges.clock_offset,
        missing_processes={"producer": missing.get("producer", 0), "worker": missing.get("worker", 0)},
        sinks_oldest=oldest,
    )
