"""FETCH: Gmail's spelling, exact bytes, and what reading must not do."""

from __future__ import annotations

import socket

import pytest
from imapclient import imap_utf7

from gmail_sandbox import SandboxSettings, running_sandbox
from gmail_sandbox.fault_actions import STRANGE_LABELS

ALL = "[Gmail]/All Mail"

NESTED = (
    b"Message-ID: <n@x>\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\npreamble\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nfirst\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ninner text\r\n"
    b"--b--\r\n"
)


def test_items_come_in_gmails_order_with_labels_spelled_its_way(sandbox, known_wire, mail):
    sandbox.deliver(mail(1), ["\\Inbox", "\\Important", "Work", "my label", "Übung"], internaldate=1_000_000)
    known_wire.run(b'EXAMINE "[Gmail]/All Mail"')
    line = known_wire.run(b"UID FETCH 1:* (FLAGS UID X-GM-LABELS X-GM-MSGID RFC822.SIZE X-GM-THRID)")[0]
    msgid = sandbox.messages()[0].msgid
    assert msgid >> 20 == 1_000_000
    assert line == (
        b'* 1 FETCH (X-GM-THRID %d X-GM-MSGID %d X-GM-LABELS ("\\\\Inbox" "\\\\Important" Work "my label" &ANw-bung) '
        b"UID 1 RFC822.SIZE %d FLAGS ())" % (msgid, msgid, len(mail(1)))
    )


def test_label_of_the_selected_mailbox_is_left_out(sandbox, known_wire, mail):
    sandbox.deliver(mail(1), ["\\Inbox"])
    known_wire.run(b"EXAMINE INBOX")
    assert (known_wire.run(b"FETCH 1 X-GM-LABELS"))[0] == b"* 1 FETCH (X-GM-LABELS ())"


@pytest.mark.parametrize("label", STRANGE_LABELS)
def test_every_strange_label_survives_imapclient(sandbox, client, label, mail):
    sandbox.deliver(mail(1), [label])
    client.select_folder(ALL, readonly=True)
    (wire,) = client.fetch([1], ["X-GM-LABELS"])[1][b"X-GM-LABELS"]
    # imapclient reads a bare number as int and a bare NIL as None; both are legal atoms.
    spelled = {None: b"NIL"}.get(wire, wire if isinstance(wire, bytes) else str(wire).encode())
    assert imap_utf7.decode(spelled) == label


def test_messages_come_back_byte_for_byte(sandbox, client, mail):
    raws = [b"", b"\r\n", b"a: b\n\nbare\n", mail(1) + b"\0\xff\r\n", mail(2, "x" * 200_000)]
    for raw in raws:
        sandbox.deliver(raw)
    client.select_folder(ALL, readonly=True)
    fetched = client.fetch(list(range(1, 6)), ["BODY.PEEK[]", "RFC822.SIZE"])
    assert [fetched[uid][b"BODY[]"] or b"" for uid in range(1, 6)] == raws
    assert [fetched[uid][b"RFC822.SIZE"] for uid in range(1, 6)] == [len(raw) for raw in raws]


def test_partial_fetch_pieces_make_the_whole(sandbox, client, mail):
    raw = mail(1, "0123456789" * 500)
    sandbox.deliver(raw)
    client.select_folder(ALL, readonly=True)
    pieces = []
    for start in range(0, len(raw) + 1000, 1000):
        answer = client.fetch([1], [f"BODY.PEEK[]<{start}.1000>"])[1]
        pieces.append(answer[b"BODY[]<%d>" % start] or b"")
    assert b"".join(pieces) == raw


def test_sections_are_cut_exactly(sandbox, client):
    sandbox.deliver(NESTED)
    client.select_folder(ALL, readonly=True)
    sections = {
        "BODY.PEEK[1]": b"first",
        "BODY.PEEK[1.MIME]": b"Content-Type: text/plain\r\n\r\n",
        "BODY.PEEK[2]": b"Subject: inner\r\n\r\ninner text",
        "BODY.PEEK[2.HEADER]": b"Subject: inner\r\n\r\n",
        "BODY.PEEK[2.TEXT]": b"inner text",
        "BODY.PEEK[2.1]": b"inner text",
        "BODY.PEEK[3]": None,
        "BODY.PEEK[HEADER]": NESTED[: NESTED.index(b"preamble")],
        "BODY.PEEK[TEXT]": NESTED[NESTED.index(b"preamble") :],
        "BODY.PEEK[HEADER.FIELDS (MESSAGE-ID X-NONE)]": b"Message-ID: <n@x>\r\n\r\n",
    }
    answer = client.fetch([1], list(sections))[1]
    assert {name: answer[name.replace(".PEEK", "").encode()] for name in sections} == sections


def test_envelope_and_structure_are_parsed_by_imapclient(sandbox, client, mail):
    sandbox.deliver(NESTED)
    sandbox.deliver(mail(1, Subject='a "quoted" \\ subject', To="Bo <bo@example.org>, c@example.org"))
    client.select_folder(ALL, readonly=True)
    answer = client.fetch([1, 2], ["ENVELOPE", "BODYSTRUCTURE", "BODY"])
    assert answer[2][b"ENVELOPE"].subject == b'a "quoted" \\ subject'
    assert [address.mailbox for address in answer[2][b"ENVELOPE"].to] == [b"bo", b"c"]
    parts, kind = answer[1][b"BODYSTRUCTURE"][:2]
    assert kind == b"MIXED"
    assert [part[0] for part in parts] == [b"TEXT", b"MESSAGE"]


def test_peek_and_examine_leave_seen_alone_but_plain_body_sets_it(sandbox, client, mail):
    sandbox.deliver(mail(1))
    client.select_folder(ALL)
    client.fetch([1], ["BODY.PEEK[]"])
    client.select_folder(ALL, readonly=True)
    client.fetch([1], ["BODY[]"])
    assert not sandbox.messages()[0].flags
    client.select_folder(ALL)
    assert client.fetch([1], ["BODY[]"])[1][b"FLAGS"] == (b"\\Seen",)
    assert sandbox.messages()[0].flags == {"\\Seen"}


def test_changedsince_returns_only_what_changed(sandbox, client, mail):
    for number in range(3):
        sandbox.deliver(mail(number))
    client.enable("CONDSTORE")
    before = client.select_folder(ALL, readonly=True)[b"HIGHESTMODSEQ"]
    second = sandbox.messages()[1].msgid
    sandbox.with_account(lambda account: account.change_labels(second, add=["Work"]))
    answer = client.fetch([1, 2, 3], ["X-GM-MSGID", "X-GM-LABELS"], [f"CHANGEDSINCE {before}"])
    assert [data[b"X-GM-MSGID"] for data in answer.values() if b"X-GM-MSGID" in data] == [second]
    assert answer[2][b"MODSEQ"] == (before + 1,)


def test_statistics_count_each_download(sandbox, client, mail):
    sandbox.deliver(mail(1))
    client.select_folder(ALL, readonly=True)
    client.fetch([1], ["BODY.PEEK[HEADER]"])
    client.fetch([1], ["BODY.PEEK[]"])
    client.fetch([1], ["BODY.PEEK[]<10.20>"])
    assert sandbox.with_stats(lambda stats: stats.as_json()["fetched"]) == {"\\All": {"1": 1}}


def test_malformed_commands_are_not_fatal(sandbox, known_wire, mail):
    sandbox.deliver(mail(1))
    known_wire.run(b"EXAMINE INBOX")
    for command in (b"FETCH", b"FETCH x FLAGS", b"FETCH 1 (FLAGS", b"FETCH 9 FLAGS", b'FETCH 1 "x', b"FETCH 1 NOPE"):
        assert known_wire.run(command)[-1] == b"t BAD Could not parse command"
    assert known_wire.run(b"UID FETCH 77 FLAGS") == [b"t OK Success"]
    assert known_wire.run(b"UID FETCH 77:* (FLAGS)")[0] == b"* 1 FETCH (UID 1 FLAGS ())"


def test_a_line_of_a_hundred_kilobytes_is_read(sandbox, known_wire, mail):
    sandbox.deliver(mail(1))
    known_wire.run(b"EXAMINE INBOX")
    uids = b",".join(b"%d" % uid for uid in range(1, 20_000))
    assert len(known_wire.run(b"UID FETCH " + uids + b" (UID)")) == 2


def test_the_end_of_a_large_mailbox_is_cheap_to_read(wire_to):
    with running_sandbox(SandboxSettings(mail="bulk:20000")) as sandbox:
        wire = wire_to(sandbox)
        wire.login(sandbox)
        wire.run(b'EXAMINE "[Gmail]/All Mail"')
        assert wire.run(b"UID SEARCH UID 19999:*")[0] == b"* SEARCH 19999 20000"
        assert b"BODY[] {" in wire.run(b"UID FETCH 20000 (BODY.PEEK[])")[0]


def test_a_slow_reader_of_a_huge_message_does_not_fill_memory(sandbox, wire):
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    raw = b"Message-ID: <huge@x>\r\n\r\n" + b"x" * 34_000_000
    sandbox.deliver(raw)
    wire.login(sandbox)
    wire.run(b'EXAMINE "[Gmail]/All Mail"')
    wire.send(b"t UID FETCH 1 (BODY.PEEK[])\r\n")
    assert wire.line().endswith(b"BODY[] {%d}" % len(raw))
    assert sandbox.with_stats(lambda stats: stats.bytes_sent) < 20_000_000
    received, tail = 0, b""
    while not tail.endswith(b")\r\nt OK Success\r\n"):
        tail = tail[-100:] + wire.socket.recv(1 << 20)
        received += len(tail) - min(100, received)
    assert received > 33_000_000
