"""The built-in monitor: told once, reminded of once a day, told when it is over; over real sockets."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from email_ingestion import errors, events
from email_ingestion.errors import ConfigurationError
from email_ingestion.ops import alert_monitor
from email_ingestion.ops.alert_channels import AlertChannels, configured_channels, sentences_about
from email_ingestion.ops.alert_monitor import REPEAT_SECONDS, ActiveAlert, AlertMonitor, MonitorFiles
from email_ingestion.ops.alert_silences import Silence, add_silence, read_silences
from email_ingestion.ops.alert_thresholds import CurrentThresholds, alert_thresholds
from email_ingestion.ops.builtin_alerts import ALERT_RULES, CONSEQUENCES, REDIS_DOWN, RUNBOOK
from email_ingestion.ops.collectors import CrashGauges, OverrideGauges
from email_ingestion.ops.contacts import Contact, Contacts, read_contacts
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.notices import NoticeItem, Notification, priority_of
from email_ingestion.ops.status_records import RedisState
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.settings import Settings
from tests.alerts.rules import alerts, recorded
from tests.servers.processes import Place
from tests.servers.receiver import Receiver, http_receiver, smtp_receiver
from tests.unit.ops.shown import PRODUCER, PRODUCER_NAMES, READING, Clock, FakeBreaker

CALM = replace(
    READING,
    stream=replace(READING.stream, oldest_timestamp=None, oldest_pending_timestamp=None),
    missing_processes={"producer": 0, "worker": 0},
)


class Watched:
    """A producer with a monitor, and a person who is told."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock(10_000.0)
        self.set_by = 0.0  # seconds by which somebody has set the clock
        self.redis: RedisState | None = CALM
        self.breaker = FakeBreaker("imap")
        names = replace(PRODUCER_NAMES, folders={})
        self.metrics = Metrics(PRODUCER, names, lambda: [self.breaker], lambda: self.redis, self.clock)
        self.sent: list[Notification] = []
        self.reachable = True
        self.state_file = folder / "alerts.json"
        self.files = MonitorFiles(self.state_file, folder / "active.json", folder / "silences.json")
        self.opened: list[ActiveAlert] = []
        self.over: list[str] = []
        self.restart()
        self.probe("redis", ok=True)
        self.listed()

    def restart(self) -> None:
        self.monitor = AlertMonitor(
            self.metrics.registry.collect,
            self.send,
            self.files,
            clock=lambda: self.clock.now + self.set_by,
            ticks=self.clock,
            on_firing=self.opened.append,
            on_over=lambda rule: self.over.append(rule.name),
        )

    def send(self, notification: Notification) -> bool:
        if self.reachable:
            self.sent.append(notification)
        return self.reachable

    def probe(self, dependency: str, *, ok: bool) -> None:
        self.metrics(events.Probed(dependency, ok, 0.0, None if ok else errors.RedisConnectionError("gone")))

    def listed(self) -> None:
        self.metrics(events.Synced("default", "INBOX", 1, 1, 0, 0.0))

    def evaluate(self, *, after: float = 300.0, times: int = 1) -> list[str]:
        """The titles of what is told by these evaluations."""
        before = len(self.sent)
        for _ in range(times):
            self.clock.now += after
            self.listed()
            self.monitor.evaluate()
        return [notification.title for notification in self.sent[before:]]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_nobody_is_told_of_a_healthy_system(watched: Watched) -> None:
    assert watched.evaluate(times=5) == []


def test_a_fault_is_told_once_then_that_it_is_over(watched: Watched) -> None:
    watched.probe("redis", ok=False)
    assert watched.evaluate(times=5) == [f"email-ingestion: [P1] {REDIS_DOWN}"]
    assert f"{RUNBOOK}#21-redis-down" in watched.sent[-1].body
    watched.probe("redis", ok=True)
    assert watched.evaluate(times=3) == ["email-ingestion: over: RedisDown"]


def test_a_fault_that_stays_is_told_again_once_a_day(watched: Watched) -> None:
    watched.probe("redis", ok=False)
    looks = int(2.5 * REPEAT_SECONDS / 1800)
    assert watched.evaluate(after=1800, times=looks) == [f"email-ingestion: [P1] {REDIS_DOWN}"] * 3


def test_what_may_pass_is_told_at_the_second_look(watched: Watched) -> None:
    watched.redis = replace(CALM, stream=replace(CALM.stream, depth=500))
    assert watched.evaluate() == []
    assert watched.evaluate() == ["email-ingestion: [P2] 500 messages wait in the stream"]


def test_faults_of_one_look_are_one_notice_without_their_consequences(watched: Watched) -> None:
    watched.probe("redis", ok=False)
    watched.breaker.state = "OPEN"
    watched.metrics(events.NeedsOperator("second", errors.OAuth2AuthenticationError("revoked")))
    assert watched.evaluate(times=3) == [f"email-ingestion: [P1] {REDIS_DOWN} (and 1 more)"]
    assert "circuit breaker" not in watched.sent[0].body
    assert "account second must be authorized again" in watched.sent[0].body


def test_what_was_told_is_not_over_because_its_cause_shows(watched: Watched) -> None:
    watched.breaker.name, watched.breaker.state = "redis", "OPEN"
    assert watched.evaluate(times=2) == ["email-ingestion: [P2] circuit breaker redis is open"]
    watched.probe("redis", ok=False)
    assert watched.evaluate() == [f"email-ingestion: [P1] {REDIS_DOWN}"]


def test_a_second_account_with_the_same_trouble_is_news(watched: Watched) -> None:
    for account in ("default", "second"):
        watched.metrics(events.NeedsOperator(account, errors.OAuth2AuthenticationError("revoked")))
        (title,) = watched.evaluate(times=3)
        assert f"account {account} must be authorized" in title


def test_a_restart_does_not_tell_again(watched: Watched) -> None:
    watched.probe("redis", ok=False)
    watched.evaluate()
    watched.restart()
    assert watched.evaluate(times=2) == []


def test_a_memory_that_cannot_be_read_tells_again(watched: Watched) -> None:
    watched.probe("redis", ok=False)
    watched.evaluate()
    watched.state_file.write_text("[1")
    watched.restart()
    assert watched.evaluate() == [f"email-ingestion: [P1] {REDIS_DOWN}"]


def test_a_full_disk_is_told_though_nothing_can_be_written(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, _content: str) -> None:
        raise errors.ConfigurationError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(alert_monitor, "write_private", write)
    watched.probe("redis", ok=False)
    for _ in range(3):
        with pytest.raises(errors.ConfigurationError, match="No space left"):
            watched.evaluate()
    assert [notification.title for notification in watched.sent] == [f"email-ingestion: [P1] {REDIS_DOWN}"]
    assert [alert.key for alert in watched.opened] == ["RedisDown"]


def test_silences_that_cannot_be_read_silence_nothing(watched: Watched) -> None:
    watched.files.silences.write_text("[1")
    watched.probe("redis", ok=False)
    with pytest.raises(errors.OperationFailed, match="move it away"):
        watched.evaluate()
    assert [notification.title for notification in watched.sent] == [f"email-ingestion: [P1] {REDIS_DOWN}"]


def test_what_did_not_get_through_is_told_at_the_next_look(watched: Watched) -> None:
    watched.probe("redis", ok=False)
    watched.reachable = False
    assert watched.evaluate(times=2) == []
    watched.reachable = True
    assert watched.evaluate() == [f"email-ingestion: [P1] {REDIS_DOWN}"]


def test_workers_that_were_stopped_on_purpose_are_not_missed_and_dead_ones_are(watched: Watched) -> None:
    watched.redis = replace(CALM, active_workers=0)
    assert watched.evaluate(times=3) == []
    watched.redis = replace(CALM, active_workers=0, missing_processes={"producer": 0, "worker": 1})
    assert watched.evaluate(times=3) == ["email-ingestion: [P1] no worker runs: ./scripts/start.sh"]
    watched.redis = CALM
    assert watched.evaluate() == ["email-ingestion: over: NoWorkers"]


def test_a_dead_second_worker_is_told_when_it_stays_dead(watched: Watched) -> None:
    watched.redis = replace(CALM, active_workers=1, missing_processes={"producer": 0, "worker": 1})
    assert watched.evaluate() == []
    told = ["email-ingestion: [P2] 1 worker should run and does not: email-ingestion status"]
    assert watched.evaluate() == told
    watched.redis = CALM
    assert watched.evaluate() == ["email-ingestion: over: ProcessMissing/worker"]


def test_a_sink_that_is_late_is_told_and_again_when_it_is_stuck(watched: Watched) -> None:
    watched.redis = replace(CALM, sinks_oldest={"webhook": watched.clock.now})
    assert watched.evaluate(after=299) == []
    assert watched.evaluate(after=61) == ["email-ingestion: [P3] sink webhook has not got a message for 6 min"]
    assert watched.evaluate(after=300) == ["email-ingestion: [P2] sink webhook has not got a message for 11 min"]
    assert watched.evaluate(after=300) == []
    watched.redis = CALM
    assert watched.evaluate() == ["email-ingestion: over: SinkLate/webhook, SinkStuck/webhook"]


def test_sinks_that_an_operator_stopped_are_not_late(watched: Watched) -> None:
    control = OperatorOverrides("producer", lambda: watched.clock.now)
    watched.metrics.registry.register(OverrideGauges(control))
    control.set_level("MINIMAL", 20_000, "somebody")
    watched.redis = replace(CALM, sinks_oldest={"webhook": watched.clock.now})
    assert watched.evaluate(times=4) == []


def test_new_dead_letters_between_two_looks_are_told(watched: Watched) -> None:
    watched.evaluate()
    watched.redis = replace(CALM, dlq=replace(CALM.dlq, depth=30))
    assert watched.evaluate() == ["email-ingestion: [P2] 29 new dead letters: email-ingestion dlq stats"]


def test_mail_that_waits_and_a_silent_mailbox_are_told(watched: Watched) -> None:
    watched.clock.now += 10_000
    for _ in range(2):
        watched.monitor.evaluate()
    assert [notification.title for notification in watched.sent] == [
        "email-ingestion: [P2] account default has not been looked at for 167 min"
    ]


def test_a_pause_that_an_operator_wanted_is_no_silence(watched: Watched) -> None:
    control = OperatorOverrides("producer", lambda: watched.clock.now)
    watched.metrics.registry.register(OverrideGauges(control))
    control.pause(20_000, "somebody")
    watched.clock.now += 10_000
    watched.monitor.evaluate()
    control.resume()
    watched.monitor.evaluate()
    assert watched.sent == []
    watched.monitor.evaluate()
    assert len(watched.sent) == 1


def test_rules_thresholds_and_priorities_are_those_of_the_alerts() -> None:
    known = {alert["alert"].removeprefix("EmailIngestion"): alert for alert in alerts()}
    for rule in ALERT_RULES:
        assert known[rule.name]["labels"]["priority"] == rule.priority
        assert known[rule.name]["annotations"]["runbook_url"] == f"{RUNBOOK}#{rule.anchor}"
    read = {f"email_ingestion:threshold:{name}": value for name, value in alert_thresholds().items()}
    assert read == {name: float(value) for name, value in recorded().items() if ":threshold:" in name}
    names = {rule.name for rule in ALERT_RULES}
    consequences = {each.partition("/")[0] for found in CONSEQUENCES.values() for each in found}
    assert set(CONSEQUENCES) | consequences <= names


def test_a_worker_that_crashes_again_and_again_is_one_alert_and_not_one_at_each_start(watched: Watched) -> None:
    logs = watched.files.sent.parent
    watched.metrics.registry.register(CrashGauges(logs, watched.clock))
    for number in range(4):
        start = {"process": "worker", "pid": number, "version": "1", "started": watched.clock.now + number}
        with (logs / "starts.jsonl").open("a") as file:
            file.write(json.dumps(start) + "\n")
    titles = []
    for number in range(4):
        watched.redis = replace(CALM, active_workers=number % 2, missing_processes={"worker": 1 - number % 2})
        titles += watched.evaluate(after=60)
    (title,) = titles
    assert title.startswith(
        "email-ingestion: [P1] worker ended by itself 3 times within 15 min: email-ingestion starts"
    )
    watched.redis = CALM
    assert watched.evaluate(after=900) == ["email-ingestion: over: CrashLooping/worker"]


def test_a_clock_that_is_set_makes_no_alerts_of_old_times_and_hides_none_for_long(watched: Watched) -> None:
    two_days = 172_800.0
    watched.probe("redis", ok=False)
    assert len(watched.evaluate()) == 1
    pending = replace(CALM.stream, oldest_pending_timestamp=watched.clock.now)
    watched.redis = replace(CALM, stream=pending)
    for step in (two_days, 0.0):
        watched.set_by = step
        assert watched.evaluate(after=10) == [], "nor is what was told told again"
        watched.redis = replace(CALM, stream=pending, clock_offset=step)
        titles = watched.evaluate(after=10, times=2)
        (title,) = titles
        assert ("[P3] this machine's clock" if step else "over: ClockOffset") in title
    shown = {each["alert"]: each["since"] for each in json.loads(watched.files.active.read_text())["alerts"]}
    assert shown["RedisDown"].startswith("1970-01-01"), "since when it is moves with the clock"
    pending = replace(CALM.stream, oldest_pending_timestamp=watched.clock.now - 2000)
    watched.redis = replace(CALM, stream=pending)
    assert any("stuck" in title for title in watched.evaluate(after=301))


def test_workers_that_can_deliver_nothing_are_told_though_their_breakers_are_not_ours(watched: Watched) -> None:
    long_ago = replace(CALM.stream, depth=900, oldest_pending_timestamp=1.0)
    watched.redis = replace(CALM, idle_workers=2, stream=long_ago)
    (title,) = watched.evaluate(times=3)
    assert title.startswith("email-ingestion: [P2] 2 of 2 workers can deliver nothing")
    watched.probe("redis", ok=False)
    assert any(REDIS_DOWN in title for title in watched.evaluate()), "then it is Redis that they lack"
    watched.probe("redis", ok=True)
    watched.redis = CALM
    assert "over: " in watched.evaluate()[-1]
    watched.redis = replace(CALM, idle_workers=1)
    assert watched.evaluate() == [], "a worker that starts"


def server_of(account: str, error: Exception | None = None) -> events.Probed:
    return events.Probed("imap", ok=error is None, seconds=0.0, error=error, account=account)


def test_trouble_of_one_account_hides_none_of_another(watched: Watched) -> None:
    def trouble(account: str) -> None:
        watched.metrics(events.Synced(account, "INBOX", 1, 1, 0, 0.0))
        watched.clock.now += 700

    for account in ("default", "second"):
        trouble(account)
    watched.metrics(events.NeedsOperator("default", errors.OAuth2AuthenticationError("revoked")))
    watched.metrics(server_of("second", errors.IMAPConnectionError("certificate")))
    watched.metrics(server_of("default"))
    watched.breaker = FakeBreaker("database", "OPEN")
    watched.clock.now += 700
    for _ in range(2):
        watched.monitor.evaluate()
    shown = {each["alert"]: each["state"] for each in json.loads(watched.files.active.read_text())["alerts"]}
    assert {name: state for name, state in shown.items() if not name.startswith("Freshness")} == {
        "ReauthRequired/default": "firing",
        "MailboxSilent/default": "inhibited",
        "ImapUnreachable/second": "firing",
        "MailboxSilent/second": "inhibited",
        "CircuitBreakerOpen/database": "firing",
    }
    watched.metrics(events.NeedsOperator("second", errors.ConfigurationError("IMAP_MAILBOX")))
    watched.monitor.evaluate()
    shown = {each["alert"]: each["state"] for each in json.loads(watched.files.active.read_text())["alerts"]}
    assert (shown["MailboxSilent/default"], shown["MailboxSilent/second"]) == ("inhibited", "firing")


def rule(name: str, expression: str) -> str:
    return f"groups:\n  - rules:\n      - record: email_ingestion:threshold:{name}\n        expr: {expression}\n"


def test_a_threshold_is_what_the_file_in_this_folder_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = alert_thresholds()
    assert shipped["freshness_seconds"] == 300
    file = tmp_path / "config" / "alerts.yml"
    file.parent.mkdir()
    for written, value in (('"120"', 120), ("120 # two minutes", 120), ("'2 * 60'", 120), ("|\n          1.2e2", 120)):
        file.write_text(rule("freshness_seconds", written))
        assert alert_thresholds() == shipped | {"freshness_seconds": value}
    for wrong in ('"soon"', "", "time()"):
        file.write_text(rule("freshness_seconds", wrong))
        with pytest.raises(ConfigurationError, match=r"alerts\.yml: threshold freshness_seconds is .*write a number"):
            alert_thresholds()


def test_an_edit_counts_at_the_next_look_and_a_wrong_one_leaves_what_was(tmp_path: Path, watched: Watched) -> None:
    file = tmp_path / "alerts.yml"
    file.write_text(rule("backlog_critical", '"1000"'))
    thresholds = CurrentThresholds(file)
    watched.monitor = AlertMonitor(
        watched.metrics.registry.collect, watched.send, watched.files, clock=watched.clock, thresholds=thresholds.read
    )
    watched.redis = replace(CALM, stream=replace(CALM.stream, depth=500))
    assert watched.evaluate(times=3) == []
    file.write_text(rule("backlog_critical", '"400"'))
    assert watched.evaluate(times=2) == ["email-ingestion: [P2] 500 messages wait in the stream"]
    file.write_text(rule("backlog_critical", '"many"'))
    with pytest.raises(ConfigurationError):
        thresholds.read()
    assert thresholds.read()["backlog_critical"] == thresholds.last["backlog_critical"] == 400


def test_a_message_in_hand_is_told_in_tiers(watched: Watched) -> None:
    watched.redis = replace(CALM, stream=replace(CALM.stream, oldest_pending_timestamp=watched.clock.now))
    assert watched.evaluate(after=299) == []
    assert watched.evaluate(after=60) == [
        "email-ingestion: [P3] a message takes long, 6 min until now: email-ingestion pending list"
    ]
    (very,) = watched.evaluate(after=300)
    assert very.startswith("email-ingestion: [P2] a message takes very long, 11 min")
    (stuck,) = watched.evaluate(after=300)
    assert stuck.startswith("email-ingestion: [P2] a message is stuck for 16 min")


def test_a_certificate_that_ends_and_a_slow_server_are_told(watched: Watched) -> None:
    watched.metrics(events.CertificateSeen("imap", watched.clock.now + 10 * 86_400))
    assert watched.evaluate() == ["email-ingestion: [P3] the TLS certificate of imap ends in 10 days"]
    watched.metrics(events.CertificateSeen("imap", watched.clock.now + 2 * 86_400))
    assert watched.evaluate() == ["email-ingestion: [P2] the TLS certificate of imap ends in 2 days"]
    watched.metrics(events.CertificateSeen("imap", watched.clock.now + 80 * 86_400))
    watched.metrics(events.Connected("default", 7.5))
    watched.evaluate()
    assert watched.evaluate() == ["email-ingestion: [P3] imap takes 7.5 s to answer: email-ingestion doctor"]


@pytest.fixture
def somebody() -> Iterator[Receiver]:
    with http_receiver() as receiver:
        yield receiver


def settings(**values: object) -> Settings:
    return Settings(**values)


def test_a_notice_reaches_a_webhook_and_a_failure_is_known(somebody: Receiver) -> None:
    channels = AlertChannels(configured_channels(settings(alert_channels=f"json://127.0.0.1:{somebody.port}/here")))
    assert channels.send(Notification.of_text("P2", "a text")) is True
    assert [(it["title"], it["message"]) for it in somebody.posted] == [("email-ingestion: [P2] a text", "[P2] a text")]
    somebody.status = 500
    assert channels.send(Notification.of_text("P2", "a text")) is False


def test_a_notice_reaches_every_recipient_by_mail() -> None:
    with smtp_receiver() as server:
        found = configured_channels(
            settings(
                alert_email_recipients="ada@example.com, bob@example.com",
                alert_smtp_url=f"smtp://127.0.0.1:{server.port}",
            )
        )
        assert AlertChannels(found).send(Notification.of_text("P1", "Redis is down")) is True
    assert len(server.mail) == 2
    for name, text in zip(("ada", "bob"), server.mail, strict=True):
        assert f"To: {name}@example.com" in text
        assert "Subject: email-ingestion: [P1] Redis is down" in text


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"alert_channels": "nonsense://hush-hush"}, "ALERT_CHANNELS"),
        ({"slack_alert_webhook": "https://hooks.example.com/hush-hush"}, "SLACK_ALERT_WEBHOOK"),
        ({"alert_email_recipients": "ada@example.com", "alert_smtp_url": "hush-hush"}, "ALERT_SMTP_URL"),
    ],
)
def test_a_channel_that_cannot_be_is_named_without_its_secret(given: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AlertChannels(configured_channels(settings(**given)))
    assert str(caught.value).startswith(named)
    assert "hush-hush" not in str(caught.value)


PAGERDUTY_KEY = "0123456789abcdef0123456789abcdef"


def test_each_alert_has_an_incident_of_its_own_at_pagerduty_that_ends_with_it(somebody: Receiver) -> None:
    chosen = settings(
        alert_channels="pagerduty",
        pagerduty_routing_key=PAGERDUTY_KEY,
        pagerduty_events_url=f"http://127.0.0.1:{somebody.port}/v2/enqueue",
    )
    channels = AlertChannels(configured_channels(chosen), chosen.pagerduty_events_url)
    redis = NoticeItem("RedisDown", "P1", "Redis is down", f"{RUNBOOK}#21-redis-down")
    assert channels.send(Notification((redis, NoticeItem("SinkLate/webhook", "P3", "late"))))
    assert channels.send(Notification((replace(redis, over=True),)))
    triggers, end = somebody.posted[:2], somebody.posted[2]
    assert [each["payload"]["severity"] for each in triggers] == ["critical", "warning"]
    assert [each["event_action"] for each in somebody.posted] == ["trigger", "trigger", "resolve"]
    assert end["dedup_key"] == triggers[0]["dedup_key"] != triggers[1]["dedup_key"]
    assert {each["routing_key"] for each in somebody.posted} == {PAGERDUTY_KEY}
    somebody.status = 400
    assert channels.send(Notification.of_text("P1", "here")) is False


def test_short_names_choose_among_the_channels_that_have_settings() -> None:
    given = {
        "alert_email_recipients": "ada@example.com",
        "slack_alert_webhook": "https://hooks.slack.com/services/T0000AAAA/B0000AAAA/abcdefghijklmnopqrstuvwx",
        "pagerduty_routing_key": PAGERDUTY_KEY,
    }
    none = Contacts()
    names = lambda **more: [each.name for each in configured_channels(settings(**given, **more), none)]  # noqa: E731
    assert names() == ["slack", "email", "pagerduty"]
    assert names(alert_channels="json://127.0.0.1/") == ["json", "slack", "email", "pagerduty"]
    assert names(alert_channels="email,slack") == names(alert_channels="Email, SLACK,sentry") == ["email", "slack"]
    told = list(sentences_about(settings(**given, alert_channels="email,slack,sentry")))
    assert "sentry takes the exceptions of programs" in told[0]
    assert told[1].startswith("PAGERDUTY_ROUTING_KEY is set, but pagerduty is not named")
    assert list(sentences_about(settings(**given))) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"alert_channels": "email"}, "the channel email needs ALERT_EMAIL_RECIPIENTS"),
        ({"alert_channels": "slack"}, "the channel slack needs SLACK_ALERT_WEBHOOK"),
        ({"alert_channels": "pagerduty"}, "the channel pagerduty needs PAGERDUTY_ROUTING_KEY"),
        ({"alert_channels": "pagerduty", "pagerduty_routing_key": "short"}, "PAGERDUTY_ROUTING_KEY is no integration"),
        ({"alert_channels": "teams"}, "ALERT_CHANNELS: a channel is email, slack, pagerduty or a URL of apprise"),
    ],
)
def test_a_channel_without_its_settings_is_named(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        configured_channels(settings(**given), Contacts())


def test_contacts_say_who_is_told_of_what_and_what_nobody_is_told_of_all_are(somebody: Receiver) -> None:
    urls = [f"json://127.0.0.1:{somebody.port}/{name}" for name in ("everybody", "lead", "first")]
    contacts = Contacts(
        (
            Contact("L1", told_of=("P2", "P3"), channels=(urls[2],)),
            Contact("L2", told_of=("P1",), channels=(urls[1],)),
        )
    )

    def told(channels: list[str], *priorities: str) -> list[list[str]]:
        somebody.posted.clear()
        found = configured_channels(settings(alert_channels=",".join(channels)), contacts)
        items = tuple(NoticeItem(each, each, each) for each in priorities)
        sent = AlertChannels(found).send_each(Notification(items))
        assert all(taken for _, taken in sent)
        return [re.findall(r"\[(P\d)\]", each["message"]) for each in somebody.posted]

    assert told(urls[:1], "P1", "P3") == [["P1", "P3"], ["P3"], ["P1"]]
    assert told([], "P1") == [["P1"]]
    assert told([], "P1", "P4") == [["P4"], ["P1", "P4"]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[L1", "contacts.toml: "),
        ("L1 = 3", "L1 is no table of a role"),
        ("[L1]\nphone = 'x'", "[L1] has 'phone'; a role has role, when, reach, told_of, channels"),
        ("[L1]\ntold_of = ['P9']", "told_of of [L1] has 'P9'"),
        ("[L1]\nchannels = 'slack'", "channels of [L1] must be a list of texts"),
        ("[response_minutes]\nP1 = 'soon'", "[response_minutes] has P1 to P4"),
    ],
)
def test_contacts_that_are_wrong_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "contacts.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        read_contacts(path)
    assert read_contacts(tmp_path / "none.toml") == Contacts()


def test_what_somebody_has_in_hand_is_not_told_until_its_time_is_up(watched: Watched) -> None:
    watched.redis = replace(CALM, sinks_oldest={"webhook": watched.clock.now})
    assert len(watched.evaluate(after=360)) == 1

    def hush(pattern: str, kind: Literal["ack", "silence"], seconds: float) -> None:
        now = watched.clock.now
        add_silence(Silence(pattern, kind, now, now + seconds, "ada"), watched.files.silences)

    hush("EmailIngestionSinkLate", "ack", 3 * REPEAT_SECONDS)
    hush("sinkstuck/web*", "silence", 2000)
    assert watched.evaluate(times=6) == []
    (again,) = watched.evaluate(times=2)
    assert again.startswith("email-ingestion: [P2] sink webhook")
    active = json.loads(watched.files.active.read_text())["alerts"]
    assert [(each["alert"], each["state"]) for each in active] == [
        ("SinkStuck/webhook", "firing"),
        ("SinkLate/webhook", "inhibited"),
    ]
    watched.redis = CALM
    assert len(watched.evaluate()) == 1
    assert [each.kind for each in read_silences(watched.files.silences)] == ["silence"]
    watched.redis = replace(CALM, sinks_oldest={"webhook": watched.clock.now})
    assert len(watched.evaluate(after=360)) == 1


def test_an_incident_is_opened_once_for_an_alert_that_fires_and_not_for_what_is_silenced(watched: Watched) -> None:
    watched.probe("redis", ok=False)
    watched.breaker.name, watched.breaker.state = "redis", "OPEN"
    watched.evaluate(times=3)
    assert [alert.key for alert in watched.opened] == ["RedisDown"]
    watched.probe("redis", ok=True)
    now = watched.clock.now
    add_silence(Silence("circuit*", "silence", now, now + 700, "ada"), watched.files.silences)
    watched.evaluate(times=2)
    assert [alert.key for alert in watched.opened] == ["RedisDown"]
    watched.evaluate()
    assert [alert.key for alert in watched.opened] == ["RedisDown", "CircuitBreakerOpen/redis"]
    assert watched.over == ["RedisDown"]


def test_the_severities_of_other_houses_are_ours() -> None:
    found = {
        name: priority_of(name) for name in ("P0", "P1", "sev1", "SEV2", "SEV4", "critical", "warning", "urgent", "")
    }
    assert list(found.values()) == ["P1", "P1", "P1", "P2", "P4", "P2", "P3", None, None]


def test_an_operators_words_reach_people_and_silences_are_seen(tmp_path: Path, somebody: Receiver) -> None:
    def alert(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return run(tmp_path, *words, **({"ALERT_CHANNELS": f"json://127.0.0.1:{somebody.port}/"} | more))

    done = alert("send", "SEV1", "Redis is being moved")
    assert (done.returncode, done.stdout) == (0, "P1 told: json (ALERT_CHANNELS)\n")
    assert [it["title"] for it in somebody.posted] == ["email-ingestion: [P1] Redis is being moved"]
    done = alert("send", "P1", "x", ALERT_CHANNELS="sentry")
    assert (done.returncode, "sentry takes the exceptions of programs" in done.stderr) == (78, True)
    assert alert("send", "P9", "x").returncode == 64
    done = alert("silence", "Redis*", "--ttl", "30m", "--reason", "a move")
    assert (done.returncode, "Redis* is silenced until" in done.stdout) == (0, True)
    assert (alert("list").returncode, "has not looked at its alerts yet" in alert("list").stderr) == (2, True)
    now = datetime.now(UTC).isoformat()
    row = {"alert": "RedisDown", "priority": "P1", "state": "firing", "since": now, "text": "Redis is down"}
    (tmp_path / "data" / "active-alerts.json").write_text(json.dumps({"looked_at": now, "alerts": [row]}))
    (listed,) = json.loads(alert("list", "--json").stdout)
    assert (listed["alert"], listed["state"]) == ("RedisDown", "silenced")
    assert alert("unsilence", "Redis*").returncode == 0
    assert alert("unsilence", "Redis*").returncode == 1
    assert "P1 RedisDown: Redis is down" in alert("ack", "EmailIngestionRedisDown").stdout
    assert json.loads(alert("list", "--json").stdout)[0]["state"] == "acknowledged"
    actions = [json.loads(line)["action"] for line in (tmp_path / "logs" / "audit.log").read_text().splitlines()]
    assert actions[0] == "alert send"
    assert {"alert send", "alert silence", "alert unsilence", "alert ack"} == set(actions)


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return Place(folder, kept | environment).run("-m", "email_ingestion", "alert", *words)


def test_the_test_command_says_whether_somebody_was_reached(tmp_path: Path, somebody: Receiver) -> None:
    done = run(tmp_path, "test", ALERT_CHANNELS=f"json://127.0.0.1:{somebody.port}/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 channel(s) took the test notice\n", "")
    assert [it["title"] for it in somebody.posted] == [
        "email-ingestion: [P4] Notices of email-ingestion reach you here: a test"
    ]
    somebody.status = 503
    done = run(tmp_path, "test", ALERT_CHANNELS=f"json://:hush-hush@127.0.0.1:{somebody.port}/")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ALERT_CHANNELS did not take the notice")
    assert "hush-hush" not in done.stderr
    done = run(tmp_path, "test")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("nobody would be told: set ALERT_CHANNELS")
