"""Kind 11: a server that sends without end costs its own account a connection, and the others nothing."""

from __future__ import annotations

from tests.servers.odd_imap import Mail, OddImapServer, flood, send, send_raw
from tests.servers.odd_stack import RunOdd

LETTER = b"Subject: hello\r\n\r\nhello\r\n"
NEXT = b"Subject: the next one\r\n\r\nhello\r\n"
MAX_MIB = 150


def flooding(command: str, *replies) -> OddImapServer:
    server = OddImapServer([Mail(LETTER)])
    server.on(command, *replies)
    return server


def test_other_accounts_go_on_beside_servers_that_send_without_end(odd: RunOdd):
    floods = {
        "lines": flooding("UID SEARCH", flood("* OK and more\r\n")),
        "oneline": flooding("UID SEARCH", flood("* SEARCH 1 2 3 4 5 6 7 8 9 ")),
        "greeting": OddImapServer(),
        "login": flooding("LOGIN", flood("* CAPABILITY IMAP4rev1\r\n")),
        "idle": flooding("IDLE", send("+ idling"), flood("* 1 EXISTS\r\n")),
        "literal-elsewhere": flooding("EXAMINE", send_raw("* FLAGS {9999999999}\r\n"), flood("a")),
        "examine": flooding("EXAMINE", flood("* FLAGS (One Two)\r\n")),
        "literal": flooding("UID FETCH", send_raw("* 1 FETCH (UID 1 BODY[] {9999999999}\r\n"), flood("a")),
        "messages": flooding("UID FETCH", flood("* 1 FETCH (UID 1)\r\n")),
        "digits": flooding("UID FETCH", send_raw("* 1 FETCH (UID 1 BODY[] {" + "9" * 9999 + "}\r\n"), flood("a")),
    }
    floods["greeting"].greeting = b"* OK hello" * 1_000_000
    sane = OddImapServer([Mail(LETTER)])
    with odd(sane, others=floods) as stack:
        stack.arrives(LETTER)
        for name in floods:
            stack.reason(f"account {name}: ")
        sane.deliver(NEXT)
        stack.arrives(NEXT)
        told = [each["error_type"] for each in stack.events("imap_connection_failed") if each["account"] != "default"]
        assert "IMAPProtocolViolation" in told
        assert stack.producer_peak() < MAX_MIB
        assert stack.events("message_quarantined") or stack.account("literal")["quarantined"]
