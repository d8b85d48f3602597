"""VANISHED (RFC 7162): what it names, and how many messages are left after it."""

from __future__ import annotations

import pytest

from email_ingestion.mailbox.response_lines import count_after
from email_ingestion.mailbox.uid_listing import LAST_UID, MAX_RANGES, parse_vanished

ALL = (1, LAST_UID)


@pytest.mark.parametrize(
    ("responses", "window", "ranges"),
    [
        ([b"(EARLIER) 41,43:45,50"], ALL, [(41, 41), (43, 45), (50, 50)]),
        ([b"405", b"(EARLIER) 407:406"], ALL, [(405, 407)]),
        ([b"(EARLIER) 1:4294967295"], (10, 20), [(10, 20)]),
        ([b"3,1,2,9,2:4"], ALL, [(1, 4), (9, 9)]),
        ([b"(EARLIER) 1:9,30:40"], (10, 20), []),
        ([b"", b"()", b"(EARLIER)", b"x", b"5:*", b"NIL 7a", b":,,:"], ALL, []),
        ([b"99999999999999999999,8"], ALL, [(8, 8)]),
        ([b"(EARLIER (odd)) 6"], ALL, [(6, 6)]),
    ],
)
def test_ranges_are_read_and_not_written_out(responses: list[bytes], window, ranges):
    assert parse_vanished(responses, window) == ranges


def test_there_is_an_end_to_what_is_kept():
    every_other = ",".join(str(uid) for uid in range(1, 3 * MAX_RANGES, 2)).encode()
    assert len(parse_vanished([every_other], ALL)) == MAX_RANGES
    assert parse_vanished([b",".join(b"%d" % uid for uid in range(1, 50_000))], ALL) == [(1, 49_999)]


@pytest.mark.parametrize(
    ("line", "left"),
    [
        (b"* VANISHED 405\r\n", 9),
        (b"* VANISHED 1:3,7,9:8\r\n", 4),
        (b"* VANISHED (EARLIER) 1:3\r\n", 10),  # not of what was counted
        (b"* VANISHED 1:4294967295\r\n", 10),  # more than there are
        (b"* 4 EXPUNGE\r\n", 9),
        (b"* 7 EXISTS\r\n", 7),
    ],
)
def test_messages_are_counted_on(line: bytes, left: int):
    assert count_after(line, 10) == left
