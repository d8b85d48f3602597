"""Each fault does on the wire what its line in the catalogue says."""

from __future__ import annotations

import contextlib
import socket
import time

import imapclient
import pytest

BYE_EXPIRED = b"* BYE Session expired, please login again."
BODIES = b"UID FETCH 1:* (UID BODY.PEEK[])"


@pytest.fixture
def inbox(sandbox, known_wire, mail):
    for number in range(1, 4):
        sandbox.deliver(mail(number, "text " * 50))
    known_wire.run(b"EXAMINE INBOX")
    return known_wire


def bodies(lines):
    return sum(b"BODY[] {" in line for line in lines)


def test_session_expiry_now_ends_idle(sandbox, inbox):
    inbox.send(b"t IDLE\r\n")
    assert inbox.line() == b"+ idling"
    sandbox.arm_fault("session_expiry")
    assert inbox.line() == BYE_EXPIRED
    assert inbox.rest() == b""


def test_session_expiry_after_a_time(sandbox, inbox):
    sandbox.arm_fault("session_expiry", after_seconds=0.05)
    assert inbox.line() == BYE_EXPIRED


def test_session_expiry_at_the_next_idle(sandbox, inbox):
    sandbox.arm_fault("session_expiry", when="idle")
    assert inbox.run(b"NOOP")[-1] == b"t OK Success"
    inbox.send(b"t IDLE\r\n")
    assert [inbox.line(), inbox.line()] == [b"+ idling", BYE_EXPIRED]


def test_session_expiry_inside_a_fetch_comes_between_messages(sandbox, inbox):
    sandbox.arm_fault("session_expiry", when="fetch", after_messages=2)
    inbox.send(b"t " + BODIES + b"\r\n")
    lines = inbox.rest().split(b"\r\n")
    assert bodies(lines) == 2
    assert lines[-2] == BYE_EXPIRED


def test_system_error_bye(sandbox, inbox):
    sandbox.arm_fault("bad_system_error_bye")
    inbox.send(b"t NOOP\r\n")
    assert inbox.rest() == b"* BYE System Error\r\n"


def silent(wire, command):
    wire.socket.settimeout(0.15)
    wire.send(command)
    try:
        return wire.socket.recv(100)
    except TimeoutError:
        return None


def test_half_open_says_nothing_more_and_does_not_close(sandbox, inbox, mail):
    sandbox.arm_fault("half_open")
    inbox.send(b"t IDLE\r\n")
    assert inbox.line() == b"+ idling"
    sandbox.deliver(mail(9))
    assert silent(inbox, b"DONE\r\n") is None


def test_half_open_now_and_at_a_command(sandbox, inbox, wire_to):
    sandbox.arm_fault("half_open", when="command")
    assert silent(inbox, b"t NOOP\r\n") is None
    other = wire_to(sandbox)
    other.login(sandbox)
    sandbox.arm_fault("half_open", when="now")
    assert silent(other, b"t NOOP\r\n") is None


def test_stuck_select_never_answers_or_answers_late(sandbox, known_wire, wire_to):
    sandbox.arm_fault("stuck_select")
    assert silent(known_wire, b"t SELECT INBOX\r\n") is None
    other = wire_to(sandbox)
    other.login(sandbox)
    sandbox.arm_fault("stuck_select", seconds=0.01)
    assert other.run(b"SELECT INBOX") == [b"t NO System Error (Failure)"]
    assert other.run(b"SELECT INBOX")[-1].startswith(b"t OK")


def test_refused_connections_come_back_when_cleared(sandbox, inbox):
    sandbox.arm_fault("refuse_connections", drop_sessions=True)
    assert inbox.line() == BYE_EXPIRED
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", sandbox.imap_port), timeout=5)
    sandbox.clear_faults()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", sandbox.imap_port), timeout=5).close()
            return
    pytest.fail("the port stayed closed")


def login_error(sandbox, connect, token=None):
    with pytest.raises(imapclient.exceptions.LoginError) as raised:
        connect(login=False).oauth2_login(sandbox.user, token or sandbox.access_token())
    return str(raised.value)


def test_stale_token_is_refused_once_or_until_a_refresh(sandbox, connect):
    sandbox.arm_fault("stale_token")
    assert "Invalid credentials" in login_error(sandbox, connect)
    connect()
    old = sandbox.access_token()
    sandbox.arm_fault("stale_token", until_refresh=True)
    for _ in range(2):
        assert "Invalid credentials" in login_error(sandbox, connect, old)
    connect()


def test_wrong_scope_and_failed_lookup(sandbox, connect, wire, xoauth2):
    sandbox.arm_fault("wrong_scope")
    assert "Lookup failed" in login_error(sandbox, connect)
    sandbox.clear_faults()
    sandbox.arm_fault("lookup_failed", challenge=False)
    wire.send(b"t AUTHENTICATE XOAUTH2 " + xoauth2(sandbox.user, sandbox.access_token()) + b"\r\n")
    assert wire.line().startswith(b"t NO Lookup failed ")


def test_too_many_connections(sandbox, connect):
    sandbox.arm_fault("too_many_connections", count=2)
    for _ in range(2):
        assert "Too many simultaneous connections" in login_error(sandbox, connect)
    connect()
    sandbox.arm_fault("too_many_connections", limit=1)
    assert "Too many simultaneous connections" in login_error(sandbox, connect)


def test_human_login_is_required(sandbox, connect, wire, xoauth2):
    sandbox.arm_fault("web_login_required", count=1)
    wire.send(b"t AUTHENTICATE XOAUTH2 " + xoauth2(sandbox.user, sandbox.access_token()) + b"\r\n")
    alert, answer = wire.until(b"t ")
    assert alert.startswith(b"* NO [WEBALERT https://accounts.google.com/signin/continue?")
    assert answer.startswith(b"t NO [ALERT] Please log in via your web browser")
    sandbox.arm_fault("app_password_required")
    with pytest.raises(imapclient.exceptions.LoginError, match="Application-specific password required"):
        connect(login=False).login(sandbox.user, "abcdefgh")


def test_over_quota_throws_out_and_refuses_for_a_time(sandbox, inbox, connect):
    sandbox.arm_fault("over_quota", after_bytes=600, login_refused_seconds=0.3)
    inbox.send(b"t " + BODIES + b"\r\n")
    received = inbox.rest()
    assert received.endswith(b"* BYE [OVERQUOTA] Account exceeded command or bandwidth limits.\r\n")
    assert "[OVERQUOTA]" in login_error(sandbox, connect)
    sandbox.call(lambda s: setattr(s.backend.quota, "_refused_until", 0.0))
    connect()
    assert sandbox.call(lambda s: s.backend.faults.armed()) == []


def test_over_quota_at_once_as_an_answer(sandbox, inbox):
    sandbox.arm_fault("over_quota", how="no")
    assert inbox.run(b"NOOP")[-1].startswith(b"t NO [OVERQUOTA]")
    sandbox.clear_faults("over_quota")
    assert inbox.run(b"NOOP")[-1] == b"t OK Success"


def test_throttled_is_late_and_says_so_at_the_end(sandbox, inbox):
    sandbox.arm_fault("throttled", delay_ms=30)
    begun = time.monotonic()
    assert inbox.run(b"NOOP")[-1] == b"t OK Success [THROTTLED]"
    assert time.monotonic() - begun >= 0.03


def test_unavailable_meets_the_named_command(sandbox, inbox):
    sandbox.arm_fault("unavailable", command="fetch")
    assert inbox.run(b"NOOP")[-1] == b"t OK Success"
    assert inbox.run(BODIES) == [b"t NO [UNAVAILABLE] Temporary System Error (Failure)"]
    assert bodies(inbox.run(BODIES)) == 3


def test_nonexistent_mailbox_once(sandbox, inbox):
    sandbox.arm_fault("nonexistent_mailbox")
    assert inbox.run(b"EXAMINE INBOX")[-1].startswith(b"t NO [NONEXISTENT] Unknown Mailbox: INBOX")
    assert inbox.run(b"EXAMINE INBOX")[-1].startswith(b"t OK")


def test_partial_fetch_leaves_out_the_last_but_never_a_single_one(sandbox, inbox):
    sandbox.arm_fault("partial_fetch", count=None, missing=2, throttled=True)
    lines = inbox.run(BODIES)
    assert bodies(lines) == 1
    assert lines[-1] == b"t NO Some messages could not be FETCHed (Failure) [THROTTLED]"
    assert bodies(inbox.run(b"UID FETCH 3 (BODY.PEEK[])")) == 1
    assert inbox.run(b"UID FETCH 1:* (FLAGS)")[-1] == b"t OK Success"


def test_system_error_of_one_uid(sandbox, inbox):
    sandbox.arm_fault("uid_system_error", uid=2)
    lines = inbox.run(BODIES)
    assert (bodies(lines), lines[-1]) == (1, b"t NO System Error (Failure)")
    assert bodies(inbox.run(b"UID FETCH 1,3 (BODY.PEEK[])")) == 2


def test_connection_lost_inside_a_literal(sandbox, inbox):
    sandbox.arm_fault("drop_mid_literal", after_bytes=10)
    inbox.send(b"t UID FETCH 1 (BODY.PEEK[])\r\n")
    received = inbox.rest()
    assert len(received.partition(b"}\r\n")[2]) == 10


def test_trickle_is_slow_but_complete(sandbox, inbox):
    sandbox.arm_fault("trickle", bytes=100, interval_ms=10)
    begun = time.monotonic()
    assert bodies(inbox.run(b"UID FETCH 1 (BODY.PEEK[])")) == 1
    assert time.monotonic() - begun >= 0.03


def test_split_lines_come_in_pieces(sandbox, inbox):
    sandbox.arm_fault("split_lines", bytes=4, gap_ms=5)
    inbox.send(b"t NOOP\r\n")
    assert len(inbox.socket.recv(1000)) < len(b"t OK Success\r\n")


def test_uidvalidity_reset_ends_the_sessions_that_look(sandbox, inbox, connect):
    sandbox.arm_fault("uidvalidity_reset", mailbox="INBOX")
    assert inbox.rest() == BYE_EXPIRED + b"\r\n"
    facts = connect().select_folder("INBOX", readonly=True)
    assert facts[b"UIDVALIDITY"] != 1
    assert facts[b"EXISTS"] == 3


def test_trash_and_back_is_a_new_uid_of_the_same_message(sandbox, inbox, connect):
    before = sandbox.messages()[-1].msgid
    sandbox.arm_fault("trash_and_back", msgid=before)
    client = connect()
    client.select_folder("[Gmail]/All Mail", readonly=True)
    assert client.search() == [1, 2, 4]
    assert client.fetch([4], ["X-GM-MSGID"])[4][b"X-GM-MSGID"] == before


def test_strange_labels_hidden_all_and_cap(sandbox, inbox, connect):
    sandbox.arm_fault("strange_labels", messages=2, unbalanced=True)
    assert sum("[abc" in message.labels for message in sandbox.messages()) == 2
    sandbox.arm_fault("folder_cap", size=1)
    client = connect()
    assert client.select_folder("INBOX", readonly=True)[b"EXISTS"] == 1
    sandbox.arm_fault("hidden_all")
    assert client.find_special_folder(b"\\All") is None
    sandbox.clear_faults("hidden_all")
    assert client.find_special_folder(b"\\All") == "[Gmail]/All Mail"


def test_a_scripted_answer_meets_the_named_command(sandbox, inbox):
    sandbox.arm_fault("answer", command="search", text="NO [LIMIT] IMAP command sent too fast")
    assert inbox.run(b"NOOP")[-1] == b"t OK Success"
    assert inbox.run(b"UID SEARCH ALL") == [b"t NO [LIMIT] IMAP command sent too fast"]
    assert inbox.run(b"UID SEARCH ALL")[-1].startswith(b"t OK")


def test_a_connection_is_greeted_with_bye(sandbox, wire_to):
    sandbox.arm_fault("greeting_bye")
    assert wire_to(sandbox).greeting.startswith(b"* BYE ")
    assert wire_to(sandbox).greeting.startswith(b"* OK ")


@pytest.mark.parametrize("size", [0, 1, 40, 700])
def test_a_fetch_is_dropped_at_any_byte(sandbox, inbox, size):
    sandbox.arm_fault("drop_fetch", after_bytes=size)
    assert inbox.run(b"UID FETCH 1:* (FLAGS)")[-1] == b"t OK Success"
    inbox.send(b"t " + BODIES + b"\r\n")
    assert len(inbox.rest()) == size
