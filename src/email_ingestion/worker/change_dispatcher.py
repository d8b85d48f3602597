"""From the change feed to one sink, beside mail and never before it: read, tell, note down how far.

    held and due ──┐
                   ├──▶ by message, in order ──▶ the sink takes it ──▶ the position moves on
    feed, a part ──┘                              │
                          refused for good ◀── permanent, or attempts used up
                  held, and what follows it ◀── may work later: back-off
                   asked again, all of it ◀── the sink is away, or asks for a pause

One worker tells a sink at a time; the others wait for its lease to end. The breaker is not that of the sink's mail: a
receiver that fails over changes gets its mail all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import chain

from email_ingestion.background import START_SECONDS, BackgroundThread, start_thread
from email_ingestion.backoff import backoff
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    CircuitBreakerError,
    EmailIngestionError,
    PermanentError,
    Retry,
    SinkFailed,
    SinkThrottled,
    SinkUnavailable,
)
from email_ingestion.events import (
    ChangeBacklog,
    ChangeRefused,
    ChangesMissed,
    ChangesTold,
    LoopFailed,
    LoopTick,
    Observe,
)
from email_ingestion.ledger.change_feed import PAGE, ChangesGone, NumberedChange
from email_ingestion.ledger.outbox import LONGEST_WAIT, boot_time
from email_ingestion.ledger.store import Ledger
from email_ingestion.ledger.told_changes import HeldChange, ReaderClaim
from email_ingestion.records import ChangeEvent, ChangeKind
from email_ingestion.sinks import ChangeSink
from email_ingestion.worker.failure_attribution import NO_MESSAGE_AT_FAULT, Attribution, attribute_failures
from email_ingestion.worker.processor import is_available

LOOK_SECONDS = 1.0  # between two looks for changes where there was none
STANDBY_SECONDS = 5.0  # between two looks whether another worker still tells the sink
PART = 100  # changes after which the position moves: so many come again when the process is killed
HELD_SECONDS = 0.5  # after which it is asked again, before a change is told, whether the claim is ours
MAIL_SECONDS = 5.0  # until it is asked again whether the sink has a message of which a change waits
BACKLOG_SECONDS = 5.0
LONGEST_PAUSE = 30.0  # seconds between tries at a sink that takes nothing
TICK_SECONDS = 1.0


def changes_loop(sink: str) -> str:
    """Return the name of a dispatcher's loop, and of its breaker."""
    return f"{sink}:changes"


@dataclass(slots=True)
class _Untold:
    """A change that the sink is to be told."""

    event: ChangeEvent
    attempts: int = 0  # that failed
    held: bool = False  # it has a row of its own; else the position stands before it


_Result = tuple[_Untold, EmailIngestionError | None]


@dataclass(slots=True)
class _Outcome:
    """What became of a part, until it is written down."""

    taken: list[ChangeEvent] = field(default_factory=list)
    refused: list[ChangeEvent] = field(default_factory=list)
    held: list[HeldChange] = field(default_factory=list)


class ChangeDispatcher:
    """Tells one sink of changes on a thread of its own: `start`, `stop`, `join`."""

    def __init__(
        self,
        name: str,
        sink: ChangeSink,
        breaker: Breaker,
        *,
        kinds: Sequence[str],
        ledger: Ledger,
        paused: Callable[[], object],
        lease: float,
        max_retries: int,
        instance: str,
        observe: Observe,
    ) -> None:
        self._name = name
        self._loop = changes_loop(name)
        self._sink = sink
        self._breaker = breaker
        self._kinds = frozenset(kinds)
        self._feed = ledger.changes
        self._book = ledger.told_changes
        self._paused = paused
        self._lease = lease
        self._max_retries = max_retries
        self._instance = instance
        self._observe = observe
        self._parallel = max(0, getattr(sink, "parallel", 0))
        self._threads = BackgroundThread(f"changes {name}", parallel=max(1, self._parallel))
        self._claim: ReaderClaim | None = None
        self._claim_lock = threading.Lock()  # of the claim and the times beside it
        self._held_at = 0.0  # by `boot_time`: when it was certain that the claim is ours
        self._extended_at = 0.0
        self._decided: set[int] = set()  # numbers behind the position that were decided on already
        self._proven = True  # the sink has taken a change since it failed last
        self._throttled = threading.Event()
        self._failures = 0
        self._not_before = 0.0
        self._counted_at = -BACKLOG_SECONDS
        self._problem: str | None = None
        self._stopped = threading.Event()
        self._make_thread = partial(threading.Thread, target=self._run, name=self._loop, daemon=True)
        self._thread = self._make_thread()

    def start(self) -> None:
        """Start the thread."""
        self._thread = start_thread(self._make_thread, self._start_failed, self._stopped.is_set)

    def _start_failed(self, error: Exception) -> None:
        self._observe(LoopFailed(self._loop, error, START_SECONDS))

    def stop(self) -> None:
        """Tell no more; calls that run are finished."""
        self._stopped.set()

    def join(self) -> None:
        """Wait for the end."""
        if self._thread.is_alive():
            self._thread.join()

    def done(self) -> bool:
        """Whether the sink was told of everything that it takes."""
        self._feed.number_all()
        return self._book.backlog(self._name, self._kinds).waiting == 0

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._observe(LoopTick(self._loop))
            try:
                pause = self._run_once()
            except BaseException as error:  # noqa: BLE001 - the boundary: whatever it is, the loop goes on and reports it
                shown = error if isinstance(error, Exception) else SinkFailed(f"{type(error).__name__} in its loop")
                self._pause()
                self._observe(LoopFailed(self._loop, shown, self._not_before - time.monotonic()))
                pause = LOOK_SECONDS
            self._stopped.wait(pause)
        if self._claim:
            try:
                self._book.release(self._claim)
            except SinkUnavailable as error:
                self._observe(LoopFailed(self._loop, error, 0.0))

    def _run_once(self) -> float:
        """Tell a part; return the seconds until the next."""
        self._report_backlog()
        left = self._not_before - time.monotonic()
        if left > 0 or self._paused() or not is_available(self._sink, self._breaker):
            return min(LOOK_SECONDS, max(0.05, left))
        claim = self._hold_claim()
        if claim is None:
            return STANDBY_SECONDS
        self._feed.number()
        try:
            page = self._feed.read(claim.last_seq)
        except ChangesGone as gone:
            return self._tell_missed(claim, gone)
        wanted = [each for each in page.changes if each.kind in self._kinds]
        end = page.next_seq if len(wanted) <= PART else wanted[PART - 1].seq
        chains, outcome = self._chains(claim, wanted[:PART])
        if not (chains or outcome.held) and end == claim.last_seq:
            return LOOK_SECONDS
        self._tell(chains, end, outcome)
        return 0.0 if end < page.next_seq or len(page.changes) == PAGE else LOOK_SECONDS

    def _hold_claim(self) -> ReaderClaim | None:
        with self._claim_lock:
            now = boot_time()
            if self._claim and now - self._extended_at >= self._lease / 3:
                self._keep(self._book.extend(self._claim, self._lease), now)
            if self._claim is None:
                self._decided.clear()
                self._keep(self._book.claim(self._name, self._instance, self._lease), now)
            return self._claim

    def _keep(self, claim: ReaderClaim | None, now: float) -> None:
        self._claim, self._held_at, self._extended_at = claim, now, now

    def _is_held(self) -> bool:
        """Whether the claim is still ours, asked of the database where that is not certain; in the sink's threads.

        A process that was stopped for longer than its lease goes on where it was, and does not know.
        """
        with self._claim_lock:
            now = boot_time()
            if self._claim is None:
                return False
            if now - self._held_at < HELD_SECONDS:
                return True
            try:
                if now - self._extended_at >= self._lease / 3:
                    self._keep(self._book.extend(self._claim, self._lease), now)
                elif self._book.is_held(self._claim):
                    self._held_at = now
                else:
                    self._claim = None
            except SinkUnavailable:
                return now - self._held_at < self._lease / 2
            return self._claim is not None

    def _chains(self, claim: ReaderClaim, wanted: Sequence[NumberedChange]) -> tuple[list[list[_Untold]], _Outcome]:
        """Return the changes to be told, by message; others wait behind an earlier one, or for their message."""
        due = {each[0].event.email_id: each for each in self._book.due(claim.sink, PART)}
        new = [each for each in wanted if each.seq not in self._decided]
        ids = {each.email_id for each in new}
        states = self._book.delivery_states(claim.sink, ids | due.keys())
        notices = self._book.erasures_to_tell(claim.sink, ids)
        blocked = self._book.waiting_messages(claim.sink, ids - due.keys())
        outcome = _Outcome()
        chains: dict[str, list[_Untold]] = {}
        for email_id, held in due.items():
            if states.get(email_id) == "waiting":
                outcome.held += [HeldChange(each.event.seq, email_id, each.attempts, MAIL_SECONDS) for each in held]
                blocked.add(email_id)
            else:
                chains[email_id] = [_Untold(each.event, each.attempts, held=True) for each in held]
        for each in new:
            email_id = each.email_id
            gone = email_id in notices  # erased here, and the sink had it
            if not gone and (email_id not in states or each.kind is ChangeKind.ERASED):
                continue  # the sink did not get this message, or was told by another way that it was erased
            owed = states.get(email_id) == "waiting"
            if owed or email_id in blocked:
                pause = MAIL_SECONDS if owed else LONGEST_WAIT  # behind one that waits it needs no time of its own
                outcome.held.append(HeldChange(each.seq, email_id, 0, pause))
                blocked.add(email_id)
            else:
                chains.setdefault(email_id, []).append(_Untold(_event(each, notices.get(email_id))))
        return list(chains.values()), outcome

    def _tell_missed(self, claim: ReaderClaim, gone: ChangesGone) -> float:
        """Tell the sink that it missed changes, and go on from where the feed can be read again."""
        self._breaker.run(lambda: self._sink.tell_missed(gone.start_from))
        with self._claim_lock:
            self._claim = self._book.start_again(claim, gone.start_from)
        self._decided.clear()
        self._observe(ChangesMissed(self._name, claim.last_seq, gone.start_from))
        return 0.0

    def _tell(self, chains: list[list[_Untold]], end: int, outcome: _Outcome) -> None:
        """Tell changes up to the number `end`, and note down what became of each."""
        self._throttled.clear()
        # After a failure one message at a time, and another one each time: it may be the message that is to blame.
        asked = chains if self._proven or not chains else [chains[self._failures % len(chains)]]
        results = self._call_parallel(asked) if self._parallel else self._call_batch(asked)
        closed = self._breaker.closed
        attribution = attribute_failures([error for _, error in results], proven=self._proven and closed)
        self._decide(outcome, chains, results, attribution)
        decided = {each.seq for each in (*outcome.taken, *outcome.refused)} | {each.seq for each in outcome.held}
        untold = [each for each in chain.from_iterable(chains) if each.event.seq not in decided]
        # Of a held one the row stays as it is, but is due: it may have waited behind one that was told now.
        outcome.held += [
            HeldChange(each.event.seq, each.event.email_id, each.attempts, 0) for each in untold if each.held
        ]
        behind = [each.event.seq for each in untold if not each.held]
        self._settle(min(behind) - 1 if behind else end, outcome)
        self._decided |= decided
        self._decided = {seq for seq in self._decided if self._claim and seq > self._claim.last_seq}
        self._report(results, attribution, closed=closed)

    def _call_parallel(self, chains: Iterable[list[_Untold]]) -> list[_Result]:
        """Tell the changes of several messages at the same time, those of each in order."""
        results: list[_Result] = []
        running: set[Future[list[_Result]]] = {
            self._threads.submit(partial(self._call_in_order, each)) for each in chains
        }
        while running:
            ended, running = wait(running, TICK_SECONDS, FIRST_COMPLETED)
            self._observe(LoopTick(self._loop))
            for each in ended:
                results += each.result()
        return results

    def _call_in_order(self, untold: Sequence[_Untold]) -> list[_Result]:
        results: list[_Result] = []
        for each in untold:
            if self._stopped.is_set() or self._throttled.is_set() or not self._is_held():
                break
            error = self._call([each.event])
            results.append((each, error))
            if isinstance(error, SinkThrottled):
                self._throttled.set()
            if error is not None and not isinstance(error, PermanentError):
                break  # the later ones come after it
        return results

    def _call_batch(self, chains: Iterable[list[_Untold]]) -> list[_Result]:
        untold = sorted(chain.from_iterable(chains), key=lambda each: each.event.seq)
        if not untold or self._stopped.is_set() or not self._is_held():
            return []
        error = self._call([each.event for each in untold])
        if error is not None and len(untold) > 1 and not isinstance(error, NO_MESSAGE_AT_FAULT):
            return list(chain.from_iterable(self._call_in_order(each) for each in chains))
        return [(each, error) for each in untold]

    def _call(self, events: Sequence[ChangeEvent]) -> EmailIngestionError | None:
        try:
            self._breaker.run(lambda: self._sink.tell_changes(events))
        except EmailIngestionError as error:
            return error
        except BaseException as error:  # noqa: BLE001 - whatever a sink raises ends no thread
            return SinkFailed(f"sink {self._name} failed: {type(error).__name__}")
        return None

    def _decide(
        self, outcome: _Outcome, chains: list[list[_Untold]], results: list[_Result], attribution: Attribution
    ) -> None:
        rest = {each[0].event.email_id: each for each in chains}
        outcome.taken += [each.event for each, error in results if error is None]
        for index in (*attribution.permanent, *attribution.failed):
            each, error = results[index]
            event, attempts = each.event, each.attempts + 1
            if isinstance(error, PermanentError) or attempts > self._max_retries:
                outcome.refused.append(event)
                outcome.held.append(HeldChange(event.seq, event.email_id, attempts, None, str(error)))
                self._observe(ChangeRefused(self._name, event.seq, event.kind.value, event.email_id, attempts, error))
                continue
            requested = error.after if isinstance(error, Retry) else None
            pause = min(LONGEST_WAIT, backoff(attempts) if requested is None else requested)
            outcome.held.append(HeldChange(event.seq, event.email_id, attempts, pause))
            later = [one for one in rest[event.email_id] if one.event.seq > event.seq]
            outcome.held += [HeldChange(one.event.seq, event.email_id, one.attempts, pause) for one in later]

    def _settle(self, last_seq: int, outcome: _Outcome) -> None:
        """Write down what became of a part, however long the database is away: else the sink is told again."""
        while claim := self._claim:
            try:
                moved = self._book.settle(claim, last_seq, outcome.held, (*outcome.taken, *outcome.refused))
            except SinkUnavailable as error:
                self._observe(LoopTick(self._loop))
                self._observe(LoopFailed(self._loop, error, 1.0))
                if self._stopped.wait(1.0):
                    raise
                continue
            with self._claim_lock:
                self._claim = moved
            return

    def _report(self, results: list[_Result], attribution: Attribution, *, closed: bool) -> None:
        errors = [error for _, error in results if error is not None]
        failures = [each for each in errors if not isinstance(each, (PermanentError, CircuitBreakerError))]
        if len(errors) < len(results):
            self._observe(ChangesTold(self._name, "told", len(results) - len(errors)))
        if failures:
            self._observe(ChangesTold(self._name, "failed", len(failures)))
        refused = bool(attribution.permanent)  # it has read a change and answered
        self._proven = closed and (self._proven or attribution.delivered_any or refused)
        if attribution.delivered_any or not errors:
            self._failures, self._problem = 0, None
        elif len(attribution.permanent) < len(errors):
            self._pause()
            self._problem = str(failures[0]) if failures else self._problem
        if attribution.pause:
            self._not_before = time.monotonic() + attribution.pause

    def _pause(self) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + backoff(self._failures, cap=LONGEST_PAUSE)

    def _report_backlog(self) -> None:
        if time.monotonic() - self._counted_at < BACKLOG_SECONDS:
            return
        self._counted_at = time.monotonic()
        try:
            found = self._book.backlog(self._name, self._kinds)
        except SinkUnavailable:
            self._observe(ChangeBacklog(self._name, None, None, None, None))
            raise
        if not found.waiting:
            self._problem = None
        oldest = found.oldest.timestamp() if found.oldest else None
        self._observe(ChangeBacklog(self._name, found.waiting, oldest, found.refused, self._problem))


def _event(change: NumberedChange, erased_at: datetime | None) -> ChangeEvent:
    erased_at = erased_at if change.kind is ChangeKind.ERASED else None
    return ChangeEvent(change.seq, change.at, change.kind, change.account, change.email_id, change.details, erased_at)
