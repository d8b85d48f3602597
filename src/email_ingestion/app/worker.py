"""Builds the worker: the queue, the database, a courier for each further sink, and the thread that pings them all."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial

from email_ingestion.app.collect import probe
from email_ingestion.app.runner import Breakers, Parts, common_folders, common_loops, identify, run_process
from email_ingestion.blobs import open_blobs
from email_ingestion.errors import SinkFailed, SinkUnavailable, TransientError
from email_ingestion.events import LoopTick
from email_ingestion.ops.status_records import Names
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.routing import Router
from email_ingestion.settings import Settings
from email_ingestion.sinks import Sink, close_sink, load_sink
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.stream import Consumer, DeadLetterQueue, SyntheticMessages
from email_ingestion.worker import SinkDispatcher, Worker
from email_ingestion.worker.loop import LOOP
from email_ingestion.worker.processor import BatchProcessor
from email_ingestion.worker.sink_dispatcher import loop_name

DATABASE = "database"
PROBE = "probe"
PROBE_SECONDS = 10.0
OPEN_AGAIN_SECONDS = 2.0
COURIER_SECONDS = 0.1  # between looks whether a draining worker's sinks have everything
LOOP_SILENCE = 120.0


def run_worker(settings: Settings, number: int, *, drain: bool, least: int = 0) -> int:
    """Run the `number`-th worker of this host until it is stopped or has drained the stream; returns the exit code."""
    breakers = Breakers(settings)
    further = settings.sinks[1:]
    loops = (LOOP, PROBE, *map(loop_name, further))
    names = Names(
        # With further sinks "no sink is usable" would wait for all: without the database nothing moves.
        dependencies={"redis": True} | dict.fromkeys(settings.sinks, False) | {DATABASE: bool(further)},
        loops=common_loops() | dict.fromkeys(loops, LOOP_SILENCE),
        sinks=settings.sinks,
        breakers=("redis", *settings.sinks),
        stream="{email_ingestion}:stream",
        dlq="{email_ingestion}:dlq",
        folders=common_folders(settings),
    )
    build = partial(WorkerBody, drain=drain)
    return run_process(settings, identify("worker", number), names, breakers, build, least=least)


class WorkerBody:
    """The worker's loop and its sinks. A sink that is away at the start is waited for."""

    def __init__(self, parts: Parts, *, drain: bool) -> None:
        self._parts = parts
        self._drain = drain
        self._closing = threading.Event()
        self._worker: Worker | None = None
        self._router = Router(parts.settings.routes, parts.settings.sinks[1:])
        self._couriers: list[SinkDispatcher] = []
        self._sinks: dict[str, Sink] = {}
        self._breakers = {name: parts.breakers.make(name, SinkUnavailable, SinkFailed) for name in parts.settings.sinks}
        self._blobs = open_blobs(parts.settings.blob_url)
        self._parser = IsolatedParser(parts.settings.worker_handle_timeout_seconds)
        parts.front.pings |= {name: partial(self._ping, name) for name in parts.settings.sinks}
        self._open_sinks()

    def run(self) -> int:
        """See `Body`."""
        while not self._open_sinks():
            self._parts.ops.observe(LoopTick(LOOP))
            if self._closing.wait(OPEN_AGAIN_SECONDS):
                return 0
        self._worker = worker = self._build()
        self._parts.front.at_rest = lambda: worker.at_rest
        if self._closing.is_set():
            return 0
        threading.Thread(target=self._probe, name=PROBE, daemon=True).start()
        for courier in self._couriers:
            courier.start()
        if self._drain:
            self._worker.drain()
            self._await_couriers()
        else:
            self._worker.run()
        self._worker.unregister()
        self._parser.close()
        for courier in self._couriers:
            courier.stop()
        for courier in self._couriers:
            courier.join()
        for sink in self._sinks.values():
            close_sink(sink)
        return 0

    def _await_couriers(self) -> None:
        """Until every sink has what it is owed."""
        waiting = list(self._couriers)
        while waiting and not self._closing.wait(COURIER_SECONDS):
            self._parts.ops.observe(LoopTick(LOOP))
            with suppress(TransientError):
                waiting = [courier for courier in waiting if not courier.done()]

    def _wake_couriers(self) -> None:
        for courier in self._couriers:
            courier.wake()

    def stop(self) -> None:
        """See `Body`."""
        self._closing.set()
        if self._worker:
            self._worker.stop()

    def abandon(self) -> None:
        """See `Body`."""
        if self._worker:
            self._worker.unregister()

    def _open_sinks(self) -> bool:
        """Open those that are not open yet; False while one is away. Raises ConfigurationError."""
        for name in self._parts.settings.sinks:
            if name in self._sinks:
                continue
            with suppress(SinkUnavailable):
                probe(self._parts.ops, name, partial(self._open, name))
        return len(self._sinks) == len(self._parts.settings.sinks)

    def _open(self, name: str) -> None:
        self._sinks[name] = self._breakers[name].run(partial(load_sink, name, self._parts.settings))

    def _ping(self, name: str) -> None:
        if name not in self._sinks:
            raise SinkUnavailable(f"sink {name} could not be opened yet")
        self._sinks[name].ping()

    def _build(self) -> Worker:
        parts = self._parts
        settings = parts.settings
        queue = Consumer(parts.link, parts.identity.instance, settings.worker_lease_seconds)
        self._couriers = [self._courier(name) for name in settings.sinks[1:]]
        settlement = BatchProcessor(
            queue,
            self._sinks[DATABASE],
            self._breakers[DATABASE],
            self._blobs,
            self._parser,
            rehearsals=SyntheticMessages(parts.link),
            further=settings.sinks[1:],
            router=self._router,
            recorded=self._wake_couriers,
            max_retries=settings.worker_max_retries,
            instance=parts.identity.instance,
            observe=parts.ops.observe,
        )
        parts.front.revoke = settlement.revoke
        return Worker(
            queue,
            settlement,
            batch=settings.worker_batch_size,
            lease=settings.worker_lease_seconds,
            paused=parts.control.active_pause,
            least=lambda: parts.control.min_priority,
            observe=parts.ops.observe,
        )

    def _courier(self, name: str) -> SinkDispatcher:
        parts = self._parts
        database = self._sinks[DATABASE]
        assert isinstance(database, DatabaseSink)  # noqa: S101 - the name is ours
        return SinkDispatcher(
            name,
            self._sinks[name],
            self._breakers[name],
            ledger=database.ledger,
            blobs=self._blobs,
            dead_letters=DeadLetterQueue(parts.link),
            paused=lambda: parts.control.active_pause() or parts.control.is_at_or_below("MINIMAL"),
            batch=parts.settings.worker_batch_size,
            lease=parts.settings.worker_lease_seconds,
            max_retries=parts.settings.worker_max_retries,
            instance=parts.identity.instance,
            observe=parts.ops.observe,
        )

    def _probe(self) -> None:
        """Ping the sinks now and then, so that an idle worker knows whether they are there."""
        while not self._closing.is_set():
            for name, sink in self._sinks.items():
                with suppress(TransientError):
                    probe(self._parts.ops, name, partial(self._breakers[name].run, sink.ping))
            self._parts.ops.observe(LoopTick(PROBE))
            self._closing.wait(PROBE_SECONDS)
