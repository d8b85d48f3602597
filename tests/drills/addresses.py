"""Where a drill finds what a runbook names literally: right there in a namespace, else by changing the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.drills.namespace import GMAIL, REDIS_FOLDERS
from tests.servers.ports import free_port, free_row

PROCESSES = 8  # a producer and so many workers less one have ports


@dataclass(frozen=True, slots=True)
class Addresses:
    """Ports and folders of one drill. Worker k has `ops + k` and `metrics + k`."""

    redis: int
    imap: int
    imap_host: str
    ops: int
    metrics: int
    prometheus: int
    alertmanager: int
    redis_etc: Path
    redis_log: Path
    literal: bool

    def __call__(self, text: str) -> str:
        """A command, or what it is to show, for this drill."""
        if self.literal:
            return text
        for pattern, new in self._changes():
            text = re.sub(pattern, new, text)
        return text

    def _changes(self) -> list[tuple[str, str]]:
        ports = {8080 + k: self.ops + k for k in range(PROCESSES)} | {9090 + k: self.metrics + k for k in range(8)}
        ports |= {9690: self.prometheus, 9693: self.alertmanager, 6379: self.redis}
        changes = [(rf":{old}\b", f":{new}") for old, new in ports.items() if old != new]
        changes += [(rf"\b{re.escape(GMAIL)}([: ])993\b", rf"127.0.0.1\g<1>{self.imap}")]
        changes += [(r"/etc/redis\b", str(self.redis_etc)), (r"/var/log/redis\b", str(self.redis_log))]
        # The k-th worker's ports follow from the first ones only where `start` gives them out.
        changes += [(r"\bpython worker\.py(?: --instance (\d+))?", "worker-on-its-ports \\1")]
        return changes


def literal_addresses() -> Addresses:
    """The product's and everybody's defaults."""
    etc, log = REDIS_FOLDERS["etc"], REDIS_FOLDERS["log"]
    return Addresses(6379, 993, GMAIL, 8080, 9090, 9690, 9693, etc, log, literal=True)


def free_addresses(folder: Path) -> Addresses:
    """Ports that the system chooses, and folders below `folder`."""
    etc, log = folder / "redis-etc", folder / "redis-log"
    for path in (etc, log):
        path.mkdir(parents=True, exist_ok=True)
    ops, metrics = free_row(PROCESSES), free_row(PROCESSES)
    return Addresses(
        free_port(), free_port(), "127.0.0.1", ops, metrics, free_port(), free_port(), etc, log, literal=False
    )
