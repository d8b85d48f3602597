"""Everything Gmail is known to answer: each is told by its class, counted, waited out as it asks, and loses nothing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.events import (
    Connected,
    ConnectionFailed,
    Event,
    FetchPaused,
    LockedOut,
    NeedsOperator,
    Quarantined,
    SessionEnded,
    Slowed,
    Watching,
)
from email_ingestion.mailbox import imap4, imap_errors
from email_ingestion.producer import AccountBackoff, account_backoff
from email_ingestion.stream import quarantine
from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.redis import RedisServer
from tests.servers.watching import Watched, letter

APP_PASSWORD = "abcdefgh"


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings(credentials=Credentials(app_password=APP_PASSWORD))) as running:
        for number in range(3):
            running.deliver(letter(number))
        yield running


@pytest.fixture
def watched(
    sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Watched:
    """A watcher that waits in tenths of a second where it would wait for minutes or hours."""
    monkeypatch.setattr(imap_errors, "OVERQUOTA_SECONDS", 0.4)
    monkeypatch.setattr(imap_errors, "CROWDED_SECONDS", 0.1)
    for name, seconds in {"PROBED": 0.1, "SOON": 0.1, "LOGIN": 0.1, "OPERATOR": 0.1, "OPERATOR_CAP": 0.3}.items():
        monkeypatch.setattr(account_backoff, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(account_backoff, "REFUSED_SECONDS", 0.3)
    monkeypatch.setattr(account_backoff, "BROWSER_SECONDS", 0.3)
    monkeypatch.setattr(quarantine, "FIRST_SECONDS", 0.1)
    made = Watched(sandbox, redis_server, tmp_path)
    made.backoff = AccountBackoff(random.Random(1), recovery=0.1)
    return made


@dataclass(frozen=True)
class Row:
    """A line of the table of what Gmail answers, and what must be seen."""

    name: str
    fault: str
    event: type[Event]  # by which it is announced
    says: str  # the class the log names, and its class of the contract
    kind: str  # as the metric counts it
    options: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    state: str = "waiting"
    lasts: bool = False  # until it is cleared


PASSWORD = {"imap_auth": "password", "imap_password": APP_PASSWORD}
TRANSIENT = "IMAPConnectionError: "
THROTTLED = "IMAPThrottledError (IMAPConnectionError): "
LOCKED = "IMAPLockedOut (IMAPConnectionError): "
TABLE = [
    Row(
        "session expired inside a fetch", "session_expiry", SessionEnded, "", "session_ended", {"when": "fetch"}, {}, ""
    ),
    Row(
        "token without the scope",
        "wrong_scope",
        NeedsOperator,
        "LookupFailed (OAuth2AuthenticationError): ",
        "operator",
        state="needs_operator",
        lasts=True,
    ),
    Row(
        "stale whatever we do",
        "stale_token",
        NeedsOperator,
        "TokenRejected (OAuth2AuthenticationError): ",
        "operator",
        {"count": None},
        state="needs_operator",
        lasts=True,
    ),
    Row(
        "application-specific password required",
        "app_password_required",
        NeedsOperator,
        "AuthenticationFailed (IMAPConnectionError): ",
        "operator",
        {},
        PASSWORD,
        state="needs_operator",
        lasts=True,
    ),
    Row(
        "log in with a browser",
        "web_login_required",
        NeedsOperator,
        "WebLoginRequired (OAuth2AuthenticationError): ",
        "operator",
        state="needs_operator",
        lasts=True,
    ),
    Row("too many connections", "too_many_connections", ConnectionFailed, THROTTLED, "throttled", {"count": 2}),
    Row(
        "over quota at login",
        "over_quota",
        LockedOut,
        LOCKED,
        "locked_out",
        {"login_refused_seconds": 3600},
        state="",
        lasts=True,
    ),
    Row(
        "over quota while fetching",
        "over_quota",
        LockedOut,
        LOCKED,
        "locked_out",
        {"login_refused_seconds": 0.3, "after_bytes": 2600},
        state="",
    ),
    Row(
        "over quota as an answer",
        "over_quota",
        LockedOut,
        LOCKED,
        "locked_out",
        {"login_refused_seconds": 0.3, "after_bytes": 600, "how": "no"},
        state="",
    ),
    Row(
        "over quota in other words",
        "answer",
        LockedOut,
        LOCKED,
        "locked_out",
        {"command": "FETCH", "text": "NO [ALERT] Account exceeded command or bandwidth limits. (Failure)"},
        state="",
    ),
    Row(
        "system error while selecting",
        "answer",
        ConnectionFailed,
        TRANSIENT,
        "transient",
        {"command": "EXAMINE", "text": "NO System Error (Failure)"},
    ),
    Row("bye system error", "bad_system_error_bye", ConnectionFailed, TRANSIENT, "transient"),
    Row("unavailable", "unavailable", ConnectionFailed, TRANSIENT, "transient", {"command": "FETCH"}),
    Row(
        "temporary system problem",
        "answer",
        ConnectionFailed,
        TRANSIENT,
        "transient",
        {"command": "SEARCH", "text": "NO [UNAVAILABLE] Temporary System Problem (Failure)"},
    ),
    Row(
        "unavailable at login",
        "answer",
        ConnectionFailed,
        TRANSIENT,
        "transient",
        {"command": "AUTHENTICATE", "text": "NO [UNAVAILABLE] Temporary System Error (Failure)"},
    ),
    Row(
        "could not parse command",
        "answer",
        NeedsOperator,
        "IMAPCommandRefused (IMAPConnectionError): ",
        "operator",
        {"command": "EXAMINE", "text": "BAD Could not parse command", "count": None},
        state="needs_operator",
        lasts=True,
    ),
    Row(
        "command sent too fast",
        "answer",
        ConnectionFailed,
        THROTTLED,
        "throttled",
        {"command": "FETCH", "text": "NO [LIMIT] IMAP command sent too fast"},
    ),
    Row(
        "examine that is never answered",
        "stuck_select",
        ConnectionFailed,
        TRANSIENT,
        "transient",
        {},
        {"imap_timeout_seconds": 0.5},
    ),
    Row(
        "IMAP switched off by an administrator",
        "imap_disabled",
        NeedsOperator,
        "AuthenticationFailed (",
        "operator",
        state="needs_operator",
        lasts=True,
    ),
    Row("a greeting that says bye", "greeting_bye", ConnectionFailed, TRANSIENT, "transient"),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name.replace(" ", "-"))
def test_what_gmail_answers_is_classed_counted_and_waited_out(row: Row, watched: Watched):
    subject = Watched(watched.sandbox, watched.redis, watched.folder, row.changes)
    subject.arm_fault(row.fault, **row.options)
    with subject.running():
        subject.hears(row.event)
        if row.says:
            assert subject.told(row.event)[0].startswith(row.says)
        if row.state:
            subject.hears(Watching, state=row.state)
        assert subject.until(lambda: subject.metric("imap_incidents_total", kind=row.kind), "it is counted") >= 1
        if row.lasts:
            subject.sandbox.clear_faults()
        subject.arrives()


def test_a_wrong_password_asks_a_person(watched: Watched):
    subject = Watched(watched.sandbox, watched.redis, watched.folder, PASSWORD | {"imap_password": "wrong"})
    with subject.running():
        subject.hears(NeedsOperator)
        subject.hears(Watching, state="needs_operator")
    assert subject.told(NeedsOperator)[0].startswith("AuthenticationFailed (IMAPConnectionError): ")
    assert subject.metric("imap_incidents_total", kind="operator") >= 1


def test_answers_that_come_in_pieces_are_whole_in_the_end(watched: Watched):
    watched.arm_fault("split_lines", bytes=7, gap_ms=0)
    with watched.running():
        watched.arrives()
        watched.sandbox.deliver(letter(9))
        watched.arrives()
    assert watched.heard.of(ConnectionFailed) == []


@pytest.mark.parametrize(
    "raw", [b"", b"\r\n", b"\0" * 1000, b"Subject: bare\n\nline\nfeeds\n", b"\xff\xfe" * 500, b")\r\nA1 OK Success\r\n"]
)
def test_a_message_of_any_bytes_arrives_as_it_is(watched: Watched, raw: bytes):
    watched.sandbox.deliver(raw)
    with watched.running():
        watched.arrives()
    assert watched.heard.of(ConnectionFailed) == []
    with watched.redis.client() as client:
        digests = {fields[b"sha256"].decode() for _, fields in client.xrange(watched.keys.stream)}
    assert hashlib.sha256(raw).hexdigest() in digests


def test_a_stale_token_is_refreshed_once_without_a_word(watched: Watched):
    watched.arm_fault("stale_token", until_refresh=True)
    with watched.running():
        watched.arrives()
    assert watched.heard.of(ConnectionFailed) == []
    assert watched.heard.of(NeedsOperator) == []
    assert watched.sandbox.with_stats(lambda stats: stats.token_requests) == 1


def test_a_lookup_that_failed_is_tried_three_times_before_a_person_is_asked(watched: Watched):
    watched.arm_fault("lookup_failed", count=2, challenge=False)
    with watched.running():
        watched.arrives()
    assert len(watched.heard.of(ConnectionFailed)) == 2
    assert watched.heard.of(NeedsOperator) == []


def test_a_renewed_consent_is_noticed_at_once(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(account_backoff, "REFUSED_SECONDS", 3600.0)
    watched.arm_fault("stale_token", count=None)
    with watched.running():
        watched.hears(Watching, state="needs_operator")
        watched.sandbox.clear_faults()
        watched.authorize()
        watched.arrives()


def test_a_renamed_mailbox_is_found_again_without_a_failure(watched: Watched):
    watched.arm_fault("nonexistent_mailbox")
    with watched.running():
        watched.arrives()
    assert watched.heard.of(ConnectionFailed) == []


def test_throttling_slows_the_commands_and_passes(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imap4, "FIRST_DELAY_SECONDS", 0.01)
    watched.arm_fault("throttled", count=8, delay_ms=1)
    with watched.running():
        watched.arrives()
        watched.until(lambda: any(e.seconds >= 0.02 for e in watched.heard.of(Slowed)), "it is slower")
        assert (watched.metric("imap_command_delay_seconds", account="default") or 0) >= 0
        for number in range(10, 40):  # every good answer halves the pause
            watched.sandbox.deliver(letter(number))
            watched.arrives()
            if watched.heard.of(Slowed)[-1].seconds == 0:
                break
        assert watched.heard.of(Slowed)[-1].seconds == 0
    assert watched.heard.of(ConnectionFailed) == []


def test_a_lockout_outlives_a_restart_and_doubles(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imap_errors, "OVERQUOTA_SECONDS", 3600.0)
    watched.arm_fault("over_quota", login_refused_seconds=3600)
    with watched.running():
        watched.hears(LockedOut)
        watched.hears(Watching, state="locked_out")
    watched.sandbox.clear_faults()
    again = Watched(watched.sandbox, watched.redis, watched.folder)
    with again.running():
        held = again.hears(FetchPaused)
        assert "shut the account out until" in held.reason
        assert again.heard.of(Connected) == []
        assert again.sandbox.with_stats(lambda stats: stats.connections_now) == 0
        with again.redis.client() as client:  # the hour is over
            client.hset(again.keys.lockout("default"), "until", 0)
        again.arrives()
        again.arm_fault("over_quota", login_refused_seconds=3600)
        again.until(lambda: again.redis_hash(again.keys.lockout("default")).get(b"seconds") == b"7200", "twice as long")
    assert again.metric("imap_locked_out_until_timestamp_seconds", account="default") > 0


@pytest.mark.parametrize("bodies_only", [True, False])
def test_a_message_the_server_cannot_send_holds_up_nobody(watched: Watched, bodies_only: bool):
    bad = watched.everything().keys() - {max(watched.everything()), min(watched.everything())}
    watched.arm_fault("uid_system_error", uid=2, bodies_only=bodies_only)
    with watched.running():
        watched.hears(Quarantined, uid=2)
        watched.until(lambda: watched.queued().keys() == watched.everything().keys() - bad, "the others come")
        watched.until(lambda: watched.metric("imap_quarantined_messages", account="default") == 1, "it is shown")
        assert watched.told(Quarantined)[0].startswith("MessagesRefused (IMAPConnectionError): ")
        watched.sandbox.clear_faults()
        watched.sandbox.deliver(letter(9))
        watched.arrives()
        watched.until(lambda: watched.metric("imap_quarantined_messages", account="default") == 0, "and that it came")
    assert watched.metric("imap_incidents_total", kind="quarantined") >= 1


def test_a_message_whose_quarantine_redis_lost_is_found_by_a_comparison(watched: Watched):
    """The cursor has passed it, and nothing else remembers it."""
    watched.arm_fault("uid_system_error", uid=2)
    with watched.running():
        watched.until(lambda: watched.metric("imap_quarantined_messages", account="default") == 1, "it is set aside")
        with watched.redis.client() as client:
            (key,) = client.keys("*:quarantine:*")
            client.delete(key)
        watched.sandbox.clear_faults()
        watched.arrives()


@pytest.mark.parametrize("throttled", [True, False])
@pytest.mark.parametrize("bodies_only", [True, False])
def test_what_a_partial_fetch_left_out_is_fetched_singly(watched: Watched, throttled: bool, bodies_only: bool):
    watched.arm_fault("partial_fetch", missing=2, throttled=throttled, bodies_only=bodies_only)
    with watched.running():
        watched.arrives()
    assert watched.heard.of(ConnectionFailed) == []
    fetched = watched.sandbox.with_stats(lambda stats: dict(stats.fetched_messages))
    assert set(fetched.values()) == {1}  # what came was kept


def test_labels_nobody_can_parse_keep_nobody_from_his_mail(watched: Watched):
    watched.arm_fault("strange_labels", messages=2, unbalanced=True)
    with watched.running():
        watched.arrives()
    assert watched.heard.of(ConnectionFailed) == []
    with watched.redis.client() as client:
        labels = [fields[b"labels"].decode() for _, fields in client.xrange(watched.keys.stream)]
    assert sum("[abc" in each and "two words" in each for each in labels) == 2


@pytest.mark.parametrize(
    "where", ["nothing", "in the first line", "in the literal", "behind the literal", "between answers", "in the tag"]
)
def test_a_connection_lost_at_any_byte_of_a_fetch_loses_and_doubles_nothing(watched: Watched, where: str):
    """The answer to FETCH: `* 1 FETCH (UID 1 BODY[] {n}<crlf>`, the literal, `)<crlf>`, …, `A7 OK Success<crlf>`."""
    size = watched.sandbox.messages()[0].size
    head = len(b"* 1 FETCH (UID 1 BODY[] {%d}\r\n" % size)
    answer = head + size + len(b")\r\n")
    offsets = {
        "nothing": 0,
        "in the first line": head - 5,
        "in the literal": head + size // 2,
        "behind the literal": head + size + 1,
        "between answers": answer,
        "in the tag": 3 * answer + 2,
    }
    watched.arm_fault("drop_fetch", after_bytes=offsets[where])
    with watched.running():
        failed = watched.hears(ConnectionFailed)
        assert 0 < failed.retry_in <= 0.1
        watched.arrives()
    assert watched.told(ConnectionFailed)[0].startswith(TRANSIENT)
