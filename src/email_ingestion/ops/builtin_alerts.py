"""The built-in alerts: some of the rules of config/alerts.yml, for our own metrics where no Prometheus runs.

`alert_monitor` evaluates them. The thresholds stand in that file alone.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from prometheus_client.core import Metric

from email_ingestion.ops.metric_factory import PREFIX

RUNBOOK = "http://localhost:8080/runbooks/incident_response"  # where RUNBOOK_BASE_URL is not set
DAY = 86_400.0
OTHER_CLOCKS = ("stream_", "sink_")
REDIS_DOWN = "Redis is down or refuses writes: email-ingestion doctor says which"


class MetricsSnapshot:
    """Our metrics at one moment, by name without the prefix, and the thresholds that hold; `now` in Unix seconds."""

    def __init__(self, families: Iterable[Metric], now: float, thresholds: Mapping[str, float]) -> None:
        self.now = now
        self.thresholds = thresholds
        self._samples = [sample for family in families for sample in family.samples]

    def by_label(self, name: str, label: str = "", **labels: str) -> dict[str, float]:
        """Return the values of a metric by one of its labels; a series without that label has the key "".

        `labels` limits the series to those that carry these labels.
        """
        return {
            sample.labels.get(label, ""): sample.value
            for sample in self._samples
            if sample.name == f"{PREFIX}_{name}" and labels.items() <= sample.labels.items()
        }

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of the only series of a metric; None when there is none."""
        return next(iter(self.by_label(name, **labels).values()), None)

    def ages(self, name: str, label: str = "") -> dict[str, float]:
        """Return the seconds that have passed since the times a metric holds, by one of its labels.

        Those that were written by the clock of Redis or of the database are compared with that, as far as it is known.
        """
        now = self.now - (self.value("clock_offset_seconds") or 0.0) if name.startswith(OTHER_CLOCKS) else self.now
        return {key: now - at for key, at in self.by_label(name, label).items()}


AlertCondition = Callable[[MetricsSnapshot, MetricsSnapshot], Mapping[str, str]]
"""Compares the previous snapshot with the current one; a sentence for every account, breaker or folder affected."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """The alert of the same name in config/alerts.yml; `anchor` is its section of the runbook.

    It becomes active when the condition holds in `evaluations` evaluations in a row.
    """

    name: str
    priority: str
    anchor: str
    condition: AlertCondition
    evaluations: int = 1


def _below(name: str, sentence: str, **labels: str) -> AlertCondition:
    return lambda _previous, current: {"": sentence} if current.value(name, **labels) == 0 else {}


def _above(name: str, threshold: str, sentence: str) -> AlertCondition:
    def condition(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
        value = current.value(name) or 0
        return {"": sentence.format(value)} if value > current.thresholds[threshold] else {}

    return condition


def _older(name: str, label: str, threshold: str, sentence: str) -> AlertCondition:
    def condition(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
        ages = current.ages(name, label).items()
        return {key: sentence.format(key, age / 60) for key, age in ages if age > current.thresholds[threshold]}

    return condition


def _ending(name: str, label: str, threshold: str, sentence: str) -> AlertCondition:
    def condition(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
        left = {key: -age for key, age in current.ages(name, label).items()}
        limit = current.thresholds[threshold]
        return {key: sentence.format(key, max(0.0, seconds / DAY)) for key, seconds in left.items() if seconds < limit}

    return condition


def _unreachable(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    servers = current.by_label("imap_up", "account").items()
    sentence = "the mail server of account {} cannot be used: email-ingestion doctor says why"
    return {account: sentence.format(account) for account, is_up in servers if not is_up}


def _reauthorize(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    waiting = [account for account, value in current.by_label("oauth2_reauth_required", "account").items() if value]
    sentence = "account {0} must be authorized again: python producer.py --auth-setup --account {0}"
    return {account: sentence.format(account) for account in waiting}


def _refused_clients(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    states = current.by_label("oauth2_token_state", "account", state="client refused")
    sentence = "the OAuth2 client of account {} is refused: compare GOOGLE_CLIENT_SECRET with the provider's console"
    return {account: sentence.format(account) for account, value in states.items() if value}


def _breakers(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    states = current.by_label("circuit_breaker_state", "name")
    return {name: f"circuit breaker {name} is open" for name, state in states.items() if state}


def _no_workers(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    """Go by the judgement of `ops.peers`: where workers were stopped on purpose and no mail waits, none is missing."""
    missing = current.value("missing_processes", kind="worker")
    return {"": "no worker runs: ./scripts/start.sh"} if missing and current.value("active_workers") == 0 else {}


def _crash_looping(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    crashes = current.by_label("process_recent_crashes", "process").items()
    sentence = (
        "{} ended by itself {:.0f} times within 15 min: email-ingestion starts tells how, "
        "email-ingestion pending list over which message"
    )
    return {name: sentence.format(name, count) for name, count in crashes if count > current.thresholds["restarts"]}


def _idle_workers(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    """The breakers of the sinks are the workers': what this process knows of them is whether they can deliver."""
    idle, redis = current.value("idle_workers"), current.value("dependency_up", dependency="redis")
    if not idle or redis == 0:
        return {}
    of = current.value("active_workers") or 0
    return {"": f"{idle:.0f} of {of:.0f} workers can deliver nothing, for want of the database: email-ingestion status"}


def _missing_processes(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    counts = current.by_label("missing_processes", "kind").items()
    return {
        kind: f"{count:.0f} {kind}{'' if count == 1 else 's'} should run and do{'es' * (count == 1)} not: "
        "email-ingestion status"
        for kind, count in counts
        if count
    }


def _late_sinks(threshold: str) -> AlertCondition:
    sentence = "sink {} has not got a message for {:.0f} min"
    late = _older("sink_oldest_timestamp_seconds", "sink", threshold, sentence)

    def condition(previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
        stopped_on_purpose = (current.value("degradation_level") or 0) >= MINIMAL
        paused = current.by_label("sink_paused", "sink")
        found = {} if stopped_on_purpose else late(previous, current)
        return {sink: sentence for sink, sentence in found.items() if sink not in paused}

    return condition


def _dead_letters(previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    new = (current.value("dlq_depth") or 0) - (previous.value("dlq_depth") or 0)
    return (
        {"": f"{new:.0f} new dead letters: email-ingestion dlq stats"}
        if new > current.thresholds["dead_letters"]
        else {}
    )


def _loop_errors(previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    def count(snapshot: MetricsSnapshot, loop: str) -> float:
        return sum(snapshot.by_label("loop_errors_total", "error_type", loop=loop).values())

    loops = current.by_label("loop_errors_total", "loop")
    sentence = "loop {} fails over something that nobody foresaw: see /ready"
    return {loop: sentence.format(loop) for loop in loops if count(current, loop) > count(previous, loop)}


def _quarantined(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    counts = current.by_label("imap_quarantined_messages", "account")
    sentence = "the mail server of account {} does not send {:.0f} messages: email-ingestion quarantine list"
    return {account: sentence.format(account, count) for account, count in counts.items() if count}


def _redis_memory(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    used, limit = current.value("redis_memory_used_bytes"), current.value("redis_memory_max_bytes")
    full = used and limit and used / limit > current.thresholds["redis_memory_ratio"]
    return {"": "Redis has used most of its memory"} if full else {}


def _disks(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    free = current.by_label("disk_free_bytes", "folder")
    sizes = current.by_label("disk_size_bytes", "folder")
    limit = current.thresholds["disk_ratio_critical"]
    full = [folder for folder, size in sizes.items() if size and 1 - free[folder] / size > limit]
    return {folder: f"the disk under {folder} has hardly any room left" for folder in full}


def _clock_offset(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    offset = abs(current.value("clock_offset_seconds") or 0)
    sentence = "this machine's clock and that of Redis are {:.0f} s apart: email-ingestion doctor"
    return {"": sentence.format(offset)} if offset > current.thresholds["clock_seconds"] else {}


def _memory_limit(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    used, limit = current.value("memory_used_bytes"), current.value("memory_limit_bytes")
    near = used and limit and used / limit > current.thresholds["memory_limit_ratio"]
    return {"": f"the producer has used {used / limit:.0%} of its memory limit"} if near and used and limit else {}


def _slow_dependencies(_previous: MetricsSnapshot, current: MetricsSnapshot) -> Mapping[str, str]:
    redis, others = current.thresholds["redis_seconds"], current.thresholds["dependency_seconds"]
    answers = current.by_label("dependency_response_seconds", "dependency").items()
    sentence = "{} takes {:.1f} s to answer: email-ingestion doctor"
    return {
        name: sentence.format(name, seconds)
        for name, seconds in answers
        if seconds > (redis if name == "redis" else others)
    }


MINIMAL = 2  # the level of degradation from which mail goes into the database only
ALERT_RULES = (
    AlertRule("RedisDown", "P1", "21-redis-down", _below("dependency_up", REDIS_DOWN, dependency="redis")),
    AlertRule("CrashLooping", "P1", "220-bad-deployment", _crash_looping),
    AlertRule("NoWorkers", "P1", "26-worker-crash-or-oom", _no_workers),
    AlertRule("ProcessMissing", "P2", "26-worker-crash-or-oom", _missing_processes, evaluations=2),
    AlertRule("SinkDown", "P2", "217-database-locked", _idle_workers, evaluations=2),
    AlertRule("DiskFull", "P1", "210-disk", _disks),
    AlertRule(
        "ImapUnreachable",
        "P2",
        "22-imap-unreachable",
        _unreachable,
    ),
    AlertRule(
        "MailboxSilent",
        "P2",
        "212-mailbox-silent",
        _older(
            "imap_last_success_timestamp_seconds",
            "account",
            "sync_silence_seconds",
            "account {} has not been looked at for {:.0f} min",
        ),
    ),
    AlertRule("CircuitBreakerOpen", "P2", "24-circuit-breaker-open", _breakers, evaluations=2),
    AlertRule(
        "QueueBacklogCritical",
        "P2",
        "27-backlog",
        _above("stream_depth", "backlog_critical", "{:.0f} messages wait in the stream"),
        evaluations=2,
    ),
    AlertRule(
        "PendingStuck",
        "P2",
        "211-stuck-message",
        _older(
            "stream_oldest_pending_timestamp_seconds",
            "",
            "pending_seconds",
            "a message is stuck{} for {:.0f} min: email-ingestion pending list",
        ),
    ),
    AlertRule(
        "LongRunningMessageCritical",
        "P2",
        "211-stuck-message",
        _older(
            "stream_oldest_pending_timestamp_seconds",
            "",
            "message_age_critical",
            "a message takes very long{}, {:.0f} min until now: email-ingestion pending list",
        ),
    ),
    AlertRule(
        "LongRunningMessageWarning",
        "P3",
        "211-stuck-message",
        _older(
            "stream_oldest_pending_timestamp_seconds",
            "",
            "message_age_warning",
            "a message takes long{}, {:.0f} min until now: email-ingestion pending list",
        ),
    ),
    AlertRule(
        "SinkStuck",
        "P2",
        "218-webhook-down",
        _late_sinks("sink_seconds_critical"),
    ),
    AlertRule(
        "SinkLate",
        "P3",
        "218-webhook-down",
        _late_sinks("sink_seconds_warning"),
    ),
    AlertRule("DlqGrowing", "P2", "25-dlq-growing", _dead_letters),
    AlertRule("RedisMemoryHigh", "P2", "29-memory", _redis_memory),
    AlertRule("MemoryNearLimit", "P2", "29-memory", _memory_limit, evaluations=2),
    AlertRule("DependencySlow", "P3", "28-slow-processing", _slow_dependencies, evaluations=2),
    AlertRule("LoopFailing", "P3", "223-loop-failing", _loop_errors),
    AlertRule("MailQuarantined", "P3", "224-quarantined-mail", _quarantined, evaluations=2),
    AlertRule("ClockOffset", "P3", "225-clock-offset", _clock_offset, evaluations=2),
    AlertRule("ReauthRequired", "P3", "23-oauth2-token-expired", _reauthorize),
    AlertRule("ClientRefused", "P3", "23-oauth2-token-expired", _refused_clients),
    AlertRule(
        "ConsentEnding",
        "P3",
        "23-oauth2-token-expired",
        _ending(
            "oauth2_consent_expiry_timestamp_seconds",
            "account",
            "consent_seconds",
            "the consent of account {} ends within days: python producer.py --auth-setup",
        ),
    ),
    AlertRule(
        "CertificateEndingSoon",
        "P2",
        "22-imap-unreachable",
        _ending(
            "certificate_expiry_timestamp_seconds",
            "dependency",
            "certificate_seconds_critical",
            "the TLS certificate of {} ends in {:.0f} days",
        ),
    ),
    AlertRule(
        "CertificateEnding",
        "P3",
        "22-imap-unreachable",
        _ending(
            "certificate_expiry_timestamp_seconds",
            "dependency",
            "certificate_seconds_warning",
            "the TLS certificate of {} ends in {:.0f} days",
        ),
    ),
    AlertRule(
        "BackupMissed",
        "P4",
        "221-backup-missed",
        _older(
            "backup_last_success_timestamp_seconds",
            "",
            "backup_age_seconds",
            "the last verified backup{} is {:.0f} min old: python scripts/backup.py",
        ),
    ),
    AlertRule(
        "FreshnessBudgetBurn",
        "P1",
        "27-backlog",
        _older(
            "delivered_until_timestamp_seconds",
            "account",
            "freshness_seconds",
            "mail of account {} waits for {:.0f} min",
        ),
        evaluations=2,
    ),
)
_LONG_RUNNING = {"LongRunningMessageWarning", "LongRunningMessageCritical"}
_OF_CREDENTIALS = {
    *("CircuitBreakerOpen/imap*", "CircuitBreakerOpen/oauth2", "ConsentEnding/{}", "MailboxSilent/{}"),
    "FreshnessBudgetBurn/{}",
}
# An active cause inhibits its consequences, as in config/alertmanager.yml: alerts of these names, or with these keys.
# In a key `{}` is what the cause is about, for trouble of one account must not hide that of another.
CONSEQUENCES = {
    "RedisDown": {"CircuitBreakerOpen/redis", "MailboxSilent", "FreshnessBudgetBurn"},
    "CrashLooping": {"NoWorkers", "ProcessMissing", "FreshnessBudgetBurn"},
    "NoWorkers": {"ProcessMissing/worker", "QueueBacklogCritical", "PendingStuck", "FreshnessBudgetBurn"}
    | _LONG_RUNNING,
    "SinkDown": {"QueueBacklogCritical", "PendingStuck", "FreshnessBudgetBurn", *_LONG_RUNNING},
    "PendingStuck": _LONG_RUNNING,
    "LongRunningMessageCritical": {"LongRunningMessageWarning"},
    "CertificateEndingSoon": {"CertificateEnding/{}"},
    "ImapUnreachable": {"CircuitBreakerOpen/imap*", "MailboxSilent/{}", "FreshnessBudgetBurn/{}"},
    "ReauthRequired": _OF_CREDENTIALS,
    "ClientRefused": _OF_CREDENTIALS,
    "MailboxSilent": {"FreshnessBudgetBurn/{}"},
    "SinkStuck": {"SinkLate/{}"},
    "QueueBacklogCritical": {"FreshnessBudgetBurn"},
}
# Alerts that compare a time with this machine's clock: after that was set they wait until the times are new.
AGES = {
    *("MailboxSilent", "FreshnessBudgetBurn", "PendingStuck", "SinkStuck", "SinkLate", "BackupMissed", "CrashLooping"),
    *("ConsentEnding", "CertificateEnding", "CertificateEndingSoon"),
    *_LONG_RUNNING,
}
PAUSE_CONSEQUENCES = {"MailboxSilent", "FreshnessBudgetBurn"}  # the alerts that a paused producer brings about


def is_consequence(key: str, cause: str, subject: str) -> bool:
    """Tell whether an alert is brought about by that of the name `cause`, which is about `subject`."""
    of_this = (each.replace("{}", glob.escape(subject)) for each in CONSEQUENCES.get(cause, ()))
    return any(fnmatchcase(key if "/" in each else key.partition("/")[0], each) for each in of_this)


def rule_of(key: str) -> AlertRule | None:
    """Return the rule of an alert by its key; None for one of another release."""
    name = key.partition("/")[0]
    return next((rule for rule in ALERT_RULES if rule.name == name), None)
