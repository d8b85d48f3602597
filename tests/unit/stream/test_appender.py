from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from email_ingestion.errors import LeaseLost, StaleCursor
from email_ingestion.records import Cursor
from email_ingestion.stream import EMPTY_BACKLOG, Appender, Consumer, EntryScanner, Leases, RedisLink
from email_ingestion.stream.entry_scan import BEGINNING
from tests.servers.links import message


def uids(link: RedisLink) -> list[int]:
    pages = EntryScanner(link, link.keys_for("default")).stream_pages()
    return [entry.uid for page in pages for entry in page.entries]


def test_an_append_moves_the_cursor_and_a_repetition_adds_nothing(
    redis_link: RedisLink, appender: Appender, append: Callable
):
    assert append(1, 2, 3) == (3, Cursor(1, 3))
    assert append(1, 2, 3) == (0, Cursor(1, 3))
    assert append(4, after=3) == (1, Cursor(1, 4))
    assert appender.cursor("default", "INBOX") == Cursor(1, 4)
    assert uids(redis_link) == [1, 2, 3, 4]


def test_history_moves_the_other_end_downwards(redis_link: RedisLink, appender: Appender):
    cursor = Cursor(1, 9, history=9)
    appender.restart_cursor("history", "INBOX", cursor)
    older = [message(uid, account="history") for uid in (8, 7)]
    assert appender.append("history", "INBOX", cursor, 7, older, end="history") == (2, replace(cursor, history=7))
    assert appender.append("history", "INBOX", cursor, 7, older, end="history") == (0, replace(cursor, history=7))


def test_an_append_beyond_the_cursor_would_leave_a_hole_and_is_refused(redis_link: RedisLink, append: Callable):
    append(1, 2)
    with pytest.raises(StaleCursor):
        append(5, after=4)
    assert uids(redis_link) == [1, 2]


def test_an_append_of_another_uidvalidity_is_refused(redis_link: RedisLink, appender: Appender):
    with pytest.raises(StaleCursor):
        appender.append("default", "INBOX", Cursor(2, 0), 1, [message(1, uidvalidity=2)])
    assert uids(redis_link) == []


def test_a_cursor_is_restarted_only_where_there_is_none_or_one_of_another_uidvalidity(appender: Appender):
    assert appender.cursor("default", "Archive") is None
    assert appender.restart_cursor("default", "Archive", Cursor(1, 5)) == Cursor(1, 5)
    assert appender.restart_cursor("default", "Archive", Cursor(1, 0)) == Cursor(1, 5)
    assert appender.restart_cursor("default", "Archive", Cursor(2, 0)) == Cursor(2, 0)


def test_without_the_lease_nothing_is_written(redis_link: RedisLink, append: Callable):
    lost = Leases(redis_link, "here", "1")
    Leases(redis_link, "there", "1").renew(["default"])
    assert lost.renew(["default"]) == {"default": "there 1"}
    appender = Appender(redis_link, lost.owner)
    with pytest.raises(LeaseLost, match="there has it"):
        appender.append("default", "INBOX", Cursor(1, 0), 1, [message(1)])
    with pytest.raises(LeaseLost):
        appender.append_missing([message(1)], BEGINNING)
    with pytest.raises(LeaseLost):
        appender.set_modseq("default", "INBOX", 1, 5)
    assert uids(redis_link) == []


def test_a_missing_message_is_appended_once_whoever_appends_it(
    redis_link: RedisLink, appender: Appender, append: Callable
):
    append(1, 2)
    assert appender.append_missing([message(2), message(3)], BEGINNING) == 1
    assert appender.append_missing([message(2), message(3)], BEGINNING) == 0
    assert appender.append_missing([], BEGINNING) == 0
    assert appender.cursor("default", "INBOX") == Cursor(1, 2)
    assert uids(redis_link) == [1, 2, 3]


def test_the_modseq_stands_beside_the_cursor_and_goes_with_its_uidvalidity(appender: Appender):
    appender.set_modseq("default", "INBOX", 1, 2**62 + 1)
    assert appender.modseq("default", "INBOX") == 2**62 + 1
    with pytest.raises(StaleCursor):
        appender.set_modseq("default", "INBOX", 2, 7)
    appender.restart_cursor("default", "INBOX", Cursor(2, 0))
    assert appender.modseq("default", "INBOX") is None


def test_the_backlog_is_what_is_waiting_and_in_flight(appender: Appender, append: Callable, consumer: Consumer):
    append(1, 2, 3)
    before = appender.backlog()
    assert before.depth == 3
    assert before.volume > 0
    consumer.ack(consumer.read_new(1, block=False))
    assert appender.backlog().depth == 2
    consumer.ack(consumer.read_new(10, block=False))
    assert appender.backlog() == EMPTY_BACKLOG
