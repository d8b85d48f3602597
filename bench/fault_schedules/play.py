"""Lets a schedule happen and judges it: by the law of the crash matrix, what each sink took, and what was said."""

from __future__ import annotations

import heapq
import itertools
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from bench.crash_matrix.law import judge
from bench.fault_schedules.kinds import KINDS
from bench.fault_schedules.process_faults import Case
from bench.fault_schedules.schedule import Schedule, Strike
from bench.fault_schedules.stack import NotStarted, OurProcess, Stack, running_stack

PATIENCE = 90.0  # seconds, from the end of the last fault until everything must be delivered everywhere
POISON_SECONDS = 60.0  # more, for all attempts at mail that ends the parser
LOOK_SECONDS = 0.5
DOCTOR_SECONDS = 120.0
SILENCE_SECONDS = 30.0  # for which mail may stand still before somebody says why
UNWELL: dict[str, Callable[[float], bool]] = {
    "dependency_up": lambda value: value == 0,
    "circuit_breaker_state": lambda value: value != 0,
    "sink_waiting_messages": lambda value: value > 0,
    "stream_depth": lambda value: value > 0,
    "imap_backlog_messages": lambda value: value > 0,
    "missing_processes": lambda value: value > 0,
}
ARRIVALS = 0.8  # seconds between two portions of mail


@dataclass
class Outcome:
    """What came of a schedule."""

    schedule: Schedule
    complaints: list[str] = field(default_factory=list)
    recovery: float | None = None  # seconds from the end of the last fault until everything was everywhere
    stood_still: float = 0.0  # seconds, the longest
    silent: float = 0.0  # seconds, the longest time of it in which every process said ready
    said: list[str] = field(default_factory=list)  # the reasons that were given, each with its second
    repeated: Counter[str] = field(default_factory=Counter)  # hand-overs, by sink
    not_started: str = ""  # why nothing was tried: then it has neither held nor broken

    @property
    def good(self) -> bool:
        """Whether every promise held."""
        return not self.complaints and not self.not_started

    def __str__(self) -> str:
        if self.not_started:
            return self.not_started
        back = "not settled" if self.recovery is None else f"settled {self.recovery:.0f} s after the last fault"
        again = ", ".join(f"{count} handed over again at {sink}" for sink, count in self.repeated.items() if count)
        words = [back, f"mail stood still for {self.stood_still:.0f} s at most, unexplained for {self.silent:.0f} s"]
        return "; ".join([*words, *filter(None, [again])])


def play(schedule: Schedule, keep: Path | None = None) -> Outcome:
    """Bring the system up, let the schedule happen, wait, and judge. With `keep` the folder remains there."""
    outcome = Outcome(schedule)
    try:
        with _folder(keep) as folder, running_stack(schedule, folder) as stack:
            _play_on(stack, outcome)
    except NotStarted as error:
        outcome.not_started = str(error)
    return outcome


def _play_on(stack: Stack, outcome: Outcome) -> None:
    try:
        with _watching(stack, outcome):
            _happen(stack)
            outcome.recovery = _settle(stack)
    except (Exception, AssertionError) as error:  # noqa: BLE001 - the law is asked all the more
        outcome.complaints.append(f"the schedule broke off: {type(error).__name__}: {error}")
    try:
        _judge(stack, outcome)
    except Exception as error:  # noqa: BLE001 - what cannot be judged has not held
        outcome.complaints.append(f"it cannot be judged: {type(error).__name__}: {error}; {_where(stack)}")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="fault-schedules-", ignore_cleanup_errors=True) as name:
        yield Path(name)


# -- the timeline


def _happen(stack: Stack) -> None:
    schedule = stack.schedule
    number = itertools.count()
    queue: list[tuple[float, int, Callable[[], None]]] = []
    with ExitStack() as lasting:  # whatever happens, every fault is mended

        def begin(strike: Strike) -> None:
            rng = Random(f"{schedule.seed} {strike}")  # noqa: S311 - repeatable
            mend = lasting.enter_context(ExitStack())
            mend.enter_context(KINDS[strike.kind].happen(Case(stack, strike.manner, rng)))
            heapq.heappush(queue, (time.monotonic() - started + strike.lasts, next(number), mend.close))

        stack.mail.arrive(schedule.messages // 3)
        started = time.monotonic()
        for strike in schedule.strikes:
            heapq.heappush(queue, (strike.at, next(number), lambda strike=strike: begin(strike)))  # type: ignore[misc]
        portions = max(1, int(schedule.ends / ARRIVALS))
        count = -(-schedule.messages // portions)
        for portion in range(portions):
            heapq.heappush(queue, (portion * ARRIVALS, next(number), lambda: stack.mail.arrive(count)))
        while queue:
            due, _, action = heapq.heappop(queue)
            while (wait := started + due - time.monotonic()) > 0:
                time.sleep(min(wait, 0.2))
                stack.supervise()
            action()
    stack.mail.arrive(schedule.messages)


def _settle(stack: Stack) -> float | None:
    """Return the seconds until everything was everywhere; None when patience is at its end."""
    started = time.monotonic()
    patience = PATIENCE + (POISON_SECONDS if stack.has_poison else 0)
    while time.monotonic() - started < patience:
        stack.supervise()
        if stack.mail.waiting:
            stack.mail.arrive(stack.mail.waiting)
        if _everywhere(stack):
            return time.monotonic() - started
        time.sleep(0.2)
    return None


def _everywhere(stack: Stack) -> bool:
    wanted = stack.mail.wanted()
    if stack.mail.delivered() != len(wanted) or stack.mail.queued() != 0:
        return False
    return all(wanted <= taken.keys() for taken in stack.mail.taken().values())


# -- the truth during the fault


@contextmanager
def _watching(stack: Stack, outcome: Outcome) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(stack, outcome, ended), name="truth", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30 + DOCTOR_SECONDS)


def _watch(stack: Stack, outcome: Outcome, ended: threading.Event) -> None:
    """Note how long mail stood still, and who gave which reason, from the outside."""
    before: tuple[int, ...] = ()
    moved = unexplained_since = time.monotonic()
    started = moved
    asked_doctor = False
    heard: set[str] = set()
    asked: list[threading.Thread] = []
    while not ended.wait(LOOK_SECONDS):
        progress = _progress(stack)
        reasons = _reasons(stack)
        now = time.monotonic()
        if progress is not None and (progress != before or _is_done(stack, progress)):
            before, moved, asked_doctor = progress, now, False
        outcome.stood_still = max(outcome.stood_still, now - moved)
        if reasons or moved == now:
            unexplained_since = now
        for reason in reasons:
            kind = ": ".join(reason.split(": ")[:2])  # of each process and status the first is enough
            if kind not in heard:
                heard.add(kind)
                outcome.said.append(f"at {now - started:.0f} s, {now - moved:.0f} s without mail: {reason}")
        outcome.silent = max(outcome.silent, now - max(moved, unexplained_since))
        if now - moved > SILENCE_SECONDS and not asked_doctor:
            asked_doctor = True
            others = threading.Thread(target=_ask_others, args=(stack, outcome, now - moved), daemon=True)
            others.start()  # the doctor takes its time over what does not answer
            asked.append(others)
    for others in asked:
        others.join(DOCTOR_SECONDS)


def _progress(stack: Stack) -> tuple[int, ...] | None:
    """Count what has arrived at the database and at each sink; None while the database cannot be asked."""
    delivered = stack.mail.delivered()
    if delivered is None:
        return None
    return (delivered, *(len(taken) for taken in stack.mail.taken().values()))


def _is_done(stack: Stack, progress: tuple[int, ...]) -> bool:
    return all(count >= len(stack.mail.wanted()) for count in progress)


def _reasons(stack: Stack) -> list[str]:
    """Return what the processes say that is not `ready`, by /ready; /status must say the same."""
    said = []
    for name, process in stack.processes.items():
        try:
            answer = json.loads(process.get("/ready"))
        except (OSError, ValueError):
            said.append(f"{name} does not answer")
            continue
        if answer["status"] != "ready":
            said.append(f"{name}: {answer['status']}: {'; '.join(answer['reasons'])}")
    return said


def _ask_others(stack: Stack, outcome: Outcome, seconds: float) -> None:
    """While mail stands still, neither the doctor nor /status nor the metrics may find everything well."""
    before = _progress(stack)
    statuses = {
        name: _or_none(lambda each=process: json.loads(each.get("/status"))["status"])
        for name, process in stack.processes.items()
    }
    shown = sorted(filter(None, (_or_none(lambda each=process: _unwell(each)) for process in stack.processes.values())))
    done = stack.command("doctor", seconds=DOCTOR_SECONDS)
    progress = _progress(stack)
    metrics = " ".join(shown) or "nothing"
    outcome.said.append(
        f"{seconds:.0f} s without mail: /status {statuses}, doctor {done.returncode}, metrics {metrics}"
    )
    if progress != before or (progress is not None and _is_done(stack, progress)):
        return  # the fault ended while they looked
    silent = [
        *(["doctor"] if done.returncode == 0 else []),
        *(["/status"] if set(statuses.values()) == {"ready"} else []),
        *([] if shown or None in statuses.values() else ["the metrics"]),
    ]
    if silent:
        outcome.complaints.append(f"mail stood still for {seconds:.0f} s, and no word of it by {', '.join(silent)}")


def _or_none(look: Callable[[], Any]) -> Any:
    """Return what it finds; None when a process does not answer, which says enough."""
    try:
        return look()
    except (OSError, ValueError):
        return None


def _unwell(process: OurProcess) -> str:
    """Return the metrics by which an alert would ring, as names."""
    found = set()
    for line in process.get("/metrics").splitlines():
        name, _, value = line.partition("{")[0].partition(" ")[0], "", line.rpartition(" ")[2]
        for metric, unwell in UNWELL.items():
            if name == f"email_ingestion_{metric}" and unwell(float(value)):
                found.add(line.rpartition(" ")[0].removeprefix("email_ingestion_"))
    return " ".join(sorted(found))


# -- the judgement


def _judge(stack: Stack, outcome: Outcome) -> None:
    found = stack.mail.look()
    verdict = judge(found)
    for name in ("lost", "doubled", "altered", "invented", "seen"):
        broken = getattr(verdict, name)
        if broken:
            outcome.complaints.append(f"{len(broken)} {name}, such as {broken[0]}")
    buried = [copy for copy in found.dead if copy.email_id not in stack.mail.poison]
    if buried:
        outcome.complaints.append(f"{len(buried)} buried: {_why_dead(stack)}")
    if outcome.recovery is None:
        outcome.complaints.append(
            f"not everything is everywhere {PATIENCE:.0f} s after the last fault: {_where(stack)}"
        )
    if outcome.silent > SILENCE_SECONDS:
        outcome.complaints.append(f"mail stood still for {outcome.silent:.0f} s, and every process said ready")
    outcome.repeated, wrong = stack.mail.repeated()
    if wrong:
        outcome.complaints.append(f"{len(wrong)} handed over again though no promise covers it: {wrong[0]}")
    for process in stack.processes.values():
        process.stop()
        outcome.complaints += process.endings
    outcome.complaints += stack.alarms()


def _why_dead(stack: Stack) -> str:
    done = stack.command("dlq", "list", "--json")
    try:
        letters = json.loads(done.stdout)
        first = letters[0] if isinstance(letters, list) else letters["items"][0]
        return f"{first.get('reason')} {first.get('sink') or ''} {first.get('error_type')} {first.get('error')}"
    except (ValueError, LookupError, AttributeError):
        return (done.stdout + done.stderr)[-300:]


def _where(stack: Stack) -> str:
    wanted = stack.mail.wanted()
    taken = {sink: len(wanted - seen.keys()) for sink, seen in stack.mail.taken().items()}
    delivered = stack.mail.delivered()
    states = stack.rows("SELECT sink, state, count(*) FROM deliveries GROUP BY sink, state") or []
    reasons = "; ".join(_reasons(stack)) or "every process says ready"
    return (
        f"{len(wanted)} on the server, {delivered} in the database, {stack.mail.queued()} queued, missing at sinks "
        f"{taken}, deliveries {states}; {reasons}"
    )
