"""Who reads delivered mail: each read is a line of `audit.log`, and the metrics count those lines.

A read is counted as the messages that it hands out; a search as one for each screen of hits. The user stands in the
audit log alone, for a metric's labels come from closed sets.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from email_ingestion.errors import OperationFailed
from email_ingestion.ops.audit_log import NAME, audit_files, parse_audit, read_audit, write_audit
from email_ingestion.ops.metric_factory import PREFIX, label_value

Via = Literal["cli", "web", "api"]
ReadAction = Literal["search", "export", "dlq show", "dlq export", "dlq purge", "drain"]
VIAS: tuple[Via, ...] = get_args(Via)
READ_ACTIONS: tuple[ReadAction, ...] = get_args(ReadAction)
SCREEN = 20  # hits
HOUR = 3600.0


def record_read(
    log_dir: Path,
    via: Via,
    user: str,
    action: ReadAction,
    *,
    messages: int,
    email_ids: Sequence[str] = (),
    **details: Any,
) -> None:
    """Write who is about to read what; call it before anything is handed out.

    `messages` is how many are handed out, or found. Of a search no words are kept, for they are personal data: the
    identities that were shown are. Raises ConfigurationError when the audit log cannot be written.
    """
    read = max(1, -(-messages // SCREEN)) if action == "search" else messages
    record = {"user": user, "pid": os.getpid(), "action": action, "via": via, "read": read}
    write_audit(log_dir, {**record, **details, "emails": list(email_ids), "result": "done"})


class MailReads(Collector):
    """Counts the reads that are written to the audit log of this machine while the process runs.

    Every process of a machine counts the same lines: aggregate with max. The reads of the last hour include those from
    before the process. Nothing is shown while the log cannot be read.
    """

    def __init__(self, log_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._log_dir = log_dir
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._inode, self._offset = _end_of(log_dir / NAME)
        self._recent = self._read_before()  # when, how many

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the registry calls it at a scrape."""
        with self._lock:
            try:
                self._follow()
            except (OSError, OperationFailed):
                return
            since = self._clock() - HOUR
            self._recent = [each for each in self._recent if each[0] >= since]
            counts, hour = dict(self._counts), sum(number for _, number in self._recent)
        documentation = "Delivered messages that somebody read, by way and command; who stands in the audit log."
        family = CounterMetricFamily(f"{PREFIX}_mail_reads", documentation, labels=["via", "action"])
        zero = {("cli", action): 0 for action in READ_ACTIONS}
        for (via, action), count in (zero | counts).items():
            family.add_metric([via, action], count)
        yield family
        documentation = "Delivered messages that somebody read within the last hour, on this machine."
        yield GaugeMetricFamily(f"{PREFIX}_mail_reads_last_hour", documentation, hour)

    def _read_before(self) -> list[tuple[float, int]]:
        """Return the reads of the hour before this process; none where they cannot be read."""
        since = self._clock() - HOUR
        with suppress(OSError, OperationFailed):
            if any(path.stat().st_mtime >= since for path in audit_files(self._log_dir)):
                return [(at, read) for at, read, _ in _reads(read_audit(self._log_dir)) if at >= since]
        return []

    def _follow(self) -> None:
        """Take in what was appended since the last time, also when the log was rotated meanwhile."""
        inode, size = _end_of(self._log_dir / NAME)
        if inode != self._inode:
            rotated = next((each for each in audit_files(self._log_dir) if _end_of(each)[0] == self._inode), None)
            if rotated is not None and rotated.suffix != ".gz":
                self._take(rotated)
            self._inode, self._offset = inode, 0
        if size < self._offset:
            self._offset = 0
        if inode is not None and size > self._offset:
            self._take(self._log_dir / NAME)

    def _take(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        records = (record for line in whole.split(b"\n") if (record := parse_audit(line)) is not None)
        for at, read, labels in _reads(records):
            self._recent.append((at, read))
            self._counts[labels] += read


def _reads(records: Iterator[Mapping[str, Any]]) -> Iterator[tuple[float, int, tuple[str, str]]]:
    for record in records:
        read = record.get("read")
        if isinstance(read, int) and not isinstance(read, bool):
            labels = label_value(str(record.get("via")), VIAS), label_value(str(record.get("action")), READ_ACTIONS)
            yield _seconds(record), read, labels


def _seconds(record: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(record.get("timestamp"))).timestamp()
    except ValueError:
        return 0.0


def _end_of(path: Path) -> tuple[int | None, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None, 0
    return found.st_ino, found.st_size
