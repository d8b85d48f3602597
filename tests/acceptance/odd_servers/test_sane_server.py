"""The scripted server without a rule is a sane one: what the other tests find odd is theirs."""

from __future__ import annotations

from tests.servers.odd_imap import Mail, OddImapServer
from tests.servers.odd_stack import RunOdd

LETTERS = [b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) for number in range(5)]


def test_mail_of_a_sane_server_arrives_in_one_session(odd: RunOdd):
    server = OddImapServer([Mail(raw) for raw in LETTERS[:3]])
    with odd(server, IMAP_POLL_SECONDS=60) as stack:
        stack.arrives(*LETTERS[:3])
        server.deliver(LETTERS[3])
        stack.arrives(LETTERS[3])
        server.deliver(Mail(LETTERS[4], uid=743_024_218))
        stack.arrives(LETTERS[4])
        stack.is_ready()
        assert len(stack.stored()) == len(LETTERS)
        assert len(server.logins) == 1
        server.stop()
        assert stack.reason("imap")
