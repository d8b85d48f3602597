"""Names, passwords, greetings and what servers leave out: it works, or the operator reads why not."""

from __future__ import annotations

from tests.servers.odd_imap import Folder, Mail, OddImapServer, bad, default, no, send
from tests.servers.odd_stack import RunOdd
from tests.servers.processes import until

LETTER = b"Subject: letter\r\n\r\nhello\r\n"
NEWER = b"Subject: newer\r\n\r\nhello again\r\n"


def test_a_password_of_any_characters_logs_in_on_any_server(odd: RunOdd):
    secret = 'Grün "\\ x'
    ways = {
        "default": "IMAP4rev1 AUTH=PLAIN",
        "no-plain": "IMAP4rev1",
        "literal": "IMAP4rev1 LITERAL+",
        "disabled": "IMAP4rev1 LOGINDISABLED AUTH=PLAIN",
        "plain-is-broken": "IMAP4rev1 AUTH=PLAIN",
    }
    servers = {name: OddImapServer([Mail(LETTER)], capabilities=words) for name, words in ways.items()}
    for server in servers.values():
        server.users = {"älice smith": secret}
    servers["plain-is-broken"].on("AUTHENTICATE", bad("no such mechanism"))
    servers["disabled"].on("LOGIN", no("[PRIVACYREQUIRED] not here"))
    others = {name: server for name, server in servers.items() if name != "default"}
    with odd(servers["default"], others, IMAP_USER="älice smith", IMAP_PASSWORD=secret) as stack:
        until(lambda: len(stack.stored()) == len(ways), "all mail")
        assert all(len(server.attempts) == len(server.logins) == 1 for server in servers.values())


def test_names_that_break_the_rules_keep_no_mail_out(odd: RunOdd):
    server = OddImapServer([Mail(LETTER)])
    server.on(
        "LIST",
        send(
            r'* LIST () "/" "R&D"',
            r"* LIST () NIL R&D-&-",
            '* LIST () "/" "Entw\u00fcrfe"',
            r'* LIST () "/" "say \"hi\", all"',
            '* LIST () "/" {9}\r\nliteral"&',
            "* LIST nonsense",
            r'* LIST (\HasNoChildren) "/" "Inbox"',
            r'* LIST () "/" "Spam"',
        ),
        default,
    )
    server.on("LIST", send(r'* LIST (\Junk) "/" "Spam"'), default, containing="SPECIAL-USE")
    for name in ("R&D", "Entw\u00fcrfe", 'say "hi", all', 'literal"&', "Spam"):
        server.folders[name] = Folder([Mail(b"Subject: x\r\n\r\nin %b\r\n" % name.encode(), uid=1)])
    names = [["inbox", "R&D", "Entw\u00fcrfe"], [r'say "hi"\, all', 'literal"&', "\\Junk"]]
    for group in names:
        with odd(server, IMAP_MAILBOX=",".join(group)) as stack:
            wanted = 3 * (names.index(group) + 1)
            until(lambda wanted=wanted: len(stack.stored()) == wanted, "mail of all of them")
            stack.is_ready()


def test_what_a_server_leaves_out_is_found_out_or_told(odd: RunOdd):
    servers = {name: OddImapServer([Mail(LETTER)]) for name in ("default", "no-uidvalidity", "preauth")}
    servers["default"].inbox.uidnext = None
    servers["no-uidvalidity"].inbox.uidvalidity = None
    servers["preauth"].greeting = b"* PREAUTH you are known\r\n"
    servers["preauth"].on("LOGIN", bad("you are in already"))
    others = {name: server for name, server in servers.items() if name != "default"}
    with odd(servers["default"], others, IMAP_START="now") as stack:
        assert stack.reason("no UIDVALIDITY")
        until(lambda: stack.account()["last_uid"] == 1 == stack.account("preauth")["last_uid"], "the cursors")
        servers["default"].deliver(NEWER)
        servers["preauth"].deliver(NEWER)
        until(lambda: len(stack.stored()) == 2, "the new mail")
        stack.arrives(NEWER)


def test_a_server_without_the_way_that_is_set_is_told_from_a_wrong_password(odd: RunOdd):
    servers = {"default": OddImapServer([Mail(LETTER)], capabilities="IMAP4rev1 LOGINDISABLED STARTTLS AUTH=GSSAPI")}
    with odd(servers["default"]) as stack:
        assert stack.reason('LOGINDISABLED): the server says "CAPABILITY LOGINDISABLED STARTTLS AUTH=GSSAPI"')
        assert servers["default"].attempts == []
        found = stack.here.run("-m", "email_ingestion", "doctor").stdout
        assert "LOGINDISABLED" in found
