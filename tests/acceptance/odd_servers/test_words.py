"""What a server says decides who waits for what, is shown to the operator, and gives nothing away."""

from __future__ import annotations

from tests.servers.odd_imap import PASSWORD, USER, Mail, OddImapServer, bad, bye, default, no, ok, send
from tests.servers.odd_stack import RunOdd
from tests.servers.processes import until

LETTER = b"Subject: letter\r\n\r\nhello\r\n"
THROTTLED = "Request is throttled. Suggested Backoff Time: 6000 milliseconds"
OPERATOR = {
    "expired": no("[EXPIRED] Your password is too old"),
    "contact": no("[CONTACTADMIN] Call +00 for help"),
    "switched-off": no("[ALERT] You are yet to enable IMAP for your account"),
    "unknown-bad": bad("I do not like LOGIN"),
}


def test_the_pause_that_a_server_asks_for_is_kept_wherever_it_says_so(odd: RunOdd):
    servers = {name: OddImapServer([Mail(LETTER)]) for name in ("default", "login-bad", "login-bye", "select", "fetch")}
    servers["default"].on("LOGIN", no(THROTTLED), times=1)
    servers["login-bad"].on("LOGIN", bad(THROTTLED), times=1)
    servers["login-bye"].on("LOGIN", bye(THROTTLED), times=1)
    servers["select"].on("EXAMINE", bad(THROTTLED), times=1)
    servers["fetch"].on("UID FETCH", no(THROTTLED), times=1)
    others = {name: server for name, server in servers.items() if name != "default"}
    with odd(servers["default"], others) as stack:
        until(lambda: len(stack.stored()) == len(servers), "all mail")
        for name, server in servers.items():
            first, second = server.connections[:2]
            assert second - first >= 6, name
            assert len(server.connections) == 2, name
        told = {line["account"]: line["message"] for line in stack.events("imap_connection_failed")}
        assert all(f'the server says "{THROTTLED}"' in told[name] for name in servers), told


def test_what_only_a_person_can_change_is_told_in_the_servers_words(odd: RunOdd):
    servers = {name: OddImapServer([Mail(LETTER)]) for name in ("default", *OPERATOR)}
    for name, answer in OPERATOR.items():
        servers[name].on("LOGIN", answer)
        servers[name].on("AUTHENTICATE", answer)
    servers["default"].on("EXAMINE", bad("User is authenticated but not connected."), times=2)
    others = {name: servers[name] for name in OPERATOR}
    with odd(servers["default"], others) as stack:
        stack.arrives(LETTER)
        until(lambda: all(stack.account(name)["watch"] == "needs_operator" for name in OPERATOR), "they wait")
        reasons = "\n".join(stack.ready()[1])
        for words in (
            "Your password is too old",
            "[CONTACTADMIN]",
            "You are yet to enable IMAP",
            "I do not like LOGIN",
        ):
            assert words in reasons
        assert "report" not in reasons
        assert stack.account("switched-off")["alert"]
        found = stack.here.run("-m", "email_ingestion", "doctor").stdout
        assert "I do not like LOGIN" in found
        assert "switch IMAP on" in found


def test_an_alert_is_shown_and_what_identifies_the_account_is_not(odd: RunOdd):
    server = OddImapServer([Mail(LETTER)])
    server.on("LOGIN", ok(f"[ALERT] Password of {USER} ({PASSWORD}): renew it, alice\x07"))
    server.on("LOGIN", send("* NO [ALERT] The disk is nearly full"), default)
    server.on(
        "UID SEARCH", no(f"[UNAVAILABLE] no search for {USER}, {PASSWORD}, dXNlcj1hbGljZUBleGFtcGxlLmNvbQ=="), times=1
    )
    with odd(server) as stack:
        stack.arrives(LETTER)
        until(lambda: stack.account()["alert"], "the alert")
        assert "The disk is nearly full" in stack.account()["alert"]
        assert stack.events("imap_alert")[0]["notice"] == 'the server says "[ALERT] The disk is nearly full"'
        assert "[UNAVAILABLE] no search for" in stack.producer.log()
        assert "The disk is nearly full" in stack.here.run("-m", "email_ingestion", "doctor").stdout
        assert "The disk is nearly full" in stack.here.run("-m", "email_ingestion", "status").stdout
        shown = stack.producer.log() + str(stack.producer.status())
        for secret in (USER, PASSWORD, "dXNlcj1", "\x07"):
            assert secret not in shown
