"""Measures everything and writes `docs/performance.md` and `docs/scaling.md`, in a quarter of an hour on two cores."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench import capacity, latency, machine, mailbox, memory, parser, reparse, start, worker
from bench.rounds import ROOT, Failed, Say
from bench.tables import Section, aims_table

PAGE = ROOT / "docs" / "performance.md"
CAPACITY = ROOT / "docs" / "scaling.md"
EXAMPLES = """examples:
  python -m bench.run                       everything, into docs/performance.md and docs/scaling.md
  python -m bench.run --only worker         one measurement, printed
  python -m bench.run --quick               small numbers, printed: whether it works, not how fast it is
"""
Measurement = Callable[..., Section]

FULL: dict[str, Measurement] = {
    "parser": partial(parser.measure, count=1_000, rounds=5),
    "mailbox": partial(mailbox.measure, count=10_000, rounds=5),
    "worker": partial(worker.measure, count=500, rounds=5),
    "reparse": partial(reparse.measure, count=10_000, rounds=3),
    "latency": partial(latency.measure, count=600),
    "start": partial(start.measure, rounds=3),
    "memory": partial(memory.measure, small=10_000, large=200_000),
}
QUICK: dict[str, Measurement] = {
    "parser": partial(parser.measure, count=100, rounds=1),
    "mailbox": partial(mailbox.measure, count=300, rounds=1),
    "worker": partial(worker.measure, count=100, rounds=1),
    "reparse": partial(reparse.measure, count=200, rounds=1),
    "latency": partial(latency.measure, count=60),
    "start": partial(start.measure, rounds=1, sizes=(1_000, 20_000)),
    "memory": partial(memory.measure, small=1_000, large=10_000),
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench.run",
        description="Measure this program against others in the same run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--only", choices=sorted(FULL), metavar="NAME", help=f"one of {', '.join(FULL)}")
    made.add_argument("--quick", action="store_true", help="small numbers, for a try")
    made.add_argument("--write", type=Path, metavar="FILE", help="write the page there, whatever was measured")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; exit code 0 when everything could be measured, 2 otherwise."""
    chosen = options().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no process is left behind
    described = machine.describe()
    measurements = QUICK if chosen.quick else FULL
    names = [chosen.only] if chosen.only else list(measurements)
    sections, failed = measure({name: measurements[name] for name in names}, _say)
    text = page(sections, failed, described)
    target = chosen.write or (None if chosen.quick or chosen.only else PAGE)
    if target:
        target.write_text(text)
        _say(f"written to {target}")
    if target == PAGE:
        try:
            CAPACITY.write_text(capacity.page(capacity.Costs.of(sections), described))
        except KeyError:
            _say(f"{CAPACITY.name} stays as it is: what it is calculated from could not be measured")
    sys.stdout.write(text)
    return 2 if failed else 0


def measure(measurements: dict[str, Measurement], say: Say) -> tuple[list[Section], dict[str, str]]:
    """The sections, and why some are missing."""
    sections, failed = [], {}
    for name, measurement in measurements.items():
        say(f"{name} …")
        began = time.monotonic()
        try:
            sections.append(measurement(say=say))
        except (Failed, OSError) as error:
            failed[name] = str(error)
            say(f"{name} failed: {error}")
        say(f"{name}: {time.monotonic() - began:.0f} s")
    return sections, failed


def page(sections: Sequence[Section], failed: dict[str, str], described: str) -> str:
    """The page."""
    today = datetime.now(UTC).date().isoformat()
    parts = [
        "# Performance",
        (
            f"Measured on {today} by `python -m bench.run`, which writes this page. All programs of a table ran in "
            "turn in the same run; each number is the median of its rounds. Compare the ratios: absolute numbers "
            "belong to the machine."
        ),
        described,
        "## What was aimed at",
        aims_table(sections),
    ]
    parts += [section.markdown() for section in sections]
    if failed:
        parts += ["## Not measured", "\n".join(f"- {name}: {why}" for name, why in failed.items())]
    return "\n\n".join(parts) + "\n"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
