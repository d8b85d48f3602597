"""After an outage an account reads mail again within CB_RECOVERY_TIMEOUT and ten seconds, whatever it was."""

from __future__ import annotations

import time

from tests.servers.odd_imap import Mail, OddImapServer
from tests.servers.odd_stack import RunOdd

RECOVERY = 3.0
SLACK = 10.0  # for a loaded machine, on top of the promise
LETTERS = [b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) for number in range(4)]


def test_mail_comes_soon_after_the_server_is_back(odd: RunOdd):
    server = OddImapServer([Mail(LETTERS[0])])
    with odd(server, CB_RECOVERY_TIMEOUT=RECOVERY) as stack:
        stack.arrives(LETTERS[0])
        server.stop()
        server.inbox.add(Mail(LETTERS[1]))
        assert stack.reason("imap")
        time.sleep(7.0)
        server.start()
        back = time.monotonic()
        stack.arrives(LETTERS[1])
        assert time.monotonic() - back < RECOVERY + 10.0 + SLACK

        greeting, server.greeting = server.greeting, None  # connections are taken, and nothing is said
        server.cut()
        server.inbox.add(Mail(LETTERS[2]))
        assert stack.reason("imap")
        time.sleep(7.0)
        server.greeting = greeting
        back = time.monotonic()
        stack.arrives(LETTERS[2])
        assert time.monotonic() - back < RECOVERY + 10.0 + SLACK
        stack.is_ready()
