"""Alerts that somebody has acknowledged, or wants to hear nothing of for a while; kept in data/alert-silences.json.

Commands write them and the built-in alerts read them. Each ends by itself; an acknowledgement ends with its alert too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from email_ingestion.atomic_files import file_lock, write_private
from email_ingestion.errors import OperationFailed

SILENCES_FILE = Path("data/alert-silences.json")
PREFIX = "EmailIngestion"
KEPT_SECONDS = 86_400.0  # after its end, so that the alert's return can be told


@dataclass(frozen=True, slots=True)
class Silence:
    """Nobody is told of the alerts that match `pattern` until `until`, in Unix seconds."""

    pattern: str  # `SinkLate`, `SinkLate/webhook`, `Disk*`
    kind: Literal["ack", "silence"]
    since: float
    until: float
    user: str
    reason: str = ""

    def matches(self, key: str) -> bool:
        """Tell whether it is for an alert; `key` is its name, and behind a slash what it is about."""
        pattern = self.pattern.removeprefix(PREFIX).casefold()
        return any(fnmatchcase(each.casefold(), pattern) for each in (key, key.partition("/")[0]))


def read_silences(path: Path = SILENCES_FILE) -> list[Silence]:
    """Return all that are kept, ended ones too. Raises OperationFailed when the file cannot be read."""
    try:
        return [Silence(**each) for each in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise OperationFailed(f"{path} cannot be read: move it away, then silence anew what must be silent") from error


def add_silence(silence: Silence, path: Path = SILENCES_FILE) -> None:
    """Add one in the place of an older one with the same pattern. Raises OperationFailed and ConfigurationError."""
    _change(path, silence.since, lambda found: [*(each for each in found if each.pattern != silence.pattern), silence])


def end_silences(ended: Callable[[Silence], bool], now: float, path: Path = SILENCES_FILE) -> list[Silence]:
    """Take out those for which `ended` holds and return them. Raises OperationFailed and ConfigurationError."""
    gone = [each for each in read_silences(path) if ended(each)]
    if gone:
        _change(path, now, lambda found: [each for each in found if not ended(each)])
    return gone


def _change(path: Path, now: float, change: Callable[[list[Silence]], list[Silence]]) -> None:
    with file_lock(path):
        kept = [each for each in change(read_silences(path)) if each.until > now - KEPT_SECONDS]
        write_private(path, json.dumps([asdict(each) for each in kept], indent=1))
