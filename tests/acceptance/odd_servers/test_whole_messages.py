"""Kind 3: what came is compared with what was announced; nothing is stored empty or cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import count

from tests.servers.odd_imap import Mail, OddImapServer, literal
from tests.servers.odd_stack import OddStack, RunOdd
from tests.servers.processes import until

MIB = 1024 * 1024


def letter(number: int, size: int = 0) -> bytes:
    return b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) + b"0123456789abcde\r\n" * (size // 17)


def quarantined(stack: OddStack) -> dict[int, str]:
    return {each["uid"]: each["reason"] for each in stack.account()["quarantined"]}


def defects(stack: OddStack) -> dict[int, set[str]]:
    rows = stack.here.rows("SELECT uid, defects FROM emails")
    return {uid: set(json.loads(codes)) & {"size:mismatch"} for uid, codes in rows}


def in_turn(*answers: bytes | str) -> Callable[[int | None, int | None], bytes]:
    """One after another as the body, and the last one from then on."""
    asked = count()

    def answer(_offset: int | None, _size: int | None) -> bytes:
        chosen = answers[min(next(asked), len(answers) - 1)]
        return b"BODY[] " + (chosen.encode() if isinstance(chosen, str) else literal(chosen))

    return answer


def test_what_comes_empty_or_cut_is_not_stored_so_and_a_miscount_is_proven_once(odd: RunOdd):
    """Small messages, each with one oddity; UID 1 and 20 are sane."""
    size = len(letter(5))
    mail = [
        Mail(letter(1), uid=1),
        Mail(letter(2), uid=2, items={"BODY[]": "NIL"}),
        Mail(letter(3), uid=3, items={"BODY[]": '""'}),
        Mail(letter(4), uid=4, items={"BODY[]": "{0}\r\n"}),
        Mail(letter(5), uid=5, items={"BODY[]": in_turn(letter(5)[:-7], letter(5))}),  # cut once
        Mail(letter(6), uid=6, items={"BODY[]": in_turn("NIL", letter(6))}),  # empty once
        Mail(letter(7), uid=7, size=3 * size),  # miscounted
        Mail(letter(8), uid=8, size=1),
        Mail(letter(9), uid=9, items={"BODY[]": in_turn(letter(9)[:-7], letter(9)[:-5])}),  # never the same
        Mail(letter(10), uid=10, hidden=True),
        Mail(letter(11), uid=11, size=0),
        Mail(letter(12), uid=12, size=0, items={"BODY[]": "NIL"}),
        Mail(letter(13), uid=13, items={"BODY[]": lambda _offset, _size: None}),  # FETCH OK without the body
        Mail(letter(14, 2 * MIB), uid=14, size=100),  # far beyond what was announced
        Mail(letter(20), uid=20),
    ]
    server = OddImapServer(mail)
    with odd(server) as stack:
        stack.arrives(*(letter(uid) for uid in (1, 5, 6, 7, 8, 11, 20)))
        until(lambda: quarantined(stack).keys() == {2, 3, 4, 10, 12, 13, 14}, "what does not come is named")
        until(lambda: len(stack.stored()) == 8, "the longer of two answers")
        assert hashlib.sha256(letter(9)[:-5]).hexdigest() in stack.stored()
        found = defects(stack)
        assert {uid for uid, codes in found.items() if codes} == {7, 8, 9, 11}
        assert "nothing" in quarantined(stack)[2]
        report = json.loads(stack.here.run("-m", "email_ingestion", "reconcile", "--json").stdout)
        assert (report["checked"], report["missing"]) == (15, 7)  # every UID that SEARCH lists


def test_five_proven_miscounts_are_enough_but_for_empty_answers(odd: RunOdd):
    mail = [Mail(letter(number), size=99_999) for number in range(1, 9)]
    mail += [Mail(letter(9), size=99_999, items={"BODY[]": "NIL"})]
    server = OddImapServer(mail)
    with odd(server) as stack:
        stack.arrives(*(letter(number) for number in range(1, 9)))
        until(lambda: quarantined(stack).keys() == {9}, "the empty one is named")
        assert all(defects(stack).values())
        bodies = [command.uids for command in server.commands if b"BODY" in command.arguments]
        assert sum(sum(uid in uids for uids in bodies) > 1 for uid in range(1, 9)) == 5


def test_large_messages_come_whole_however_the_server_cuts_them(odd: RunOdd):
    size, usual = 3 * MIB, 512 * 1024
    raws = {number: letter(number, size) for number in range(1, 8)}

    def short(offset: int | None, asked: int | None) -> bytes:
        start = offset or 0
        piece = raws[2][start : start + min(asked or size, 300_000)] if asked else raws[2]
        return (b"BODY[]<%d> " % start if asked else b"BODY[] ") + literal(piece)

    def nil_in_parts(offset: int | None, _asked: int | None) -> bytes:
        return b"BODY[] " + literal(raws[4]) if offset is None else b"BODY[]<%d> NIL" % offset

    mail = [
        Mail(raws[1], uid=1),
        Mail(raws[2], uid=2, items={"BODY[]": short}),
        Mail(raws[3], uid=3, items={"BODY[]": lambda _offset, _asked: b"BODY[] " + literal(raws[3])}),
        Mail(raws[4], uid=4, items={"BODY[]": nil_in_parts}),
        Mail(raws[5], uid=5, size=size + 5000),
        Mail(raws[6], uid=6, items={"BODY[]": lambda _offset, _asked: b"BODY[]<0> " + literal(raws[6])}),
        Mail(raws[7], uid=7, items={"BODY[]": "NIL"}),
    ]
    server = OddImapServer(mail)
    with odd(server) as stack:
        stack.arrives(*(raws[number] for number in range(1, 7)))
        until(lambda: quarantined(stack).keys() == {7}, "the empty one is named")
        assert len(stack.stored()) == 6
        assert {uid for uid, codes in defects(stack).items() if codes} == {5}
        assert server.sent_bytes < 2 * sum(map(len, raws.values())) + 2 * usual
