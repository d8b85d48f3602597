"""Read numbers and records that stand in Redis: whoever can write there may have written anything.

What is none of ours counts as missing: a producer then lists its mailbox anew, a counter begins at 0, and a presence
is nobody's. Entries of streams are read by `codec`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

LARGEST = 2**63 - 1
MAX_RECORD_BYTES = 64 * 1024
_WHOLE = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,19}(?:\.[0-9]{1,20})?", re.ASCII)


def whole_number(value: bytes | str | int | None) -> int | None:
    """Return the number that a value is; None where it is none, or larger than Redis counts."""
    written = _written(value)
    number = int(written) if _WHOLE.fullmatch(written) else None
    return None if number is None or abs(number) > LARGEST else number


def number(value: bytes | str | float | None) -> float | None:
    """Return the finite number that a value is, None where it is none."""
    written = _written(value)
    return float(written) if _NUMBER.fullmatch(written) else None


def record(value: bytes | str | None, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any] | None:
    """Return the JSON object that a value is; None where it is none, or a field of `kinds` is missing or another kind.

    Fields without a kind are those of another release, or of anybody. No number in it is endless.
    """
    if value is None or len(value) > MAX_RECORD_BYTES:
        return None
    try:
        found = json.loads(value, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    return found if all(isinstance(found.get(name, _MISSING), kind) for name, kind in kinds.items()) else None


_MISSING = object()


def _written(value: bytes | str | float | None) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def _finite(written: str) -> float:
    found = float(written)
    if not math.isfinite(found):
        raise ValueError("no number is endless")
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number")
