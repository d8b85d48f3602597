"""IDLE and the other moments at which a client hears of changes."""

from __future__ import annotations

ALL = "[Gmail]/All Mail"


def test_new_mail_is_pushed(sandbox, client, mail):
    client.select_folder(ALL, readonly=True)
    client.idle()
    sandbox.deliver(mail(1))
    assert client.idle_check(timeout=5) == [(1, b"EXISTS")]
    assert client.idle_done()[0] == b"IDLE terminated (Success)"


def test_expunge_and_label_changes_are_pushed(sandbox, known_wire, mail):
    first, second = (sandbox.deliver(mail(number)).message.msgid for number in (1, 2))
    known_wire.run(b"SELECT INBOX")
    known_wire.send(b"t IDLE\r\n")
    assert known_wire.line() == b"+ idling"
    sandbox.with_account(lambda account: account.set_flags(second, ["\\Seen"]))
    assert known_wire.line() == b"* 2 FETCH (UID 2 FLAGS (\\Seen))"
    sandbox.with_account(lambda account: account.change_labels(first, remove=["\\Inbox"]))
    assert known_wire.line() == b"* 1 EXPUNGE"
    known_wire.send(b"DONE\r\n")
    assert known_wire.line() == b"t OK IDLE terminated (Success)"


def test_expunge_waits_until_fetch_and_search_are_over(sandbox, known_wire, mail):
    first, _ = (sandbox.deliver(mail(number)).message.msgid for number in (1, 2))
    known_wire.run(b"SELECT INBOX")
    sandbox.with_account(lambda account: account.delete(first))
    assert known_wire.run(b"UID FETCH 1:* (FLAGS)") == [b"* 2 FETCH (UID 2 FLAGS ())", b"t OK Success"]
    assert known_wire.run(b"SEARCH ALL")[0] == b"* SEARCH 2"
    assert known_wire.run(b"NOOP") == [b"* 1 EXPUNGE", b"t OK Success"]


def test_message_gone_before_it_was_announced_leaves_no_trace(sandbox, known_wire, mail):
    known_wire.run(b"SELECT INBOX")
    msgid = sandbox.deliver(mail(1)).message.msgid
    sandbox.with_account(lambda account: account.delete(msgid))
    assert known_wire.run(b"NOOP") == [b"t OK Success"]


def test_glued_exists_comes_with_the_idling_line(sandbox, known_wire, mail):
    known_wire.run(b'EXAMINE "[Gmail]/All Mail"')
    sandbox.arm_fault("glued_exists")
    known_wire.send(b"t IDLE\r\n")
    assert known_wire.socket.recv(1000) == b"+ idling\r\n* 1 EXISTS\r\n"
    sandbox.deliver(mail(1))
    assert known_wire.line() == b"* 2 EXISTS"


def test_anything_but_done_is_bad(known_wire):
    known_wire.run(b"SELECT INBOX")
    known_wire.send(b"t IDLE\r\nNOOP\r\n")
    assert known_wire.until(b"t ")[-1].startswith(b"t BAD")


def test_many_sessions_hear_of_the_same_message(sandbox, connect, mail):
    clients = [connect() for _ in range(10)]
    for client in clients:
        client.select_folder(ALL, readonly=True)
        client.idle()
    sandbox.deliver(mail(1))
    assert [client.idle_check(timeout=5) for client in clients] == [[(1, b"EXISTS")]] * 10
