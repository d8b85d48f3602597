"""Decides what somebody is told where no Prometheus looks: a few of the alerts, on our own metrics; sends nothing.

A trouble is told once, reminded of once a day, and its end is told. What was told is remembered across restarts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import Metric

from email_ingestion.atomic_files import write_private
from email_ingestion.ops.declare import PREFIX

RUNBOOK = "https://github.com/example/email-ingestion/blob/main/docs/runbooks/incident_response.md"
REMIND_SECONDS = 86_400.0
# Those of config/alerts.yml; a test keeps them equal.
THRESHOLDS = {
    "freshness_seconds": 300,
    "sync_silence_seconds": 600,
    "consent_seconds": 259_200,
    "backlog_critical": 100,
    "pending_seconds": 900,
    "dead_letters": 10,
    "redis_memory_ratio": 0.85,
    "disk_ratio_critical": 0.95,
    "backup_age_seconds": 93_600,
}


class Readings:
    """Our metrics at one moment, by name without the prefix; `now` in Unix seconds."""

    def __init__(self, families: Iterable[Metric], now: float) -> None:
        self.now = now
        self._samples = [sample for family in families for sample in family.samples]

    def of(self, name: str, label: str = "", **wanted: str) -> dict[str, float]:
        """The values of a metric by one of its labels; a series without it is under the empty name."""
        return {
            sample.labels.get(label, ""): sample.value
            for sample in self._samples
            if sample.name == f"{PREFIX}_{name}" and wanted.items() <= sample.labels.items()
        }

    def the(self, name: str, **wanted: str) -> float | None:
        """The value of the only series; None when there is none."""
        return next(iter(self.of(name, **wanted).values()), None)

    def ages(self, name: str, label: str = "") -> dict[str, float]:
        """Seconds since the times a metric tells."""
        return {which: self.now - at for which, at in self.of(name, label).items()}


Says = Callable[[Readings, Readings], Mapping[str, str]]
"""What is wrong, a sentence for each account, breaker or folder it is wrong with; from the readings before and now."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An alert of the same name in config/alerts.yml; it is told after `looks` looks in a row."""

    name: str
    priority: str
    anchor: str
    says: Says
    looks: int = 1


def _below(name: str, sentence: str, **wanted: str) -> Says:
    return lambda _before, now: {"": sentence} if now.the(name, **wanted) == 0 else {}


def _above(name: str, limit: float, sentence: str) -> Says:
    return lambda _before, now: {"": sentence.format(value)} if (value := now.the(name) or 0) > limit else {}


def _older(name: str, label: str, limit: float, sentence: str) -> Says:
    def says(_before: Readings, now: Readings) -> Mapping[str, str]:
        ages = now.ages(name, label).items()
        return {which: sentence.format(which, age / 60) for which, age in ages if age > limit}

    return says


def _reauthorize(_before: Readings, now: Readings) -> Mapping[str, str]:
    waiting = [account for account, value in now.of("oauth2_reauth_required", "account").items() if value]
    what = "account {} must be authorized again: python producer.py --auth-setup"
    return {account: what.format(account) for account in waiting}


def _breakers(_before: Readings, now: Readings) -> Mapping[str, str]:
    states = now.of("circuit_breaker_state", "name")
    return {name: f"circuit breaker {name} is open" for name, state in states.items() if state}


def _dead_letters(before: Readings, now: Readings) -> Mapping[str, str]:
    new = (now.the("dlq_depth") or 0) - (before.the("dlq_depth") or 0)
    return {"": f"{new:.0f} new dead letters: email-ingestion dlq stats"} if new > THRESHOLDS["dead_letters"] else {}


def _redis_memory(_before: Readings, now: Readings) -> Mapping[str, str]:
    used, limit = now.the("redis_memory_used_bytes"), now.the("redis_memory_max_bytes")
    full = used and limit and used / limit > THRESHOLDS["redis_memory_ratio"]
    return {"": "Redis has used most of its memory"} if full else {}


def _disks(_before: Readings, now: Readings) -> Mapping[str, str]:
    free = now.of("disk_free_bytes", "folder")
    sizes = now.of("disk_size_bytes", "folder")
    full = [folder for folder, size in sizes.items() if size and 1 - free[folder] / size > _DISK]
    return {folder: f"the disk under {folder} is full" for folder in full}


_DISK = THRESHOLDS["disk_ratio_critical"]
RULES = (
    Rule("RedisDown", "P1", "21-redis-down", _below("dependency_up", "Redis is down", dependency="redis")),
    Rule("NoWorkers", "P1", "26-worker-crash-or-oom", _below("active_workers", "no worker runs: ./scripts/start.sh")),
    Rule("DiskFull", "P1", "210-disk", _disks),
    Rule(
        "ImapUnreachable",
        "P2",
        "22-imap-unreachable",
        _below("dependency_up", "the mail server cannot be reached", dependency="imap"),
    ),
    Rule(
        "MailboxSilent",
        "P2",
        "212-mailbox-silent",
        _older(
            "imap_last_success_timestamp_seconds",
            "account",
            THRESHOLDS["sync_silence_seconds"],
            "account {} has not been looked at for {:.0f} min",
        ),
    ),
    Rule("CircuitBreakerOpen", "P2", "24-circuit-breaker-open", _breakers, looks=2),
    Rule(
        "QueueBacklogCritical",
        "P2",
        "27-backlog",
        _above("stream_depth", THRESHOLDS["backlog_critical"], "{:.0f} messages wait in the stream"),
        looks=2,
    ),
    Rule(
        "PendingStuck",
        "P2",
        "211-stuck-message",
        _older(
            "stream_oldest_pending_timestamp_seconds",
            "",
            THRESHOLDS["pending_seconds"],
            "a message is stuck{} for {:.0f} min: email-ingestion pending list",
        ),
    ),
    Rule("DlqGrowing", "P2", "25-dlq-growing", _dead_letters),
    Rule("RedisMemoryHigh", "P2", "29-memory", _redis_memory),
    Rule("ReauthRequired", "P3", "23-oauth2-token-expired", _reauthorize),
    Rule(
        "ConsentEnding",
        "P3",
        "23-oauth2-token-expired",
        _older(
            "oauth2_consent_expiry_timestamp_seconds",
            "account",
            -THRESHOLDS["consent_seconds"],
            "the consent of account {} ends within days: python producer.py --auth-setup",
        ),
    ),
    Rule(
        "BackupMissed",
        "P4",
        "221-backup-missed",
        _older(
            "backup_last_success_timestamp_seconds",
            "",
            THRESHOLDS["backup_age_seconds"],
            "the last verified backup{} is {:.0f} min old: python scripts/backup.py",
        ),
    ),
    Rule(
        "FreshnessBudgetBurn",
        "P1",
        "27-backlog",
        _older(
            "delivered_until_timestamp_seconds",
            "account",
            THRESHOLDS["freshness_seconds"],
            "mail of account {} waits for {:.0f} min",
        ),
        looks=2,
    ),
)
# The cause silences its consequences, as in config/alertmanager.yml.
CONSEQUENCES = {
    "RedisDown": {"CircuitBreakerOpen", "MailboxSilent", "FreshnessBudgetBurn"},
    "NoWorkers": {"QueueBacklogCritical", "PendingStuck", "FreshnessBudgetBurn"},
    "ImapUnreachable": {"CircuitBreakerOpen", "MailboxSilent", "FreshnessBudgetBurn"},
    "ReauthRequired": {"CircuitBreakerOpen", "MailboxSilent", "FreshnessBudgetBurn"},
    "MailboxSilent": {"FreshnessBudgetBurn"},
    "QueueBacklogCritical": {"FreshnessBudgetBurn"},
}


WANTED = {"MailboxSilent", "FreshnessBudgetBurn"}  # what a pause of the producer brings about


@dataclass(frozen=True, slots=True)
class Trouble:
    """A rule that is broken, for one account, breaker or folder; a consequence of another is not told."""

    rule: Rule
    which: str
    sentence: str
    consequence: bool

    @property
    def key(self) -> str:
        """What it is remembered by."""
        return f"{self.rule.name}/{self.which}" if self.which else self.rule.name


@dataclass(frozen=True, slots=True)
class Notice:
    """What somebody is told at once: everything new, everything still wrong a day later, everything over."""

    title: str
    body: str
    wrong: int
    over: int


class Monitor:
    """`look` now and then. `tell` says whether the notice got through; what did not is told again at the next look."""

    def __init__(
        self,
        read: Callable[[], Iterable[Metric]],
        tell: Callable[[Notice], bool],
        memory: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read = read
        self._tell = tell
        self._memory = memory
        self._clock = clock
        self._before = Readings((), clock())
        self._looks: dict[str, int] = {}
        self._told = _remembered(memory)  # when each trouble was told last, by its key

    def look(self) -> None:
        """Read, decide, tell. Raises ConfigurationError when what was told cannot be written down."""
        now = Readings(self._read(), self._clock())
        wrong = {trouble.key: trouble for trouble in _troubles(self._before, now)}
        self._before = now
        self._looks = {key: self._looks.get(key, 0) + 1 for key in wrong}
        due = {key: trouble for key, trouble in wrong.items() if self._due(trouble, now.now)}
        over = [key for key in self._told if key not in wrong]
        if (due or over) and self._tell(_notice(due, over)):
            self._told = {key: at for key, at in self._told.items() if key in wrong} | dict.fromkeys(due, now.now)
            write_private(self._memory, json.dumps(self._told))

    def _due(self, trouble: Trouble, now: float) -> bool:
        if trouble.consequence:
            return False
        told = self._told.get(trouble.key)
        return self._looks[trouble.key] >= trouble.rule.looks if told is None else now - told >= REMIND_SECONDS


def _troubles(before: Readings, now: Readings) -> Iterator[Trouble]:
    found = {rule: rule.says(before, now) for rule in RULES}
    consequences = {name for rule, said in found.items() if said for name in CONSEQUENCES.get(rule.name, ())}
    if before.the("paused") or now.the("paused"):  # an operator wanted it; after it the first sync is waited for
        consequences |= WANTED
    for rule, said in found.items():
        for which, sentence in said.items():
            yield Trouble(rule, which, sentence, rule.name in consequences)


def _notice(due: Mapping[str, Trouble], over: Sequence[str]) -> Notice:
    lines = [f"[{it.rule.priority}] {it.sentence}" for it in due.values()]
    title = lines[0] if lines else f"over: {', '.join(over)}"
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    links = [f"{RUNBOOK}#{it.rule.anchor}" for it in due.values()]
    told = [f"{line}\n{link}" for line, link in zip(lines, links, strict=True)]
    body = "\n\n".join([*told, *(f"over: {key}" for key in over)])
    return Notice(f"email-ingestion: {title}{more}", body, len(due), len(over))


def _remembered(memory: Path) -> dict[str, float]:
    try:
        return {str(key): float(at) for key, at in json.loads(memory.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # nothing was told yet, or nobody knows: telling twice is the lesser evil
