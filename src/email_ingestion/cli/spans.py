"""Spans of time as an operator types them: 90s, 30m, 12h, 7d, 2w."""

from __future__ import annotations

import re
from datetime import timedelta

import typer

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def span(text: str, option: str) -> timedelta:
    """What `text` means; raises BadParameter naming the option."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if match is None:
        raise typer.BadParameter(f"{option} is a number and a unit: 90s, 30m, 12h, 7d, 2w")
    return timedelta(**{UNITS[match[2]]: int(match[1])})
