"""Leases, download quota, lockout and quarantine of an account, and the overrides of operators."""

from __future__ import annotations

import time
from itertools import pairwise

from email_ingestion.overrides import Override
from email_ingestion.records import Cursor
from email_ingestion.stream import (
    Appender,
    DownloadQuota,
    Leases,
    Lockout,
    Miscounts,
    Quarantine,
    RedisLink,
    SharedOverrides,
    Suspects,
    quarantined_mailboxes,
)

HOUR = 3600.0
LISTED = OSError("the server lists it and does not send it")


class Clock:
    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


def test_a_lease_has_one_owner_and_the_next_life_of_a_seat_takes_it(redis_link: RedisLink):
    here, there = Leases(redis_link, "here", "1"), Leases(redis_link, "there", "1")
    assert here.renew(["a", "b"]) == {}
    assert there.renew(["a", "b", "c"]) == {"a": "here 1", "b": "here 1"}
    here.release(["a"])
    assert there.renew(["a", "b"]) == {"b": "here 1"}
    assert Leases(redis_link, "here", "2").renew(["a", "b"]) == {"a": "there 1"}
    assert here.renew(["b"]) == {}  # the same seat again


def test_a_quota_is_used_up_within_a_day_and_free_after_it(redis_link: RedisLink):
    clock = Clock()
    quota = DownloadQuota(redis_link, "default", clock)
    assert quota.reserve(600, 1000).granted
    assert quota.reserve(600, 1000).granted  # one request may go beyond the limit
    assert (quota.reserve(1, 1000).granted, quota.reserve(1, 1000).today) == (False, 1200)
    assert quota.adjust(-1000).today == 200
    assert DownloadQuota(redis_link, "other", clock).reserve(1, 1000).today == 1
    clock.now += 26 * HOUR
    assert quota.reserve(1, 1000).today == 1


def test_a_lockout_doubles_until_it_is_a_day(redis_link: RedisLink):
    clock = Clock()
    lockout = Lockout(redis_link, "default", clock)
    assert lockout.remaining() == 0
    assert lockout.start(900) == lockout.start(900) == lockout.remaining() == 900
    clock.now += 901
    assert lockout.remaining() == 0
    assert lockout.start(900) == 1800


def test_a_refused_message_is_due_later_each_time(redis_link: RedisLink):
    clock = Clock()
    quarantine = Quarantine(redis_link, "default", "INBOX", 1, clock)
    assert {uid: held.tries for uid, held in quarantine.add({7: LISTED, 5: LISTED}).items()} == {7: 1, 5: 1}
    assert [message.uid for message in quarantine.messages()] == [5, 7]
    assert quarantine.due() == []
    clock.now += HOUR
    assert [message.uid for message in quarantine.due()] == [5, 7]
    assert quarantine.add({7: LISTED})[7].tries == 2
    quarantine.remove(5)
    assert [(message.uid, message.tries) for message in quarantine.messages()] == [(7, 2)]
    assert Quarantine(redis_link, "default", "INBOX", 2, clock).messages() == []


def test_an_accepted_message_is_due_no_more_until_it_is_asked_for_again(redis_link: RedisLink):
    clock = Clock()
    quarantine = Quarantine(redis_link, "default", "INBOX", 1, clock)
    quarantine.add({7: LISTED})
    assert quarantine.accept(8, "nobody needs it", "ada") is None
    quarantine.accept(7, "nobody needs it", "ada")
    clock.now += 24 * HOUR
    (held,) = quarantine.messages()
    assert held.accepted
    assert (held.accepted.by, held.accepted.reason, held.reason) == ("ada", "nobody needs it", str(LISTED))
    assert quarantine.due() == []
    assert [message.uid for message in quarantine.retry([7, 8])] == [7]
    assert [message.uid for message in quarantine.due()] == [7]


def test_messages_that_end_the_conversation_are_not_tried_close_together(redis_link: RedisLink):
    clock = Clock()
    quarantine = Quarantine(redis_link, "default", "INBOX", 1, clock)
    for uid in range(1, 6):
        quarantine.add({uid: LISTED}, breaks=True)
    due = sorted(message.due for message in quarantine.messages())
    assert due[0] == clock.now + 5  # perhaps it was the connection alone
    assert all(later - earlier >= 20 for earlier, later in pairwise(due))
    assert quarantine.add({1: LISTED}, breaks=True)[1].due >= clock.now + 60
    for _ in range(10):
        quarantine.add({2: LISTED}, breaks=True)
    assert quarantine.add({9: LISTED}, breaks=True)[9].due < clock.now + 200  # not behind one that is tried in an hour
    many = quarantine.add(dict.fromkeys(range(100, 200), LISTED))
    assert all(later - earlier >= 3 for earlier, later in pairwise(sorted(each.due for each in many.values())))
    assert all(later - earlier >= 20 for earlier, later in pairwise(due))


def test_what_is_not_proven_to_be_at_fault_is_tried_when_the_server_sends_others(redis_link: RedisLink):
    clock = Clock()
    quarantine = Quarantine(redis_link, "default", "INBOX", 1, clock)
    for _ in range(20):
        quarantine.add({7: LISTED}, proven=False)
        quarantine.add({8: LISTED}, proven=True)
    assert quarantine.due() == []
    assert [message.uid for message in quarantine.due(server_works=True)] == [7]
    clock.now += 61
    assert [message.uid for message in quarantine.due()] == [7]


def test_a_message_that_an_earlier_release_quarantined_is_read(redis_link: RedisLink):
    clock = Clock()
    key = redis_link.keys_for("default").quarantine("default", "INBOX")
    redis_link.client.hset(key, "1/7", '{"tries": 3, "due": 100.0}')
    quarantine = Quarantine(redis_link, "default", "INBOX", 1, clock)
    assert [(message.uid, message.tries, message.accepted) for message in quarantine.due()] == [(7, 3, None)]


def test_the_mailboxes_of_an_account_with_a_quarantine_are_found_by_name(redis_link: RedisLink):
    for account, mailbox in (("a", "INBOX"), ("a", "one/two [3]*"), ("ab", "INBOX")):
        Appender(redis_link).restart_cursor(account, mailbox, Cursor(5, 10))
        Quarantine(redis_link, account, mailbox, 5).add({7: LISTED})
    Quarantine(redis_link, "a", "no cursor", 5).add({7: LISTED})
    found = {
        mailbox: [each.uid for each in held.messages()] for mailbox, held in quarantined_mailboxes(redis_link, "a")
    }
    assert found == {"INBOX": [7], "one/two [3]*": [7]}


def test_ends_of_conversations_are_counted_by_message_and_step(redis_link: RedisLink):
    suspects = Suspects(redis_link, "default", "INBOX", 1)
    suspects.add([5, 7], "body")
    suspects.add([7], "body")
    suspects.add([7], "summary")
    assert suspects.deaths() == {"summary": {7: 1}, "body": {5: 1, 7: 2}}
    suspects.clear([7], "body")
    suspects.clear([], "body")
    assert Suspects(redis_link, "default", "INBOX", 1).deaths() == {"summary": {7: 1}, "body": {5: 1}}
    assert Suspects(redis_link, "default", "INBOX", 2).deaths() == {"summary": {}, "body": {}}


def test_five_miscounts_in_a_row_are_expected_for_a_day(redis_link: RedisLink):
    clock = Clock()
    miscounts = Miscounts(redis_link, "default", clock)
    for _ in range(4):
        miscounts.add()
    miscounts.end_row()
    for _ in range(5):
        assert not miscounts.expected()
        miscounts.add()
    assert miscounts.expected()
    clock.now += 24 * HOUR + 1
    assert not miscounts.expected()


def test_an_override_holds_for_all_processes_until_it_is_cleared(redis_link: RedisLink):
    overrides = SharedOverrides(redis_link)
    overrides.set("pause:worker", Override("paused", 60.0, "ada"))
    held = SharedOverrides(redis_link).read()["pause:worker"]
    assert (held.value, held.by) == ("paused", "ada")
    assert 0 < held.seconds <= 60
    overrides.clear("pause:worker")
    assert overrides.read() == {}
