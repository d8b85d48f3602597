"""The published page: its rows stay until the same fault is played on the same database again.

The page itself is the record: each line of its table says what was run, how often, and with which commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.crash_matrix.rounds import Row
from bench.crash_matrix.truth import SOURCES

HEAD = (
    "Fault",
    "Database",
    "Commit",
    "Rounds",
    "Messages",
    "Lost",
    "Doubled",
    "Altered",
    "Dead letters",
    "Duplicates refused",
    "Posted again",
    "Recovery, median",
    "max",
    "Told after, at most",
    *(f"{source} silent, max" for source in SOURCES),
)
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
UNKNOWN = "-"


@dataclass(frozen=True)
class Line:
    """A line of the table; a cell holds what is shown."""

    cells: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """The fault's name and its database."""
        return self.cells[0].rpartition("`")[0].rpartition("`")[2], self.cells[1]

    def number(self, column: str) -> int:
        """Return a count, 0 where there is none."""
        text = self.cells[HEAD.index(column)]
        return int(text) if text.isdigit() else 0

    def __str__(self) -> str:
        return f"| {' | '.join(self.cells)} |"


def line_of(row: Row, commit: str) -> Line:
    """Return what the table says of a row."""
    name = f"{row.fault.text} (`{row.fault.name}`)"
    if row.skipped:
        return Line((name, NAMES[row.database], commit, f"not run: {row.skipped}", *[UNKNOWN] * (len(HEAD) - 4)))
    verdict, truth = row.verdict, row.truth
    counts = (row.rounds, row.messages, len(verdict.lost), len(verdict.doubled), len(verdict.altered), row.dead)
    repeated = UNKNOWN if row.repeated is None else str(row.repeated)
    times = (median(row.recoveries), max(row.recoveries)) if row.recoveries else ()
    recovery = [f"{seconds:.1f} s" for seconds in times] or [UNKNOWN, UNKNOWN]
    told = f"{truth.after:.1f} s" if truth.reason else UNKNOWN
    silent = [f"{truth.silent[source]:.1f} s" if source in truth.asked else UNKNOWN for source in SOURCES]
    return Line(
        (name, NAMES[row.database], commit, *map(str, (*counts, row.duplicates)), repeated, *recovery, told, *silent)
    )


def table(lines: Sequence[Line]) -> str:
    """The lines below their head."""
    return "\n".join(map(str, (Line(HEAD), Line(("---", "---", "---", *["--:"] * (len(HEAD) - 3))), *lines)))


def lines_in(path: Path) -> list[Line]:
    """Read the table of a page; nothing where there is none of this form."""
    if not path.exists():
        return []
    rows = [tuple(map(str.strip, text.strip().strip("|").split(" | "))) for text in path.read_text().splitlines()]
    return [Line(row) for row in rows if len(row) == len(HEAD) and row != HEAD and not row[0].startswith("---")]


def merged(old: Sequence[Line], new: Sequence[Line], order: Sequence[str]) -> list[Line]:
    """Put new lines in the place of those of the same fault and database; the faults stand in this order."""
    lines = {line.key: line for line in (*old, *new)}
    places = {name: place for place, name in enumerate(order)}
    return sorted(lines.values(), key=lambda line: (places.get(line.key[0], len(places)), line.key[1] != "SQLite"))
