"""What the user's other clients do to the mailbox."""

from __future__ import annotations

import pytest

ALL, TRASH = "[Gmail]/All Mail", "[Gmail]/Trash"


def test_known_message_id_merges_and_adds_the_labels(sandbox, client, mail):
    client.append("INBOX", mail(1), flags=["\\Seen"])
    client.create_folder("Work")
    client.append("Work", mail(1))
    (message,) = sandbox.messages()
    assert message.labels == {"\\Inbox", "Work"}
    assert message.flags == {"\\Seen"}


def test_append_answers_with_the_uid(known_wire, mail):
    raw = mail(1)
    known_wire.send(b'a APPEND INBOX (\\Seen) "01-Feb-2026 10:00:00 +0100" {%d}\r\n' % len(raw))
    assert known_wire.line() == b"+ go ahead"
    known_wire.send(raw + b"\r\n")
    assert known_wire.line() == b"a OK [APPENDUID 1 1] (Success)"


def test_append_over_the_limit_is_refused_before_it_is_sent(known_wire):
    known_wire.send(b"a APPEND INBOX {35651585}\r\n")
    assert known_wire.line().startswith(b"a NO [TOOBIG]")
    assert known_wire.run(b"NOOP")[-1] == b"t OK Success"


def test_moving_to_trash_and_back_gives_a_new_uid_and_the_same_identity(sandbox, client, mail):
    msgid = sandbox.deliver(mail(1)).message.msgid
    client.select_folder(ALL)
    client.move([1], TRASH)
    assert client.search() == []
    assert client.select_folder(TRASH)[b"EXISTS"] == 1
    client.move([1], "INBOX")
    client.select_folder(ALL)
    assert client.search() == [2]
    assert client.fetch([2], ["X-GM-MSGID"])[2][b"X-GM-MSGID"] == msgid


def test_copy_adds_a_label_and_move_takes_one_away(sandbox, client, mail):
    sandbox.deliver(mail(1))
    client.create_folder("Work")
    client.select_folder("INBOX")
    client.copy([1], "Work")
    assert sandbox.messages()[0].labels == {"\\Inbox", "Work"}
    client.move([1], "[Gmail]/Starred")
    assert sandbox.messages()[0].labels == {"\\Starred", "Work"}
    assert sandbox.messages()[0].flags == {"\\Flagged"}


def test_labels_are_stored_as_gmail_does(sandbox, client, mail):
    sandbox.deliver(mail(1))
    client.select_folder("INBOX")
    client.add_gmail_labels([1], ["Übung", "\\Starred"])
    assert sandbox.messages()[0].flags == {"\\Flagged"}
    client.remove_gmail_labels([1], ["\\Inbox", "\\Starred"])
    assert sandbox.messages()[0].labels == {"\\Inbox", "Übung"}
    assert client.get_gmail_labels([1])[1] == ["Übung"]


def test_deleted_flag_expunges_at_once(sandbox, known_wire, mail):
    sandbox.deliver(mail(1))
    known_wire.run(b"SELECT INBOX")
    assert known_wire.run(b"UID STORE 1 +FLAGS.SILENT (\\Deleted)") == [b"t OK Success"]
    assert known_wire.run(b"UID SEARCH DELETED")[0] == b"* SEARCH"
    assert known_wire.run(b"NOOP")[0] == b"* 1 EXPUNGE"
    assert sandbox.messages()[0].labels == frozenset()


def test_conditional_store_reports_what_changed_meanwhile(sandbox, known_wire, mail):
    sandbox.deliver(mail(1))
    known_wire.run(b"SELECT INBOX (CONDSTORE)")
    answer = known_wire.run(b"UID STORE 1 (UNCHANGEDSINCE 1) +FLAGS.SILENT (\\Seen)")
    assert answer[-1] == b"t OK [MODIFIED 1] Conditional Store Failed (Success)"


def test_examined_mailbox_cannot_be_changed(sandbox, client, mail):
    sandbox.deliver(mail(1))
    client.select_folder("INBOX", readonly=True)
    with pytest.raises(Exception, match="READ-ONLY"):
        client.add_flags([1], ["\\Seen"])
    client.close_folder()
    assert not sandbox.messages()[0].flags
