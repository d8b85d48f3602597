"""The thresholds of config/alerts.yml, for the built-in alerts and the checks: one place for all of them.

Only the group of thresholds is read, in which each is a rule that records a number. What a file of an earlier release
lacks is taken from the one that comes with this release.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from email_ingestion.errors import ConfigurationError
from email_ingestion.shipped_files import here_or_shipped, shipped_root

ALERTS_FILE = Path("config/alerts.yml")
_RECORD = re.compile(r"""\brecord:\s*["']?email_ingestion:threshold:(\w+)""")
_EXPRESSION = re.compile(r"""\bexpr:\s*(?:[|>][-+]?\s*\n\s*)?(?:"([^"\n]*)"|'([^'\n]*)'|([^\n#,}]+))""")


def alert_thresholds(path: Path = ALERTS_FILE) -> dict[str, float]:
    """Return every threshold by its name. Raises ConfigurationError for one that is no number."""
    shipped = shipped_root() / ALERTS_FILE
    found = _read(shipped) if shipped.exists() else {}
    if path.exists():
        found |= _read(path)
    if not found:
        raise ConfigurationError(f"{path} is missing: the thresholds of the alerts stand there; see docs/monitoring.md")
    return found


def _read(path: Path) -> dict[str, float]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigurationError(f"cannot read {path}: {reason}") from error
    lines = "\n".join("" if line.lstrip().startswith("#") else line for line in text.split("\n"))
    rules = re.split(r"(?m)^(?=\s*- )", lines)
    found: dict[str, float] = {}
    for rule in rules:
        if name := _RECORD.search(rule):
            expression = _EXPRESSION.search(rule)
            written = next((part for part in expression.groups() if part is not None), "") if expression else ""
            found[name[1]] = _number(path, name[1], written.strip())
    return found


def _number(path: Path, name: str, written: str) -> float:
    """Return the value of `300`, `5 * 60` or `vector(300)`."""
    factors = re.sub(r"^(?:vector|scalar)\((.*)\)$", r"\1", written).split("*")
    try:
        value = math.prod(float(factor) for factor in factors)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigurationError(f'{path}: threshold {name} is {written!r}: write a number, as `expr: "300"`')
    return value


def priority_of_alert(name: str, path: Path = ALERTS_FILE) -> str | None:
    """Return the priority of an alert by its name, with or without `EmailIngestion`; None when there is none of it."""
    text = here_or_shipped(path).read_text(encoding="utf-8") if here_or_shipped(path).exists() else ""
    wanted = re.escape(name.removeprefix("EmailIngestion"))
    found = re.search(rf"- alert: EmailIngestion{wanted}\n(?:(?!- alert:).*\n)*?.*\bpriority: (P\d)", text)
    return found[1] if found else None


class CurrentThresholds:
    """The thresholds as the file has them now: an edit counts from the next look on, without a restart.

    While the file is wrong, those before hold.
    """

    def __init__(self, path: Path = ALERTS_FILE) -> None:
        """Raises ConfigurationError as `alert_thresholds` does."""
        self._path = path
        self.last: Mapping[str, float] = alert_thresholds(path)
        self._changed = self._stamp()

    def read(self) -> Mapping[str, float]:
        """Return them. Raises ConfigurationError once for each change of the file that makes it wrong."""
        stamp = self._stamp()
        if stamp != self._changed:
            self._changed = stamp
            self.last = alert_thresholds(self._path)
        return self.last

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size
