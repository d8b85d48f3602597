"""What an operator types: spans of time, and ids of entries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

import typer

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def span(text: str, option: str) -> timedelta:
    """What `text` means, which is like 90s, 30m, 12h, 7d, 2w; raises BadParameter naming the option."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if match is None:
        raise typer.BadParameter(f"{option} is a number and a unit: 90s, 30m, 12h, 7d, 2w")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def entry_ids(given: Sequence[str], of: str) -> tuple[str, ...]:
    """Ids of entries of a Redis Stream, each once and in their order; raises BadParameter saying `of` what they are."""
    for each in given:
        if not re.fullmatch(r"(?:[0-9]{1,2}:)?[0-9]{1,19}-[0-9]{1,19}", each):
            raise typer.BadParameter(f"{each!r} is no id of {of}: they look like 1767225600000-0")
    return tuple(sorted(set(given), key=_order))


def _order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.rpartition(":")[2].split("-")))
