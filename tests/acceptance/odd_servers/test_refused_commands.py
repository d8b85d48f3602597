"""What a server advertises and refuses is done without: all mail comes, it is said once, and tried again later."""

from __future__ import annotations

import time

from tests.servers.odd_imap import PASSWORD, Mail, OddImapServer, bad, bye, default, hang_up, no, ok, send
from tests.servers.odd_stack import RunOdd
from tests.servers.processes import until

LETTERS = [b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) for number in range(3)]
IDLES = {
    "default": [no("not today")],
    "bad": [bad("Error in IMAP command IDLE: Unknown command.")],
    "ok-without-plus": [ok("IDLE terminated")],
    "no-behind-plus": [send("+ idling"), no("changed my mind")],
    "ok-behind-plus": [send("+ idling"), ok("that is all")],
    "hangs-up": [hang_up],
    "bye": [bye("Too much for me")],
}


def test_mail_comes_without_idle_however_it_is_refused(odd: RunOdd):
    servers = {name: OddImapServer([Mail(LETTERS[0])]) for name in IDLES}
    for name, answer in IDLES.items():
        servers[name].on("IDLE", *answer)
    first = servers["default"]
    with odd(first, {name: server for name, server in servers.items() if server is not first}) as stack:
        until(lambda: all(stack.account(name)["watch"] == "poll" for name in servers), "all of them poll")
        assert all(stack.account(name)["refused"] == ["IDLE"] for name in servers)
        logins = {name: len(server.logins) for name, server in servers.items()}
        first.during(5.0)
        for name, server in servers.items():
            asked = [command.name for command in server.commands if command.at > time.monotonic() - 5.0]
            assert len(asked) <= 10, (name, asked)
            assert "IDLE" not in asked
            server.deliver(LETTERS[1])
        until(lambda: len(stack.stored()) == 2 * len(servers), "the new mail comes", 12)
        assert {name: len(server.logins) for name, server in servers.items()} == logins
        assert max(logins.values()) <= 3
        told = [line["account"] for line in stack.events("imap_commands_refused")]
        assert sorted(told) == sorted(servers)
        stack.is_ready()


def test_a_word_before_the_plus_and_during_an_idle_changes_nothing(odd: RunOdd):
    server = OddImapServer([Mail(LETTERS[0])])
    server.on("IDLE", send("* OK Still here"), send("* 1 EXISTS", "* 0 RECENT"), default, times=2)
    server.on("IDLE", send("* OK Still here"), default)
    with odd(server, IMAP_POLL_SECONDS=60) as stack:
        stack.arrives(LETTERS[0])
        until(lambda: stack.account()["watch"] == "idle", "it idles")
        server.deliver(LETTERS[1])
        stack.arrives(LETTERS[1])
        assert len(server.logins) == 1
        assert stack.account()["refused"] == []


def test_everything_optional_refused_at_once(odd: RunOdd):
    server = OddImapServer(
        [Mail(LETTERS[0])], capabilities="IMAP4rev1 ID IDLE ENABLE NAMESPACE COMPRESS=DEFLATE CONDSTORE"
    )
    for command in ("ID", "ENABLE", "NAMESPACE", "COMPRESS", "STATUS", "IDLE"):
        server.on(command, bad(f"{command} is not for you, {PASSWORD}"))
    server.inbox.uidnext = None
    with odd(server) as stack:
        stack.arrives(LETTERS[0])
        server.deliver(LETTERS[1])
        stack.arrives(LETTERS[1])
        until(lambda: stack.account()["watch"] == "poll", "it polls")
        assert stack.account()["refused"] == ["ID", "IDLE", "STATUS"]
        assert len(server.logins) == 1
        told = stack.events("imap_commands_refused")[-1]
        assert 'the server says "ID is not for you, <user>"' in told["reasons"]
        assert PASSWORD not in stack.producer.log() + str(stack.producer.status())
        stack.is_ready()
        found = stack.here.run("-m", "email_ingestion", "doctor")
        assert "refuses ID, IDLE, STATUS" in found.stdout, found.stdout


def test_what_was_refused_is_tried_again_in_a_later_session(odd: RunOdd):
    server = OddImapServer([Mail(LETTERS[0])])
    refusal = server.on("IDLE", no("not now"))
    with odd(server) as stack:
        until(lambda: stack.account()["refused"] == ["IDLE"], "it does without")
        refusal.end()
        server.cut()
        until(lambda: stack.account()["watch"] == "idle", "it idles")
        until(lambda: stack.account()["refused"] == [], "nothing is refused")
        assert stack.events("imap_commands_refused")[-1]["commands"] == []


def test_a_server_that_hangs_up_over_id_is_not_asked_a_third_time(odd: RunOdd):
    server = OddImapServer([Mail(LETTERS[0])])
    server.on("ID", hang_up)
    with odd(server) as stack:
        stack.arrives(LETTERS[0])
        assert server.count("ID") == 2
        until(lambda: stack.account()["refused"] == ["ID"], "it does without")
