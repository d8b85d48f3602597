"""Plays the rounds of a fault and keeps what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from bench.crash_matrix.catalogue import Fault
from bench.crash_matrix.databases import SQLITE
from bench.crash_matrix.faults import BLOWS
from bench.crash_matrix.law import Verdict, judge
from bench.crash_matrix.letters import compose
from bench.crash_matrix.truth import Truth, findings, watching
from bench.crash_matrix.world import PATIENCE, World

LONG_EVERY = 5


@dataclass
class Row:
    """What a fault did in all its rounds."""

    fault: Fault
    database: str = SQLITE
    rounds: int = 0
    messages: int = 0
    verdict: Verdict = field(default_factory=Verdict)  # of the last round: it is about everything since the first
    dead: int = 0
    duplicates: int = 0
    repeated: int | None = None  # calls of a further sink with a message it had taken; None where there is none
    recoveries: list[float] = field(default_factory=list)  # seconds
    complaints: list[str] = field(default_factory=list)  # what is wrong beside the law
    skipped: str = ""
    truth: Truth = field(default_factory=Truth)

    @property
    def good(self) -> bool:
        """Whether every promise held."""
        return self.verdict.holds and not self.complaints


def play(
    fault: Fault,
    world: World,
    *,
    rounds: int,
    messages: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
    ask_doctor: bool = False,
) -> Row:
    """Play `rounds` rounds; the row says what broke, and the first broken round is the last one."""
    row = Row(fault, world.database.kind)
    world.muster(fault.crew)
    usual = findings(world) if ask_doctor else None
    for number in range(rounds):
        rng = Random(f"{seed}/{fault.name}/{number}")  # noqa: S311 - repeatable
        world.long = number % LONG_EVERY == LONG_EVERY - 1
        _round(row, world, rng, messages, usual, last=number == rounds - 1)
        tick()
        if not row.good:
            row.complaints.append(f"first broken in round {number}")
            break
    return row


def _round(row: Row, world: World, rng: Random, messages: int, usual: set[str] | None, *, last: bool) -> None:
    world.fill(compose(rng, messages), 2 * BLOWS)
    try:
        with watching(world, world.arrived, usual) as truth:
            row.fault.strike(world, rng)
            while world.more():
                pass
            row.recoveries.append(world.settle())
        row.truth.merge(truth)
        row.complaints += truth.complaints()
        if row.recoveries[-1] > row.fault.recovers_within:
            row.complaints.append(f"mail again after {row.recoveries[-1]:.1f} s, not {row.fault.recovers_within:.0f} s")
    except (Exception, AssertionError) as error:  # noqa: BLE001 - the law is asked all the more
        row.complaints.append(f"{type(error).__name__}: {error}")
    found = world.look(again=last)
    duplicates, alarms = world.logged()
    row.rounds += 1
    row.messages += messages
    row.verdict = judge(found)
    row.dead = len(found.dead)
    row.duplicates += duplicates
    row.complaints += alarms
    if world.receiver:
        row.repeated = world.repeated()
        if row.repeated > row.rounds * row.fault.repeats:
            row.complaints.append(f"{row.repeated} messages were posted again in {row.rounds} rounds")
    if found.queued and row.verdict.holds:
        row.complaints.append(f"{len(found.queued)} messages still queued after {PATIENCE:.0f} s")
