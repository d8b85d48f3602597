"""Kind 4: UIDs that lie far apart cost no more than others, and a new mail waits for nothing."""

from __future__ import annotations

import time

from tests.servers.odd_imap import Mail, OddImapServer, literal
from tests.servers.odd_stack import RunOdd
from tests.servers.processes import until

LETTERS = [b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) for number in range(6)]
NEWEST = b"Subject: the newest\r\n\r\nhello\r\n"
FEW = 20  # commands


def test_six_messages_take_a_few_commands_to_bring_in_and_to_compare(odd: RunOdd):
    server = OddImapServer([Mail(raw, uid=743_024_218 + 1_400 * number) for number, raw in enumerate(LETTERS)])
    with odd(server, IMAP_POLL_SECONDS=60) as stack:
        stack.arrives(*LETTERS)
        stack.is_ready()
        assert len(server.commands) < FEW
        before = len(server.commands)
        assert stack.here.run("-m", "email_ingestion", "reconcile", "--json").returncode == 0
        assert len(server.commands) - before < FEW
        before = len(server.commands)
        server.deliver(Mail(NEWEST, uid=1_500_000_000))
        stack.arrives(NEWEST)
        assert len(server.commands) - before < FEW


def slowly(raw: bytes, seconds: float) -> Mail:
    """A message that takes so long to read, as a whole or each part of it."""

    def body(offset: int | None, size: int | None) -> bytes:
        time.sleep(seconds)
        if offset is None or size is None:
            return b"BODY[] " + literal(raw)
        return b"BODY[]<%d> " % offset + literal(raw[offset : offset + size])

    return Mail(raw, items={"BODY[]": body})


def test_a_new_mail_waits_for_a_moment_only_while_a_slow_server_sends_old_mail(odd: RunOdd):
    large = b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * 500_000
    old = [b"Subject: old %d\r\n\r\nhello %d\r\n" % (number, number) for number in range(500)]
    server = OddImapServer([*(slowly(raw, 0.05) for raw in old), slowly(large, 0.25)])
    with odd(server, IMAP_POLL_SECONDS=60) as stack:
        until(lambda: any(b"BODY.PEEK[]<" in each.arguments for each in server.commands), "the first part")
        first = server.deliver(LETTERS[0])
        stack.arrives(LETTERS[0], large)
        server.deliver(NEWEST)
        stack.arrives(NEWEST)
        assert len(stack.stored()) < len(old) / 2
    fetched = [each.arguments for each in server.commands if b"BODY.PEEK[]" in each.arguments]
    parts = [number for number, arguments in enumerate(fetched) if b"BODY.PEEK[]<" in arguments]
    assert next(number for number, each in enumerate(fetched) if each.startswith(b"%d " % first.uid)) < parts[-1]
