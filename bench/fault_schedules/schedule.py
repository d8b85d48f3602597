"""Which faults strike when, and for how long: drawn from a seed, written as a line, shrunk. Nothing runs here.

    gmail sqlite workers=2 messages=40 seed=7: redis_network:stall@2.5+6.0 worker_killed@4.0+1.5

A fault is `KIND:MANNER@BEGIN+SECONDS`; kinds of one manner have none written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

MAILBOXES = ("gmail", "dovecot")
DATABASES = ("sqlite", "postgresql")
FEWEST, MOST = 2, 5  # faults of a schedule
MESSAGES = 40
LEAST_MESSAGES = 5
SPAN = 8.0  # seconds in which all faults begin
LONG = 0.15  # share of faults that last longer than any time-out
SHORT_SECONDS, LONG_SECONDS = (0.5, 8.0), (30.0, 45.0)
SHORTEST = 0.5

_FAULT = re.compile(r"([a-z_]+)(?::([a-z0-9_]+))?@([0-9.]+)\+([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault of a schedule."""

    kind: str
    manner: str
    at: float  # seconds after the first mail
    lasts: float  # seconds

    def __str__(self) -> str:
        manner = f":{self.manner}" if self.manner else ""
        return f"{self.kind}{manner}@{self.at:.1f}+{self.lasts:.1f}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Everything that is decided before anything runs; its text says it all."""

    mailbox: str
    database: str
    workers: int
    messages: int
    seed: int  # of the letters
    strikes: tuple[Strike, ...]

    def __str__(self) -> str:
        head = f"{self.mailbox} {self.database} workers={self.workers} messages={self.messages} seed={self.seed}"
        return f"{head}: {' '.join(map(str, self.strikes))}"

    @property
    def ends(self) -> float:
        """Seconds after the first mail at which the last fault is over."""
        return max((strike.at + strike.lasts for strike in self.strikes), default=0.0)

    @property
    def command(self) -> str:
        """What repeats it."""
        return f'python -m bench.fault_schedules --schedule "{self}"'


@dataclass(frozen=True, slots=True)
class Choice:
    """What a generator must know of a kind of fault."""

    manners: tuple[str, ...] = ("",)
    needs: str = ""  # the mailbox or the database without which it cannot be
    longest: float = LONG_SECONDS[1]  # seconds it may last


def draw(seed: int, choices: Mapping[str, Choice], *, database: str = "", messages: int = MESSAGES) -> Schedule:
    """Return the schedule of a seed: two to five faults, each of which overlaps with another one."""
    rng = Random(f"fault schedule {seed}")  # noqa: S311 - repeatable
    mailbox = rng.choice(MAILBOXES)
    chosen = rng.choice(DATABASES)
    database = database or chosen
    possible = [name for name, choice in sorted(choices.items()) if choice.needs in ("", mailbox, database)]
    names = rng.sample(possible, min(len(possible), rng.randint(FEWEST, MOST)))
    strikes = [_drawn(rng, name, choices[name]) for name in names]
    return Schedule(mailbox, database, rng.randint(1, 2), messages, seed, tuple(_overlapping(strikes)))


def _drawn(rng: Random, name: str, choice: Choice) -> Strike:
    lasts = rng.uniform(*(LONG_SECONDS if rng.random() < LONG else SHORT_SECONDS))
    at = rng.uniform(0, SPAN)
    return Strike(name, rng.choice(choice.manners), round(at, 1), round(max(SHORTEST, min(lasts, choice.longest)), 1))


def _overlapping(strikes: Sequence[Strike]) -> Iterator[Strike]:
    """Let each begin while one before it lasts."""
    until = None
    for strike in sorted(strikes, key=lambda each: each.at):
        begins = strike.at if until is None else min(strike.at, round(until - 0.3, 1))
        until = max(until or 0.0, begins + strike.lasts)
        yield replace(strike, at=begins)


def read(text: str, choices: Mapping[str, Choice]) -> Schedule:
    """Read what `str` of a schedule wrote. Raises ValueError that says what is wrong."""
    head, _, tail = text.partition(": ")
    mailbox, database, *words = (*head.split(), "", "")
    numbers = dict(word.partition("=")[::2] for word in words)
    if mailbox not in MAILBOXES or database not in DATABASES or not tail:
        raise ValueError(f"a schedule begins like `gmail sqlite workers=1 messages={MESSAGES} seed=1: `")
    try:
        workers, messages, seed = (int(numbers[name]) for name in ("workers", "messages", "seed"))
    except (KeyError, ValueError) as error:
        raise ValueError("a schedule says workers=, messages= and seed=, each with a number") from error
    strikes = tuple(_read_strike(word, choices) for word in tail.split())
    return Schedule(mailbox, database, workers, messages, seed, strikes)


def _read_strike(word: str, choices: Mapping[str, Choice]) -> Strike:
    found = _FAULT.fullmatch(word)
    if not found:
        raise ValueError(f"{word!r} is no fault: KIND:MANNER@BEGIN+SECONDS")
    kind, manner, at, lasts = found.groups()
    if kind not in choices:
        raise ValueError(f"no fault is named {kind!r}; --list shows them")
    if (manner or "") not in choices[kind].manners:
        raise ValueError(f"{kind} needs one of: {', '.join(choices[kind].manners)}")
    return Strike(kind, manner or "", float(at), float(lasts))


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Return the smallest that still fails: with fewer faults, then fewer workers and messages, then shorter faults."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(schedule):
            if fails(candidate):
                schedule, smaller = candidate, True
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    for index in range(len(schedule.strikes)):
        rest = schedule.strikes[:index] + schedule.strikes[index + 1 :]
        if rest:
            yield replace(schedule, strikes=rest)
    if schedule.workers > 1:
        yield replace(schedule, workers=1)
    if schedule.messages > LEAST_MESSAGES:
        yield replace(schedule, messages=max(LEAST_MESSAGES, schedule.messages // 2))
    for index, strike in enumerate(schedule.strikes):
        if strike.lasts >= 2 * SHORTEST:
            shorter = replace(strike, lasts=round(strike.lasts / 2, 1))
            yield replace(schedule, strikes=(*schedule.strikes[:index], shorter, *schedule.strikes[index + 1 :]))
