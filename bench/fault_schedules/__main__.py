"""The command line of the fault schedules; exit code 0 when every promise held, 1 when one was broken."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from bench.fault_schedules.kinds import CHOICES, KINDS
from bench.fault_schedules.play import Outcome, play
from bench.fault_schedules.schedule import DATABASES, MESSAGES, Schedule, draw, read, shrink

EXAMPLES = """examples:
  python -m bench.fault_schedules --minutes 60
  python -m bench.fault_schedules --seed 7 --database postgresql --schedules 20
  python -m bench.fault_schedules --schedule "gmail sqlite workers=1 messages=40 seed=7: redis_frozen@1.0+9.0"
"""
TRIES = 2  # of a smaller schedule, before it counts as one that holds
LINE = 250  # characters of what was said during the faults

say = functools.partial(Console().print, soft_wrap=True, highlight=False, markup=False)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m bench.fault_schedules",
        description="Let two to five random faults overlap, again and again: no mail may be lost, doubled or buried.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--seed", type=int, default=1, help="of the first schedule; counts up (default %(default)s)")
    made.add_argument("--minutes", type=float, help="begin no schedule after so long")
    made.add_argument("--schedules", type=int, metavar="N", help="so many at most (default 1 without --minutes)")
    made.add_argument("--messages", type=int, default=MESSAGES, metavar="M", help="in each (default %(default)s)")
    made.add_argument("--database", choices=DATABASES, default="", help="instead of what the seed says")
    made.add_argument("--schedule", type=_read, metavar="TEXT", help="repeat this one, as it was printed")
    made.add_argument("--no-shrink", action="store_true", help="do not look for the smallest one that still fails")
    made.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and data of each schedule in a folder there")
    made.add_argument("--list", action="store_true", help="list the faults and do nothing")
    return made


def _read(text: str) -> Schedule:
    try:
        return read(text, CHOICES)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Play schedules until time or number is at its end."""
    options = parser().parse_args(argv)
    if options.list:
        for kind in KINDS.values():
            manners = ", ".join(filter(None, kind.choice.manners))
            needs = f" [{kind.choice.needs}]" if kind.choice.needs else ""
            say(f"{kind.name:20} {kind.text}{needs}{': ' if manners else ''}{manners}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no process is left behind
    smallest = []
    for outcome in _outcomes(options):
        if not outcome.complaints:
            continue
        alone = options.no_shrink or len(outcome.schedule.strikes) == 1
        smallest.append(outcome.schedule if alone else shrink(outcome.schedule, _still_fails))
        say(f"  the smallest that still fails:\n  {smallest[-1].command}")
    return 1 if smallest else 0


def _outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    end = time.monotonic() + (options.minutes or float("inf")) * 60
    many = options.schedules or (None if options.minutes else 1)
    number, counted = 0, Counter[str]()
    while time.monotonic() < end and (many is None or number < many):
        seed = options.seed + number
        schedule = options.schedule or draw(seed, CHOICES, database=options.database, messages=options.messages)
        say(schedule.command)
        outcome = play(schedule, options.keep and options.keep / f"{schedule.seed}-{time.time_ns()}")
        verdict = "BROKEN" if outcome.complaints else "not tried" if outcome.not_started else "held"
        number, counted[verdict] = number + 1, counted[verdict] + 1
        say(f"  {verdict}: {outcome}")
        for said in outcome.said:
            say(f"    {said}"[:LINE])
        for complaint in outcome.complaints:
            say(f"  BROKEN {complaint}")
        yield outcome
    untried = f", {counted['not tried']} not tried" if counted["not tried"] else ""
    say(f"{number} schedules, {counted['BROKEN']} broken{untried}")


def _still_fails(candidate: Schedule) -> bool:
    for _ in range(TRIES):
        outcome = play(candidate)
        if outcome.complaints:
            say(f"    still: {candidate}: {outcome.complaints[0]}"[:LINE])
            return True
    say(f"    holds: {candidate}")
    return False


if __name__ == "__main__":
    sys.exit(main())
