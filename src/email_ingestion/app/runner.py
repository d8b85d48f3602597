"""Runs one process: startup, main loop, shutdown. Its service, the producer or the worker, does the work."""

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
from typing import TYPE_CHECKING, Protocol, TypeVar

from email_ingestion import __version__
from email_ingestion.atomic_files import write_private
from email_ingestion.background import start_thread, stop_waiting_for_threads, wait_out_shortages
from email_ingestion.backup.archive import backup_monitor
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
from email_ingestion.erasure.tombstones import refuse_unfinished_restore
from email_ingestion.errors import (
    ConfigurationError,
    EmailIngestionError,
    OperationFailed,
    RedisConnectionError,
    ThreadUnavailable,
)
from email_ingestion.events import Event, KeySetAside, LoopFailed, LoopRecovered, Observe, Started, Stopped, Stopping
from email_ingestion.file_modes import open_to_others, repair_modes
from email_ingestion.ledger.fingerprint import ledger_fingerprint
from email_ingestion.name_lookup import limit_lookups
from email_ingestion.ops.admin import Admin, AdminActions, ops_token
from email_ingestion.ops.http_server import serve
from email_ingestion.ops.incident_opener import IncidentOpener
from email_ingestion.ops.logs import LogLevel, configure_logs, logger, reopen_logs
from email_ingestion.ops.observers import Ops, open_ops
from email_ingestion.ops.peers import address_proof
from email_ingestion.ops.prometheus_targets import remove_target, write_target
from email_ingestion.ops.raw_output import RawOutput
from email_ingestion.ops.redaction import describe_unforeseen
from email_ingestion.ops.request_guard import AllowedHosts
from email_ingestion.ops.sockets import METRICS_PORT, OPS_PORT
from email_ingestion.ops.start_journal import record_start
from email_ingestion.ops.status_collector import LOOP as COLLECT
from email_ingestion.ops.status_collector import StatusCollector
from email_ingestion.ops.status_records import Component, Identity, Names
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.settings import Settings, load_settings, notify_socket, secret_files
from email_ingestion.settings.plaintext import plaintext_connections
from email_ingestion.stream import Keys, RedisLink, check_writable, connect

if TYPE_CHECKING:
    from email_ingestion.ops.traces import Traces

T = TypeVar("T")

START = "start"  # as a loop that fails, while it lacks what it needs
COLLECT_SILENCE = 30.0
DATA_DIR = Path("data")
PID_DIR = Path("pids")


class Service(Protocol):
    """The work of a process: `app.producer.ProducerService` or `app.worker.WorkerService`."""

    def run(self) -> int:
        """Work until all is done or `stop` is called; return the exit code."""

    def stop(self) -> None:
        """Finish the work in progress and return from `run`. May be called from any thread."""

    def abandon(self) -> None:
        """Give back what can be given back: `run` did not return in time."""


class BreakerRegistry:
    """All circuit breakers of a process, by name."""

    def __init__(self, settings: Settings) -> None:
        self._policy = BreakerPolicy(settings.cb_fail_max, settings.cb_recovery_timeout, settings.cb_success_threshold)
        self._breakers: dict[str, Breaker] = {}
        self._observers: list[Callable[[Event], None]] = []

    def add(self, name: str, *counted: type[Exception], open_from_start: bool = False) -> Breaker:
        """Make a breaker that counts the errors `counted`."""
        self._breakers[name] = Breaker(name, self._policy, counted, self._announce, open_from_start=open_from_start)
        return self._breakers[name]

    def remove(self, name: str) -> None:
        """Forget a breaker that nothing uses any more."""
        self._breakers.pop(name, None)

    def get(self, name: str) -> Breaker:
        """Return the breaker of this name. Raises OperationFailed."""
        if name not in self._breakers:
            raise OperationFailed(f"there is no circuit breaker {name!r} here; there are {', '.join(self._breakers)}")
        return self._breakers[name]

    def subscribe(self, observe: Callable[[Event], None]) -> None:
        """Announce changes to `observe` from now on."""
        self._observers.append(observe)

    def snapshots(self) -> list[BreakerSnapshot]:
        """Return all breakers as `/status` shows them."""
        return [breaker.snapshot() for breaker in list(self._breakers.values())]

    def _announce(self, event: Event) -> None:
        for observe in self._observers:
            observe(event)


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """The parts of a process that its service is built from."""

    settings: Settings
    identity: Identity
    ops: Ops
    ops_url: str
    link: RedisLink
    breakers: BreakerRegistry
    overrides: OperatorOverrides
    admin_actions: AdminActions


def identify(component: Component, number: int = 1, folder: Path = PID_DIR) -> Identity:
    """Name the process among all others; the name is its consumer name too, so it is the same after a restart.

    A second producer of a host has another `folder` for its PID file, and its name.
    """
    suffix = f"-{number}" if component == "worker" else ("" if folder == PID_DIR else f"-{folder.name}")
    return Identity(component, f"{socket.gethostname()}-{component}{suffix}", __version__, number)


def common_loops() -> dict[str, float]:
    """Return the loops that every process has, with their allowed silence in seconds."""
    return {COLLECT: COLLECT_SILENCE}


def common_folders(settings: Settings) -> dict[str, Path]:
    """Return the folders that every process writes to, or that an operator relies on."""
    return {"data": DATA_DIR, "logs": settings.log_dir, "backups": settings.backup_dir}


class ProcessRunner:
    """Runs one process from its PID file to its exit code. `build` makes the service once all else is up."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        names: Names,
        build: Callable[[ProcessContext], Service],
        *,
        min_priority: int = 0,
    ) -> None:
        """A worker leaves mail below `min_priority` in the stream."""
        self._settings = settings
        self._identity = identity
        self._names = names
        self._breakers = BreakerRegistry(settings)
        self._build = build
        self._min_priority = min_priority
        self._stop = StopSignal(stop_waiting_for_threads)
        self._exit_codes: list[int] = []
        self._errors: list[EmailIngestionError] = []  # the process ends with the first of them
        self._hung = False

    def run(self) -> int:
        """Run the process to its end; return its exit code.

        Raises ConfigurationError and OperationFailed when only an operator can help.
        """
        use_one_malloc_arena()
        raise_descriptor_limit()
        limit_lookups()
        refuse_unfinished_restore(self._settings.erasure_dir)
        with ExitStack() as cleanup:
            # A call that hangs in a library would hold up the interpreter's end: leave when all else is cleaned up.
            cleanup.callback(lambda: os._exit(0) if self._hung else None)
            try:
                context = self._start_up(cleanup)
                start = cleanup.enter_context(record_start(self._settings.log_dir, self._identity))
                service = self._patiently(partial(self._build, context), context)
                gc.freeze()  # the objects that exist now stay: no collection need visit them
                gc.enable()
                self._start_threads(context, cleanup)
            except (ThreadUnavailable, OSError, MemoryError):
                if self._stop.is_set():  # it was requested while there was nothing to spare
                    return 0
                raise
            context.ops.observe(Started(self._settings.origin))
            notify_systemd(notify_socket(), "READY=1")
            thread = self._start_service(service, context.ops.observe)
            self._wait_for_stop()
            start.reason = self._stop.reason
            start.exit_code = self._shut_down(service, thread, context.ops)
            return start.exit_code

    # -- startup

    def _start_up(self, cleanup: ExitStack) -> ProcessContext:
        """Take the PID file and serve the endpoints, before anything contacts a dependency."""
        settings, identity = self._settings, self._identity
        cleanup.enter_context(PidFile(settings.pid_dir / f"{identity.stem}.pid"))
        link = RedisLink(
            connect(settings.redis_address, identity.instance),
            Keys(),
            self._breakers.add("redis", RedisConnectionError),
            settings.redis_partitions,
        )
        overrides = OperatorOverrides(identity.component, min_priority=self._min_priority)
        traces = [cleanup.enter_context(closing(observer)) for observer in _traces(settings, identity)]
        ops = open_ops(identity, self._names, self._breakers.snapshots, overrides, *traces)
        self._breakers.subscribe(ops.observe)
        link.on_set_aside = lambda each: ops.observe(KeySetAside(each.key, each.kind, each.belongs, each.moved_to))
        repair_modes((*common_folders(settings).values(), settings.pid_dir))
        configure_logs(identity, settings.log_dir, settings.log_level, settings.log_format, ops.metrics.count_log)
        _announce_dead_threads(ops.observe)
        output = cleanup.enter_context(
            closing(RawOutput(settings.log_dir, identity.stem, partial(_report_failure, ops.observe, "output")))
        )
        log_level = LogLevel(settings.log_level)
        reload = partial(self._reload, output, log_level)
        handle_signals(self._stop, ops.observe, lambda: output.crash_file, reload)  # before any thread is waited for
        output.start()
        for path, mode in open_to_others(secret_files(settings)):
            logger("process").warning("secret_open_to_others", path=str(path), mode=f"{mode:04o}")
        for plain in plaintext_connections(settings):
            logger("process").warning(
                "plaintext_connection", setting=plain.setting, host=plain.host, exposed=plain.exposed
            )
        actions = AdminActions(self._breakers.get, overrides, log_level, IncidentOpener(ops.observe))
        actions.pings["redis"] = partial(check_writable, link)
        ops_url = self._serve(ops, actions, cleanup)  # from here on others know it, and may stop it
        return ProcessContext(settings, identity, ops, ops_url, link, self._breakers, overrides, actions)

    def _reload(self, output: RawOutput, log_level: LogLevel) -> str:
        """Open the logs again and take over LOG_LEVEL; return what was done, and which settings need a restart."""
        reopen_logs()
        output.reopen()
        try:
            settings = load_settings()
        except ConfigurationError as error:
            return f"logs were opened again, settings stay as they are: {error}"
        log_level.configure(settings.log_level)
        names = sorted(Settings.model_fields.keys() - {"log_level"})
        changed = [name.upper() for name in names if getattr(settings, name) != getattr(self._settings, name)]
        rest = f"; changed too, but needs a restart: {', '.join(changed)}" if changed else ""
        return f"logs were opened again, LOG_LEVEL is {settings.log_level}{rest}"

    def _serve(self, ops: Ops, actions: AdminActions, cleanup: ExitStack) -> str:
        """Serve the endpoints and write their addresses for other processes and Prometheus; return the ops URL."""
        settings, identity = self._settings, self._identity
        offset = identity.number if identity.component == "worker" else 0
        token, read_file = ops_token(settings.ops_token_file), settings.ops_read_token_file
        endpoints = serve(
            ops.status,
            ops.metrics,
            settings.ops_host,
            OPS_PORT + offset if settings.ops_port is None else settings.ops_port,
            METRICS_PORT + offset if settings.metrics_port is None else settings.metrics_port,
            admin=Admin(token, actions, settings.log_dir, identity.instance, ops.observe),
            hosts=AllowedHosts.of_machine(settings.ops_host, settings.ops_allowed_hosts),
            read_token=ops_token(read_file, "OPS_READ_TOKEN_FILE") if read_file else None,
            on_error=partial(_report_failure, ops.observe, "http"),
        )
        cleanup.callback(endpoints.close)
        address_file = settings.pid_dir / f"{identity.stem}.json"
        urls = {"ops_url": endpoints.ops_url, "metrics_url": endpoints.metrics_url}
        write_private(address_file, json.dumps({"pid": os.getpid(), **urls}))
        cleanup.callback(address_file.unlink, missing_ok=True)
        write_target(identity.stem, identity.component, endpoints.metrics_url)
        cleanup.callback(remove_target, identity.stem)
        return endpoints.ops_url

    def _patiently(self, make: Callable[[], T], context: ProcessContext) -> T:
        """Return what `make` returns when there is enough of what it needs; `/ready` says what is missing."""
        made = wait_out_shortages(make, partial(_report_failure, context.ops.observe, START))
        context.ops.observe(LoopRecovered(START))
        return made

    def _start_threads(self, context: ProcessContext, cleanup: ExitStack) -> None:
        settings, ops = self._settings, context.ops
        make_collector = partial(
            StatusCollector,
            context.link,
            ops,
            self._identity,
            context.ops_url,
            settings.pid_dir,
            overrides=context.overrides,
            ledger_fingerprint=partial(ledger_fingerprint, settings.database_url),
            refuse=self._refuse_redis,
            ended_orderly=lambda: not self._errors,
            ops_proof=address_proof(ops_token(read_file, "OPS_READ_TOKEN_FILE"), context.ops_url)
            if (read_file := settings.ops_read_token_file)
            else None,
        )
        collector = self._patiently(make_collector, context)
        heartbeat = partial(notify_systemd, notify_socket(), "WATCHDOG=1")
        watchdog = Watchdog(ops.status.loops.stalled, ops.observe, heartbeat)
        for thread in (collector, backup_monitor(settings.backup_dir, ops.observe), watchdog):
            cleanup.enter_context(closing(thread))
            thread.start()

    def _refuse_redis(self, error: ConfigurationError) -> None:
        self._errors.append(error)
        self._stop.request("this Redis is not for these settings")

    # -- main loop

    def _start_service(self, service: Service, observe: Observe) -> threading.Thread:
        """Run the service in a thread of its own: the main thread is for signals."""

        def run() -> None:
            try:
                self._exit_codes.append(service.run())
            except EmailIngestionError as error:
                self._errors.append(error)
            except Exception as error:
                self._errors.append(OperationFailed(f"{describe_unforeseen(error)}, which nobody foresaw; see the log"))
                raise
            finally:
                self._stop.request("finished")

        make = partial(threading.Thread, target=run, name="body", daemon=True)
        return start_thread(make, partial(_report_failure, observe, "body"), self._stop.is_set)

    def _wait_for_stop(self) -> None:
        while not self._stop.wait(3600):
            pass

    # -- shutdown

    def _shut_down(self, service: Service, thread: threading.Thread, ops: Ops) -> int:
        """Give the service STOP_SECONDS to end, then leave it as it is. Raises the first error of the process."""
        notify_systemd(notify_socket(), "STOPPING=1")
        ops.observe(Stopping(self._stop.reason or ""))
        deadline = time.monotonic() + self._settings.stop_seconds
        service.stop()
        if thread.is_alive():  # else it has ended, or there was none to spare before the stop
            thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            service.abandon()
            self._exit_codes.append(0)
            self._hung = not self._errors
        ops.observe(Stopped())
        if self._errors:
            raise self._errors[0]
        if self._exit_codes:
            return self._exit_codes[0]
        return 0 if thread.ident is None else 1


def _announce_dead_threads(observe: Observe) -> None:
    """Announce an exception that ends a thread, beside its log line: what the thread did, nobody does now."""
    log = threading.excepthook

    def announce(args: threading.ExceptHookArgs) -> None:
        log(args)
        if isinstance(args.exc_value, Exception):
            observe(LoopFailed(args.thread.name if args.thread else "thread", args.exc_value, retry_in=None))

    threading.excepthook = announce


def _report_failure(observe: Observe, loop: str, error: Exception) -> None:
    observe(LoopFailed(loop, error))


def _traces(settings: Settings, identity: Identity) -> Iterator[Traces]:
    """Yield the observer that sends spans, if a collector for them is configured. Raises ConfigurationError."""
    if settings.otel_exporter_otlp_endpoint:
        try:
            from email_ingestion.ops.traces import Traces  # noqa: PLC0415 - an extra
        except ImportError as error:
            needed = "OTEL_EXPORTER_OTLP_ENDPOINT needs OpenTelemetry: pip install 'email-ingestion[otel]'"
            raise ConfigurationError(needed) from error
        yield Traces(settings.otel_exporter_otlp_endpoint, identity)
