"""Kind 2: one message that cannot be read, or over which the conversation ends, holds up no other."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from tests.servers.odd_imap import Mail, OddImapServer, bye, hang, hang_up, no
from tests.servers.odd_stack import OddStack, RunOdd
from tests.servers.processes import until

DATED = b"Date: Tue, 03 Mar 2020 10:00:00 +0100\r\nSubject: %s\r\n\r\nhello\r\n"
DATES = [
    "NIL",
    '"00-Jan-0000 00:00:00 +0000"',
    '"01-Jan-0001 00:00:00 +0100"',
    '"31-Dec-9999 23:59:59 -0200"',
    '"31-Dec-9999 00:00:00 +0000"',
    None,
]


def letter(number: int) -> bytes:
    return b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number)


def quarantined(stack: OddStack) -> dict[int, str]:
    return {each["uid"]: each["reason"] for each in stack.account()["quarantined"]}


def run(stack: OddStack, *arguments: str) -> tuple[int, str]:
    done = stack.here.run("-m", "email_ingestion", *arguments)
    return done.returncode, done.stdout


def test_what_the_server_says_of_a_message_is_replaced_where_nobody_can_read_it(odd: RunOdd):
    mail = [Mail(DATED % b"%d" % number, internaldate=date) for number, date in enumerate(DATES)]
    mail += [Mail(letter(10), size="NIL"), Mail(letter(11), size=None), Mail(letter(12), flags=r"(Junk(1 \Seen)")]
    mail += [Mail(letter(13), size="NIL", internaldate="NIL", flags="NIL"), Mail(letter(14))]
    server = OddImapServer(mail)
    with odd(server) as stack:
        stack.arrives(*(each.raw for each in mail))
        stack.is_ready()
        rows = stack.here.rows("SELECT uid, internaldate, defects, flags FROM emails")
        dates = {uid: datetime.fromisoformat(str(date)) for uid, date, _, _ in rows}
        defects = {uid: set(json.loads(codes)) for uid, _, codes, _ in rows}
        for uid in range(1, len(DATES) + 1):
            assert dates[uid].replace(tzinfo=UTC) == datetime(2020, 3, 3, 9, tzinfo=UTC)
            assert "internaldate:unreadable" in defects[uid]
        assert all("size:unreadable" in defects[uid] for uid in (7, 8, 10))
        assert "flags:unreadable" in defects[9]
        assert r"\Seen" in next(flags for uid, _, _, flags in rows if uid == 9)
        assert abs((dates[10].replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()) < 3600
        assert not any("unreadable" in code for code in defects[11])
        assert len(server.logins) == 1


def test_a_message_over_which_the_conversation_ends_is_set_aside_and_the_others_flow(odd: RunOdd):
    """Four ways to end it, and a refusal; the first and the last message among them."""
    endings = {1: [hang_up], 3: [bye("Internal error")], 5: [hang], 7: [no("[SERVERBUG] Internal error")], 9: [hang_up]}
    mail = [Mail(letter(uid), uid=uid, instead=endings.get(uid, [])) for uid in range(1, 10)]
    server = OddImapServer(mail)
    with odd(server, IMAP_TIMEOUT_SECONDS=2, RECONCILE_SECONDS=3600) as stack:
        stack.arrives(*(letter(uid) for uid in range(2, 9, 2)))
        until(lambda: quarantined(stack).keys() == endings.keys(), "all five are named")
        assert "UID" in stack.reason("quarantined")
        assert stack.ready()[0] == "degraded"
        assert {event["uid"] for event in stack.events("message_quarantined")} == endings.keys()
        assert stack.producer.metric("email_ingestion_imap_quarantined_messages") == len(endings)
        server.deliver(letter(20))
        stack.arrives(letter(20), seconds=20)
        logins = len(server.logins)

        stack.producer.terminate()  # what is in quarantine is not asked for from the beginning
        stack.producer = stack.here.producer()
        stack.producer.url()
        server.deliver(letter(21))
        stack.arrives(letter(21), seconds=20)
        assert len(server.logins) <= logins + 4

        mail[0].instead = mail[2].instead = []
        assert run(stack, "quarantine", "retry", "1", "3")[0] in {0, 1}  # 1: the producer asked by itself just now
        stack.arrives(letter(1), letter(3))
        code, listed = run(stack, "quarantine", "list", "--json")
        assert (code, {row["uid"] for row in json.loads(listed)}) == (0, {5, 7, 9})

        code, report = run(stack, "reconcile", "--json")
        assert (code, json.loads(report)["missing"]) == (1, 3)
        doctor = stack.here.run("-m", "email_ingestion", "doctor").stdout
        assert "does not send 3 messages" in doctor

        assert run(stack, "quarantine", "accept", "5", "7", "9")[0] == 64  # without a reason
        assert run(stack, "quarantine", "accept", "5", "7", "9", "--reason", "damaged on the server")[0] == 0
        stack.is_ready()
        assert stack.account()["quarantined"] == []
        assert stack.producer.metric("email_ingestion_imap_quarantined_messages") == 0
        assert stack.producer.metric("email_ingestion_imap_quarantine_accepted_messages") == 3
        code, report = run(stack, "reconcile", "--json")
        sums = json.loads(report)
        assert (code, sums["missing"], sums["accepted"], sums["checked"]) == (0, 0, 3, 11)
        assert "damaged on the server" in (stack.here.folder / "logs" / "audit.log").read_text()
        assert len(stack.stored()) == 8


def test_the_only_message_of_a_mailbox_may_be_such_a_one(odd: RunOdd):
    server = OddImapServer([Mail(letter(1))])
    server.on("UID FETCH", hang_up, uid=1)  # already when its size is asked for
    with odd(server) as stack:
        until(lambda: quarantined(stack).keys() == {1}, "it is named")
        server.deliver(letter(2))
        stack.arrives(letter(2), seconds=20)


def test_a_server_that_sends_no_message_at_all_is_recovered_from_when_it_does(odd: RunOdd):
    server = OddImapServer([Mail(letter(number)) for number in range(1, 5)])
    refusal = server.on("UID FETCH", no("[SERVERBUG] Internal error occurred."), containing="BODY")
    with odd(server, CB_FAIL_MAX=1000) as stack:
        stack.reason("quarantined")
        refusal.end()
        stack.arrives(*(letter(number) for number in range(1, 5)))
        stack.is_ready()
