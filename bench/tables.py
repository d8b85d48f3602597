"""What a measurement hands over: a table, what was aimed at, and what to know when reading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Aim:
    """A promise with a number, and the number that was measured."""

    text: str
    measured: float
    target: float
    unit: str = "×"
    most: bool = False  # the target is an upper bound

    @property
    def met(self) -> bool:
        """Whether the promise holds."""
        return self.measured <= self.target if self.most else self.measured >= self.target

    def line(self) -> str:
        """One row of the table of aims."""
        sign = "≤" if self.most else "≥"
        met = "yes" if self.met else "**no**"
        return (
            f"| {self.text} | {sign} {_plain(self.target)} {self.unit} | {_plain(self.measured)} {self.unit} | {met} |"
        )


@dataclass(frozen=True, slots=True)
class Section:
    """One measurement of the page."""

    title: str
    how: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    aims: Sequence[Aim] = ()
    notes: Sequence[str] = ()
    figures: dict[str, float] = field(default_factory=dict)  # what other pages calculate with

    def markdown(self) -> str:
        """The section as the page shows it, its aims excepted."""
        lines = [f"## {self.title}", "", self.how, ""]
        lines += [f"| {' | '.join(self.columns)} |", f"|{'---|' * len(self.columns)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)


def aims_table(sections: Sequence[Section]) -> str:
    """All aims of all sections."""
    lines = ["| What | Aim | Measured | Met |", "|---|---|---|---|"]
    return "\n".join(lines + [aim.line() for section in sections for aim in section.aims])


def _plain(number: float) -> str:
    if number >= 100:  # noqa: PLR2004 - three digits are as many as such a number is good for
        return f"{number:,.0f}"
    return f"{number:.2f}".rstrip("0").rstrip(".")
