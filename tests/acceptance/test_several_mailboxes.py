"""Several mailboxes of one account: each message once, whatever its labels; Spam or Trash where asked for."""

from __future__ import annotations

from gmail_sandbox import RunningSandbox
from tests.servers.commands import told
from tests.servers.processes import Place, until

ROWS = "SELECT gm_msgid, mailbox FROM emails"


def letter(number: int) -> bytes:
    return b"Subject: letter %d\r\nMessage-ID: <%d@example.org>\r\n\r\nhello %d\r\n" % (number, number, number)


def test_each_message_comes_once_whatever_mailboxes_it_lies_in(here: Place, sandbox: RunningSandbox):
    here.set(IMAP_MAILBOX="INBOX, Work, \\Trash", IMAP_POLL_SECONDS=1)
    labels = (["\\Inbox", "Work"], ["\\Inbox"], ["Work"], ["\\Trash"], ["Elsewhere"])
    wanted = {sandbox.deliver(letter(n), labels[n % 5]).message.msgid for n in range(20) if n % 5 < 4}
    left_out = {sandbox.deliver(letter(n), labels[4]).message.msgid for n in (24, 29)}
    here.producer().url()
    here.worker().url()
    until(lambda: len(here.rows(ROWS)) >= 16, "what is in the three mailboxes")
    wanted |= {sandbox.deliver(letter(number), labels[number % 5]).message.msgid for number in (100, 101, 102, 103)}
    until(lambda: len(here.rows(ROWS)) >= 20, "new mail in each of them")
    rows = here.rows(ROWS)
    assert {msgid for msgid, _ in rows} == wanted
    assert len(rows) == len(wanted)
    assert {mailbox for _, mailbox in rows} <= {"INBOX", "Work", "[Gmail]/Trash"}
    assert not left_out & {msgid for msgid, _ in rows}
    assert sandbox.with_stats(lambda stats: stats.connections_max) <= 3 + 1  # and one that asks whether it is there
    found = told(here, "reconcile")
    assert (found["complete"], len(found["accounts"])) == (True, 3)
