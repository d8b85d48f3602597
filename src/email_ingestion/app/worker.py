"""Builds and runs the worker: its loop, a dispatcher for every sink beyond the database, and the probe of all sinks."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import cast

from email_ingestion.app.consumer_proof import ConsumerProver
from email_ingestion.app.runner import ProcessContext, ProcessRunner, common_folders, common_loops, identify
from email_ingestion.background import PeriodicThread, wait_out_shortages
from email_ingestion.blobs import open_blobs
from email_ingestion.breaker import Breaker
from email_ingestion.errors import SinkFailed, SinkUnavailable, TransientError
from email_ingestion.events import LedgerWentBack, LoopFailed, LoopTick, OutdatedRecordsCounted, VolumeCounted
from email_ingestion.ledger.record_updates import RecordChoice
from email_ingestion.ledger.store import Ledger
from email_ingestion.ops.status_collector import probe
from email_ingestion.ops.status_records import Names
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.routing import Router
from email_ingestion.settings import Settings
from email_ingestion.sinks import ChangeSink, Sink, close_sink, load_sink, ping_sink
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.stream import Consumer, DeadLetterQueue, SyntheticMessages
from email_ingestion.stream.codec import MAX_INLINE_BYTES
from email_ingestion.worker import SinkDispatcher, Worker
from email_ingestion.worker.change_dispatcher import ChangeDispatcher, changes_loop
from email_ingestion.worker.loop import LOOP
from email_ingestion.worker.processor import BatchProcessor
from email_ingestion.worker.sink_dispatcher import loop_name

DATABASE = "database"
PROBE = "probe"
PROBE_SECONDS = 10.0
OPEN_SECONDS = 2.0  # between two attempts to open a sink that is away
OUTDATED = "outdated"
VOLUME = "volume"
VOLUME_SECONDS = 300.0
CHANGES = "changes"
NUMBER_SECONDS = 1.0  # between two looks for changes without a number
REMOVE_SECONDS = 3_600.0  # between two removals of changes that are too old
OUTDATED_SECONDS = 60.0  # between two counts of the records that an older parser made
DRAIN_SECONDS = 0.1  # between two checks whether a draining worker's sinks have everything
LOOP_SILENCE = 120.0


def run_worker(settings: Settings, number: int, *, drain: bool, min_priority: int = 0) -> int:
    """Run the `number`-th worker of this host until it is stopped or has drained the stream; return the exit code."""
    other_sinks = settings.sinks[1:]
    flow = _sink_loops(settings)
    names = Names(
        # With other sinks "no sink is usable" would wait for all of them: without the database nothing moves.
        dependencies={"redis": True} | dict.fromkeys(settings.sinks, False) | {DATABASE: bool(other_sinks)},
        loops=common_loops() | dict.fromkeys((LOOP, PROBE, *flow), LOOP_SILENCE),
        sinks=settings.sinks,
        breakers=("redis", *settings.sinks, *_change_loops(settings)),
        stream="{email_ingestion}:stream",
        dlq="{email_ingestion}:dlq",
        folders=common_folders(settings),
        main_loop=LOOP,
        flow=flow,
    )
    build = partial(WorkerService, drain=drain)
    return ProcessRunner(settings, identify("worker", number), names, build, min_priority=min_priority).run()


def _sink_loops(settings: Settings) -> tuple[str, ...]:
    return (*map(loop_name, settings.sinks[1:]), *_change_loops(settings))


def _change_loops(settings: Settings) -> tuple[str, ...]:
    return tuple(changes_loop(name) for name in settings.sinks[1:] if settings.changes_told(name))


class WorkerService:
    """The worker's loop and its sinks. It waits for a sink that is away at the start."""

    def __init__(self, context: ProcessContext, *, drain: bool) -> None:
        self._context = context
        self._drain = drain
        self._closing = threading.Event()
        self._worker: Worker | None = None
        self._probe = PeriodicThread(
            PROBE, PROBE_SECONDS, self._ping_sinks, immediate=True, on_error=self._probe_failed
        )
        self._outdated = PeriodicThread(
            OUTDATED, OUTDATED_SECONDS, self._count_outdated, immediate=True, on_error=self._count_failed
        )
        self._prover = ConsumerProver(context.settings, context.link, context.ops.observe)
        self._volume = PeriodicThread(
            VOLUME, VOLUME_SECONDS, self._count_volume, immediate=True, on_error=self._volume_failed
        )
        self._changes = PeriodicThread(
            CHANGES,
            NUMBER_SECONDS,
            self._keep_changes,
            immediate=True,
            on_error=lambda error: context.ops.observe(LoopFailed(CHANGES, error, NUMBER_SECONDS)),
        )
        self._changes_removed_at = -REMOVE_SECONDS
        self._router = Router(context.settings.routes, context.settings.sinks[1:])
        self._dispatchers: list[SinkDispatcher] = []
        self._suspects = threading.Lock()  # of messages that may have killed a worker one is handled at a time
        self._change_dispatchers: list[ChangeDispatcher] = []
        self._count_loss = context.link.script("count_loss")
        self._sinks: dict[str, Sink] = {}
        self._breakers = {
            name: context.breakers.add(name, SinkUnavailable, SinkFailed) for name in context.settings.sinks
        }
        self._change_breakers = {
            name: context.breakers.add(changes_loop(name), SinkUnavailable, SinkFailed)
            for name in context.settings.sinks[1:]
            if context.settings.changes_told(name)
        }
        self._blobs = open_blobs(context.settings.blob_url)
        self._parser = IsolatedParser(context.settings.worker_handle_timeout_seconds)
        context.admin_actions.pings |= {name: partial(self._ping, name) for name in context.settings.sinks}
        self._open_sinks()

    def run(self) -> int:
        """Work until `stop` is called or the stream is drained; return the exit code."""
        while not self._open_sinks():
            self._tick_all()
            if self._closing.wait(OPEN_SECONDS):
                return 0
        self._worker = worker = wait_out_shortages(self._build, self._report_shortage)
        self._context.admin_actions.is_idle = lambda: worker.is_paused
        if self._closing.is_set():
            return 0
        self._probe.start()
        self._outdated.start()
        self._volume.start()
        self._changes.start()
        if not self._drain:
            self._prover.start()
        for each in self._all_dispatchers:
            each.start()
        if self._drain:
            self._worker.drain()
            self._await_deliveries()
        else:
            self._worker.run()
        self._worker.unregister()
        self._parser.close()
        for each in self._all_dispatchers:
            each.stop()
        for each in self._all_dispatchers:
            each.join()
        for sink in self._sinks.values():
            close_sink(sink)
        return 0

    @property
    def _all_dispatchers(self) -> list[SinkDispatcher | ChangeDispatcher]:
        return [*self._dispatchers, *self._change_dispatchers]

    def _tick_all(self) -> None:
        """Tell that nothing is stalled: the other loops begin when all sinks are open."""
        for loop in (LOOP, PROBE, *_sink_loops(self._context.settings)):
            self._context.ops.observe(LoopTick(loop))

    def _report_shortage(self, error: Exception) -> None:
        self._tick_all()
        self._context.ops.observe(LoopFailed(LOOP, error))

    def _await_deliveries(self) -> None:
        """Wait until every sink has its pending deliveries."""
        waiting = self._all_dispatchers
        while waiting and not self._closing.wait(DRAIN_SECONDS):
            self._context.ops.observe(LoopTick(LOOP))
            with suppress(TransientError):
                waiting = [dispatcher for dispatcher in waiting if not dispatcher.done()]

    def _wake_dispatchers(self) -> None:
        for dispatcher in self._dispatchers:
            dispatcher.wake()

    def stop(self) -> None:
        """End the loop after the batch in progress."""
        self._closing.set()
        self._probe.close()
        self._outdated.close()
        self._volume.close()
        self._changes.close()
        self._prover.close()
        if self._worker:
            self._worker.stop()

    def abandon(self) -> None:
        """Give up the place in the consumer group: other workers take over at once."""
        if self._worker:
            self._worker.unregister()

    def _open_sinks(self) -> bool:
        """Open the sinks that are not open yet; return False while one is away. Raises ConfigurationError."""
        for name in self._context.settings.sinks:
            if name in self._sinks:
                continue
            with suppress(SinkUnavailable):
                probe(self._context.ops, name, partial(self._open, name))
        return len(self._sinks) == len(self._context.settings.sinks)

    def _open(self, name: str) -> None:
        sink = self._breakers[name].run(partial(load_sink, name, self._context.settings))
        if isinstance(sink, DatabaseSink):
            sink.on_loss = self._tell_loss
        self._sinks[name] = sink

    def _tell_loss(self, email_id: str) -> None:
        """Have the producers compare their mailboxes with the database, which lost what was recorded."""
        link = self._context.link
        link.call(lambda: self._count_loss(keys=[link.keys.ledger_losses]))
        self._context.ops.observe(LedgerWentBack(f"it had {email_id}", "it has not"))

    def _ping(self, name: str) -> None:
        if name not in self._sinks:
            raise SinkUnavailable(f"sink {name} could not be opened yet")
        ping_sink(self._sinks[name])

    def _build(self) -> Worker:
        context = self._context
        settings = context.settings
        consumer = Consumer(
            context.link,
            context.identity.instance,
            settings.worker_lease_seconds,
            max(MAX_INLINE_BYTES, settings.blob_threshold_bytes),
        )
        self._dispatchers = [self._dispatcher(name) for name in settings.sinks[1:]]
        self._change_dispatchers = [
            self._change_dispatcher(name, breaker) for name, breaker in self._change_breakers.items()
        ]
        processor = BatchProcessor(
            consumer,
            self._sinks[DATABASE],
            self._breakers[DATABASE],
            self._blobs,
            self._parser,
            synthetic=SyntheticMessages(context.link),
            further_sinks=settings.sinks[1:],
            router=self._router,
            on_recorded=self._wake_dispatchers,
            max_retries=settings.worker_max_retries,
            blocked=context.overrides.blocking_pattern,
            instance=context.identity.instance,
            observe=context.ops.observe,
        )
        context.admin_actions.revoke_message = lambda email_id: any(
            [processor.revoke(email_id), *(dispatcher.revoke(email_id) for dispatcher in self._dispatchers)]
        )
        return Worker(
            consumer,
            processor,
            batch=lambda: context.overrides.batch_size(settings.worker_batch_size),
            lease=settings.worker_lease_seconds,
            paused=context.overrides.active_pause,
            min_priority=lambda: context.overrides.min_priority,
            suspects=self._suspects,
            observe=context.ops.observe,
        )

    def _dispatcher(self, name: str) -> SinkDispatcher:
        context = self._context
        return SinkDispatcher(
            name,
            self._sinks[name],
            self._breakers[name],
            ledger=self._ledger(),
            blobs=self._blobs,
            dead_letters=DeadLetterQueue(context.link),
            paused=partial(self._is_sink_paused, name),
            batch=context.settings.worker_batch_size,
            lease=context.settings.worker_lease_seconds,
            timeout=context.settings.sink_timeout,
            max_retries=context.settings.worker_max_retries,
            instance=context.identity.instance,
            suspects=self._suspects,
            observe=context.ops.observe,
        )

    def _change_dispatcher(self, name: str, breaker: Breaker) -> ChangeDispatcher:
        context = self._context
        return ChangeDispatcher(
            name,
            cast("ChangeSink", self._sinks[name]),
            breaker,
            kinds=context.settings.changes_told(name),
            ledger=self._ledger(),
            paused=partial(self._is_sink_paused, name),
            lease=context.settings.worker_lease_seconds,
            max_retries=context.settings.worker_max_retries,
            instance=context.identity.instance,
            observe=context.ops.observe,
        )

    def _is_sink_paused(self, name: str) -> bool:
        overrides = self._context.overrides
        return bool(overrides.active_pause() or overrides.is_at_or_below("MINIMAL") or overrides.is_sink_paused(name))

    def _keep_changes(self) -> None:
        """Number what was committed, for readers that ask the database itself, and remove what is too old."""
        with suppress(TransientError):
            feed = self._ledger().changes
            feed.number_all()
            if time.monotonic() - self._changes_removed_at >= REMOVE_SECONDS:
                feed.remove_before(datetime.now(UTC) - timedelta(days=self._context.settings.changes_keep_days))
                self._changes_removed_at = time.monotonic()

    def _count_outdated(self) -> None:
        """Count what `reparse` would look at."""
        count = None
        with suppress(TransientError):
            count = self._ledger().records.count(RecordChoice())
        self._context.ops.observe(OutdatedRecordsCounted(count))

    def _count_failed(self, error: Exception) -> None:
        self._context.ops.observe(OutdatedRecordsCounted(None))
        self._context.ops.observe(LoopFailed(OUTDATED, error, OUTDATED_SECONDS))

    def _count_volume(self) -> None:
        """Compare the mail of the last hour with the same hour of past weeks."""
        arrived = None
        with suppress(TransientError):
            stored = [row.name for row in self._ledger().accounts.rows()]
            names = dict.fromkeys((*(account.name for account in self._context.settings.all_accounts), *stored))
            volumes = self._ledger().statistics.volume(list(names), datetime.now(UTC))
            arrived = {name: (each.arrived, each.expected) for name, each in volumes.items()}
        self._context.ops.observe(VolumeCounted(arrived))

    def _volume_failed(self, error: Exception) -> None:
        self._context.ops.observe(VolumeCounted(None))
        self._context.ops.observe(LoopFailed(VOLUME, error, VOLUME_SECONDS))

    def _ledger(self) -> Ledger:
        database = self._sinks[DATABASE]
        assert isinstance(database, DatabaseSink)  # noqa: S101 - the name is ours
        return database.ledger

    def _ping_sinks(self) -> None:
        """Ping the sinks, so that an idle worker knows whether they work."""
        try:
            for name, sink in self._sinks.items():
                with suppress(TransientError):
                    probe(self._context.ops, name, partial(self._breakers[name].run, partial(ping_sink, sink)))
        finally:
            self._context.ops.observe(LoopTick(PROBE))

    def _probe_failed(self, error: Exception) -> None:
        self._context.ops.observe(LoopFailed(PROBE, error, PROBE_SECONDS))
