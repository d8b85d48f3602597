"""The findings of checks and their verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "unknown", "degraded", "failed"]
SEVERITY: dict[Verdict, int] = {"ok": 0, "unknown": 0, "degraded": 1, "failed": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One result; unknown is what could not be looked at and may well be right.

    `cause` is the observation, `remedy` the next command, empty where nothing is wrong.
    """

    check: str
    verdict: Verdict
    cause: str
    remedy: str = ""


Findings = Iterator[Finding]


def worst_verdict(findings: Sequence[Finding]) -> Verdict:
    """Return the worst verdict of all findings."""
    return max((each.verdict for each in findings), key=SEVERITY.__getitem__, default="ok")
