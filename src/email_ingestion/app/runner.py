"""What producer and worker have in common: PID file, logs, endpoints, breakers, Redis, signals, start and stop."""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from email_ingestion import __version__
from email_ingestion.app.backups import BackupWatch
from email_ingestion.app.collect import LOOP as COLLECT
from email_ingestion.app.collect import Collector
from email_ingestion.app.desk import Front
from email_ingestion.atomic_files import write_private
from email_ingestion.breaker import Breaker, BreakerPolicy, BreakerSnapshot
from email_ingestion.daemon import (
    PidFile,
    StopSignal,
    Watchdog,
    handle_signals,
    notify_systemd,
    raise_descriptor_limit,
    use_one_malloc_arena,
)
from email_ingestion.errors import ConfigurationError, EmailIngestionError, OperationFailed, RedisConnectionError
from email_ingestion.events import Event, Started, Stopped, Stopping
from email_ingestion.ledger.fingerprint import ledger_fingerprint
from email_ingestion.ops.admin import Admin, ops_token
from email_ingestion.ops.http import serve
from email_ingestion.ops.logs import LogLevel, configure_logs
from email_ingestion.ops.observers import Ops, open_ops
from email_ingestion.ops.prometheus_targets import remove_target, write_target
from email_ingestion.ops.sockets import METRICS_PORT, OPS_PORT
from email_ingestion.ops.status_records import Component, Identity, Names
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.settings import Settings, notify_socket
from email_ingestion.stream import Keys, RedisLink, check_writable, connect

if TYPE_CHECKING:
    from email_ingestion.ops.traces import Traces

COLLECT_SILENCE = 30.0
DATA_DIR = Path("data")
PID_DIR = Path("pids")


class Body(Protocol):
    """The loops of a process. `run` returns when they are done or `stop` was called; it returns the exit code."""

    def run(self) -> int:
        """Work."""

    def stop(self) -> None:
        """Finish what is in flight and return from `run`; from any thread."""

    def abandon(self) -> None:
        """`run` did not return in time: give back what can be given back."""


class Breakers:
    """All circuit breakers of a process, by name."""

    def __init__(self, settings: Settings) -> None:
        self._policy = BreakerPolicy(settings.cb_fail_max, settings.cb_recovery_timeout, settings.cb_success_threshold)
        self._breakers: dict[str, Breaker] = {}
        self._observers: list[Callable[[Event], None]] = []

    def make(self, name: str, *counted: type[Exception]) -> Breaker:
        """A new breaker that counts these errors."""
        self._breakers[name] = Breaker(name, self._policy, counted, self._announce)
        return self._breakers[name]

    def __call__(self, name: str) -> Breaker:
        """The one of this name; raises OperationFailed."""
        if name not in self._breakers:
            raise OperationFailed(f"there is no circuit breaker {name!r} here; there are {', '.join(self._breakers)}")
        return self._breakers[name]

    def tell(self, observe: Callable[[Event], None]) -> None:
        """Announce changes to `observe` from now on."""
        self._observers.append(observe)

    def snapshots(self) -> list[BreakerSnapshot]:
        """All of them as `/status` shows them."""
        return [breaker.snapshot() for breaker in list(self._breakers.values())]

    def _announce(self, event: Event) -> None:
        for observe in self._observers:
            observe(event)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a body is built from."""

    settings: Settings
    identity: Identity
    ops: Ops
    link: RedisLink
    breakers: Breakers
    stop: StopSignal
    control: OperatorOverrides
    front: Front


def identify(component: Component, number: int = 1, folder: Path = PID_DIR) -> Identity:
    """The process's name among all of them: its consumer name too, so it must be the same after a restart.

    A second producer of a host has another `folder` for its PID file, and its name.
    """
    suffix = f"-{number}" if component == "worker" else ("" if folder == PID_DIR else f"-{folder.name}")
    return Identity(component, f"{socket.gethostname()}-{component}{suffix}", __version__, number)


def run_process(
    settings: Settings,
    identity: Identity,
    names: Names,
    breakers: Breakers,
    build: Callable[[Parts], Body],
    *,
    least: int = 0,
) -> int:
    """Run one process to its end; returns its exit code. `least` is the priority below which it leaves mail.

    Raises ConfigurationError and OperationFailed for what an operator must mend before it can start.
    """
    use_one_malloc_arena()
    raise_descriptor_limit()
    offset = identity.number if identity.component == "worker" else 0
    hung: list[Body] = []
    with ExitStack() as cleanup:
        # The end of the interpreter may wait for a call that hangs in a library: when all else is cleaned up, do not.
        cleanup.callback(lambda: os._exit(0) if hung else None)
        cleanup.enter_context(PidFile(settings.pid_dir / f"{identity.stem}.pid"))
        link = RedisLink(
            connect(settings.redis_address, identity.instance),
            Keys(),
            breakers.make("redis", RedisConnectionError),
            settings.redis_partitions,
        )
        control = OperatorOverrides(identity.component, min_priority=least)
        traces = [cleanup.enter_context(closing(each)) for each in _traces(settings, identity)]
        ops = open_ops(identity, names, breakers.snapshots, control, *traces)
        breakers.tell(ops.observe)
        configure_logs(identity, settings.log_dir, settings.log_level, settings.log_format, ops.metrics.count_log)
        front = Front(breakers, control, LogLevel(settings.log_level))
        front.pings["redis"] = partial(check_writable, link)
        token = ops_token(settings.ops_token_file)
        endpoints = serve(
            ops.status,
            ops.metrics,
            settings.ops_host,
            _port(settings.ops_port, OPS_PORT + offset),
            _port(settings.metrics_port, METRICS_PORT + offset),
            admin=Admin(token, front.desk(), settings.log_dir, identity.instance, ops.observe),
        )
        cleanup.callback(endpoints.close)
        address = settings.pid_dir / f"{identity.stem}.json"
        urls = {"ops_url": endpoints.ops_url, "metrics_url": endpoints.metrics_url}
        write_private(address, json.dumps({"pid": os.getpid(), **urls}))
        cleanup.callback(address.unlink, missing_ok=True)
        write_target(identity.stem, identity.component, endpoints.metrics_url)
        cleanup.callback(remove_target, identity.stem)
        stop = StopSignal()
        handle_signals(stop, ops.observe)
        body = build(Parts(settings, identity, ops, link, breakers, stop, control, front))
        gc.freeze()  # what is there now stays: no collection need look at it
        mark = partial(ledger_fingerprint, settings.database_url)
        refusals: list[EmailIngestionError] = []

        def refuse(error: ConfigurationError) -> None:
            refusals.append(error)
            stop.request("this Redis is not for these settings")

        collector = Collector(
            link, ops, identity, endpoints.ops_url, settings.pid_dir, control=control, ledger=mark, refuse=refuse
        )
        cleanup.enter_context(closing(collector))
        collector.start()
        backups = BackupWatch(settings.backup_dir, ops.observe)
        cleanup.enter_context(closing(backups))
        backups.start()
        watchdog = Watchdog(
            ops.status.loops.stalled, ops.observe, lambda: notify_systemd(notify_socket(), "WATCHDOG=1")
        )
        cleanup.enter_context(closing(watchdog))
        watchdog.start()
        ops.observe(Started(settings.origin))
        notify_systemd(notify_socket(), "READY=1")
        return _until_done(body, stop, ops, settings.stop_seconds, refusals, hung=hung)


def _traces(settings: Settings, identity: Identity) -> Iterator[Traces]:
    """The observer that tells spans, where somebody collects them."""
    if settings.otel_exporter_otlp_endpoint:
        try:
            from email_ingestion.ops.traces import Traces  # noqa: PLC0415 - an extra
        except ImportError as error:
            needed = "OTEL_EXPORTER_OTLP_ENDPOINT needs OpenTelemetry: pip install 'email-ingestion[otel]'"
            raise ConfigurationError(needed) from error
        yield Traces(settings.otel_exporter_otlp_endpoint, identity)


def common_loops() -> dict[str, float]:
    """The loops every process has, with their allowed silence in seconds."""
    return {COLLECT: COLLECT_SILENCE}


def common_folders(settings: Settings) -> dict[str, Path]:
    """The folders every process writes to or an operator relies on."""
    return {"data": DATA_DIR, "logs": settings.log_dir, "backups": settings.backup_dir}


def _port(chosen: int | None, usual: int) -> int:
    return usual if chosen is None else chosen


def _until_done(
    body: Body,
    stop: StopSignal,
    ops: Ops,
    stop_seconds: float,
    fatal: list[EmailIngestionError],
    *,
    hung: list[Body],
) -> int:
    """Run the body in a thread of its own, so that the main thread is free for signals.

    Raises the first of `fatal`, to which others may add before they request the stop. A body that does not end in time
    is left as it is, and added to `hung`.
    """
    codes: list[int] = []

    def run() -> None:
        try:
            codes.append(body.run())
        except EmailIngestionError as error:
            fatal.append(error)
        finally:
            stop.request("finished")

    thread = threading.Thread(target=run, name="body", daemon=True)
    thread.start()
    while not stop.wait(3600):
        pass
    notify_systemd(notify_socket(), "STOPPING=1")
    ops.observe(Stopping(stop.reason or ""))
    deadline = time.monotonic() + stop_seconds
    body.stop()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
        body.abandon()
        codes.append(0)
        if not fatal:
            hung.append(body)
    ops.observe(Stopped())
    if fatal:
        raise fatal[0]
    return codes[0] if codes else 1
