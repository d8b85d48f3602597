"""Mailboxes under every name the owner may have chosen."""

from __future__ import annotations

import pytest

from gmail_sandbox.fault_actions import STRANGE_LABELS

ALL = "[Gmail]/All Mail"


def test_all_mail_is_found_by_its_attribute_in_any_language(sandbox, connect):
    for language, name in (("it", "[Gmail]/Tutti i messaggi"), ("ru", "[Gmail]/Вся почта")):
        sandbox.with_account(lambda account, language=language: account.configure(language=language))
        client = connect()
        assert client.find_special_folder(b"\\All") == name
        assert client.select_folder(name, readonly=True)[b"UIDVALIDITY"] == 12


def test_names_are_modified_utf7_on_the_wire(sandbox, known_wire):
    sandbox.with_account(lambda account: account.configure(language="ru"))
    lines = known_wire.run(b'LIST "" "*"')
    assert b'* LIST (\\All \\HasNoChildren) "/" "[Gmail]/&BBIEQQRP- &BD8EPgRHBEIEMA-"' in lines


def test_utf8_accept_switches_names_to_utf8(sandbox, known_wire, mail):
    sandbox.deliver(mail(1), ["Übung"])
    assert known_wire.run(b"ENABLE UTF8=ACCEPT")[0] == b"* ENABLED UTF8=ACCEPT"
    assert '* LIST (\\HasNoChildren) "/" "Übung"'.encode() in known_wire.run(b'LIST "" "*"')


def test_nested_labels_have_a_noselect_parent(sandbox, client, mail):
    sandbox.deliver(mail(1), ["Work/Projects", "Clients"])
    folders = {name: set(flags) for flags, _, name in client.list_folders()}
    assert folders["Work"] == {b"\\HasChildren", b"\\Noselect"}
    assert folders["Work/Projects"] == {b"\\HasNoChildren"}
    assert [name for _, _, name in client.list_folders("", "%")] == ["INBOX", "[Gmail]", "Clients", "Work"]


def test_list_returns_status_and_special_use(sandbox, known_wire, mail):
    sandbox.deliver(mail(1))
    lines = known_wire.run(b'LIST (SPECIAL-USE) "" "*" RETURN (STATUS (MESSAGES UIDNEXT))')
    assert b'* STATUS "[Gmail]/All Mail" (MESSAGES 1 UIDNEXT 2)' in lines
    assert not any(b"INBOX" in line for line in lines)
    assert b'* XLIST (\\AllMail \\HasNoChildren) "/" "[Gmail]/All Mail"' in known_wire.run(b'XLIST "" "*"')


def test_hidden_all_mail_cannot_be_listed_or_opened(sandbox, client):
    sandbox.with_account(lambda account: account.configure(hide_all=True))
    assert client.find_special_folder(b"\\All") is None
    with pytest.raises(Exception, match="NONEXISTENT"):
        client.select_folder(ALL)


def test_folder_cap_shows_the_newest(sandbox, client, mail):
    for number in range(5):
        sandbox.deliver(mail(number))
    sandbox.with_account(lambda account: account.configure(max_folder_size=2))
    assert client.select_folder(ALL, readonly=True)[b"EXISTS"] == 2
    assert client.search("ALL") == [4, 5]


def test_failed_select_leaves_nothing_selected(known_wire):
    known_wire.run(b"SELECT INBOX")
    assert known_wire.run(b'SELECT "Sent Mail"')[-1] == (
        b"t NO [NONEXISTENT] Unknown Mailbox: Sent Mail (now in authenticated state) (Failure)"
    )
    assert known_wire.run(b"CHECK")[-1].startswith(b"t BAD")


def test_select_and_examine_answer_as_gmail_does(sandbox, known_wire, mail):
    sandbox.deliver(mail(1))
    flags = rb"\Answered \Flagged \Draft \Deleted \Seen $NotPhishing $Phishing"
    assert known_wire.run(b"SELECT INBOX") == [
        b"* FLAGS (" + flags + b")",
        b"* OK [PERMANENTFLAGS (" + flags + rb" \*)] Flags permitted.",
        b"* OK [UIDVALIDITY 1] UIDs valid.",
        b"* 1 EXISTS",
        b"* 0 RECENT",
        b"* OK [UIDNEXT 2] Predicted next UID.",
        b"* OK [HIGHESTMODSEQ 2]",
        b"t OK [READ-WRITE] INBOX selected. (Success)",
    ]
    examined = known_wire.run(b"EXAMINE inbox (CONDSTORE)")
    assert b"* OK [PERMANENTFLAGS ()] Flags permitted." in examined
    assert examined[-1] == b"t OK [READ-ONLY] INBOX selected. (Success)"


def test_labels_are_made_renamed_and_removed(sandbox, client, mail):
    client.create_folder("Übung")
    client.append("Übung", mail(1))
    client.rename_folder("Übung", "Probe")
    assert client.select_folder("Probe")[b"EXISTS"] == 1
    client.delete_folder("Probe")
    assert [message.labels for message in sandbox.messages()] == [frozenset()]
    with pytest.raises(Exception, match="Unknown folder"):
        client.delete_folder("Probe")


def test_strange_labels_are_mailboxes_one_can_open(sandbox, client, mail):
    sandbox.deliver(mail(1), STRANGE_LABELS)
    listed = {name for _, _, name in client.list_folders()}
    assert set(STRANGE_LABELS) <= listed
    assert all(client.select_folder(name, readonly=True)[b"EXISTS"] == 1 for name in STRANGE_LABELS)


def test_names_that_imap_cannot_carry_are_refused(known_wire):
    known_wire.send(b"t CREATE {3}\r\n")
    assert known_wire.line() == b"+ go ahead"
    known_wire.send(b"a\tb\r\n")
    assert known_wire.line() == b"t NO [CANNOT] Invalid folder name. (Failure)"


@pytest.mark.parametrize("name", [b"a&b", b"&AOk", b"&AO-", b"&!!-", b"&2D0-", b"&AGE-"])
def test_names_that_are_not_modified_utf7_are_refused(known_wire, name):
    assert known_wire.run(b'CREATE "' + name + b'"') == [b"t BAD Could not parse command"]
