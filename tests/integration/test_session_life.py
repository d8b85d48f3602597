"""A watcher lives for months: its sessions end, its connections die unnoticed, and it is replaced when it hangs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from email_ingestion.app.account import log_in
from email_ingestion.events import AnswerSlow, ConnectionFailed, SessionEnded, Started, WatcherRebuilt, Watching
from email_ingestion.mailbox import waiting
from email_ingestion.producer import account_backoff, supervisor, watch
from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.redis import RedisServer
from tests.servers.watching import Watched, letter


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings()) as running:
        yield running


@pytest.fixture
def watched(sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path) -> Watched:
    return Watched(sandbox, redis_server, tmp_path, {"imap_poll_seconds": 0.5})


def test_a_session_is_renewed_before_its_token_ends(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(account_backoff, "LOGIN_SECONDS", 0.1)
    monkeypatch.setattr(account_backoff, "SOON_SECONDS", 0.1)
    with running_sandbox(SandboxSettings(credentials=Credentials(token_life=2.0))) as sandbox:
        watched = Watched(sandbox, redis_server, tmp_path, {"imap_poll_seconds": 0.2})
        with watched.running():
            watched.until(lambda: len(watched.heard.of(SessionEnded)) >= 2, "two renewals")
            sandbox.deliver(letter(1))
            watched.arrives()
    assert {event.reason for event in watched.heard.of(SessionEnded)} == {"planned renewal"}
    assert watched.heard.of(ConnectionFailed) == []


@pytest.mark.parametrize("when", ["now", "idle", "fetch"])
def test_an_expired_session_is_no_failure_wherever_it_expires(watched: Watched, when: str):
    with watched.running():
        watched.hears(Watching, state="idle")
        watched.arm_fault("session_expiry", when=when)
        watched.sandbox.deliver(letter(1))
        watched.arrives()
        watched.hears(SessionEnded)
    assert watched.heard.of(ConnectionFailed) == []
    assert watched.metric("imap_incidents_total", kind="session_ended") >= 1


def test_a_peer_that_fell_silent_is_found_in_time(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    for recovery in (1, 5, 10, 30, 300):
        idle = max(watch.LEAST_IDLE_SECONDS, recovery - watch.IDLE_MARGIN_SECONDS)
        silence = min(watch.longest_silence(recovery, idle), waiting.IDLE_DONE_SECONDS)
        assert idle + silence + watch.RECONNECT_SECONDS <= recovery + 10
    monkeypatch.setattr(watch, "LEAST_IDLE_SECONDS", 0.5)
    monkeypatch.setattr(waiting, "IDLE_DONE_SECONDS", 0.3)
    watched.arm_fault("half_open", when="idle")
    with watched.running():
        watched.hears(ConnectionFailed)
        watched.sandbox.deliver(letter(1))
        watched.arrives()


def test_the_system_looks_for_a_vanished_peer_too(watched: Watched):
    with closing(log_in(watched.account, 5.0)) as connection:
        sock = connection._client.socket()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        probes = [
            sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL")
        ]
        assert probes[0] + probes[1] * sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) <= 60


def test_every_idle_is_followed_by_a_search(watched: Watched):
    with watched.running():
        watched.until(lambda: watched.sandbox.with_stats(lambda stats: stats.commands["IDLE"]) >= 4, "some renewals")
    commands = watched.sandbox.with_stats(lambda stats: dict(stats.commands))
    assert commands["UID SEARCH"] >= commands["IDLE"]


def test_mail_announced_in_the_same_breath_as_idling_is_found(watched: Watched):
    patient = Watched(watched.sandbox, watched.redis, watched.folder, {"imap_poll_seconds": 60})
    patient.arm_fault("glued_exists")
    with patient.running():
        patient.until(patient.everything, "it is delivered")
        patient.arrives()


def test_a_watcher_that_hangs_is_replaced_and_counted(watched: Watched):
    """A byte now and then keeps every time-out happy."""
    watched = replace(watched, rebuilt_after=1.5)
    with watched.running():
        watched.hears(Watching, state="idle")
        watched.arm_fault("trickle", count=1, bytes=1, interval_ms=50)
        watched.sandbox.deliver(letter(1, 20_000))
        watched.observe(Started(None))
        watched.hears(WatcherRebuilt)
        assert "account default: its watcher got nothing done" in "; ".join(watched.ops.status.readiness().reasons)
        watched.until(lambda: watched.metric("dependency_up", dependency="imap") == 0, "the metric tells, too")
        watched.arrives()
        watched.until(lambda: watched.ops.status.readiness().reasons == (), "all is well")
    assert watched.metric("imap_watcher_rebuilds_total", account="default") == 1


def test_a_watcher_that_hangs_over_the_database_does_not_blame_the_mail_server(watched: Watched):
    """Another process changes the schema, or was cut off while it did: who opens the database waits for it."""
    watched.sandbox.deliver(letter(1))
    watched = replace(watched, rebuilt_after=0.5)
    with watched.running():
        with watched.ledger._lock:
            watched.observe(Started(None))
            watched.hears(WatcherRebuilt, asked_server=False)
            reasons = "; ".join(watched.ops.status.readiness().reasons)
            assert "it waits for the database, Redis or a disk" in reasons
            assert "IMAP" not in reasons
        watched.arrives()


def test_a_slow_line_is_no_hanging_watcher(watched: Watched):
    watched = replace(watched, rebuilt_after=1.5)
    with watched.running():
        watched.hears(Watching, state="idle")
        watched.arm_fault("trickle", count=1, bytes=20_000, interval_ms=100)
        watched.sandbox.deliver(letter(1, 600_000))
        watched.arrives()
    assert watched.heard.of(WatcherRebuilt) == []


def test_an_answer_at_a_trickle_is_told_while_it_comes(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    """No time-out ends it, and the mail behind it stands still."""
    monkeypatch.setattr(supervisor, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "SLOW_SECONDS", 1.0)
    with watched.running():
        watched.hears(Watching, state="idle")
        watched.arm_fault("trickle", count=1, bytes=500, interval_ms=100)
        watched.sandbox.deliver(letter(1, 30_000))
        watched.observe(Started(None))
        watched.hears(AnswerSlow)
        reasons = "; ".join(watched.ops.status.readiness().reasons)
        assert "account default: an answer of the mail server has been coming for 1 s at a trickle" in reasons
        watched.until(lambda: watched.metric("dependency_up", dependency="imap") == 0, "the metric tells, too")
        watched.arrives()
        watched.hears(AnswerSlow, seconds=0.0)
    assert len(watched.heard.of(AnswerSlow)) == 2
