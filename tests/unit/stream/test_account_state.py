"""Leases, download quota, lockout and quarantine of an account, and the overrides of operators."""

from __future__ import annotations

import time

from email_ingestion.overrides import Override
from email_ingestion.stream import DownloadQuota, Leases, Lockout, Quarantine, RedisLink, SharedOverrides

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


def test_an_override_holds_for_all_processes_until_it_is_cleared(redis_link: RedisLink):
    overrides = SharedOverrides(redis_link)
    overrides.set("pause:worker", Override("paused", 60.0, "ada"))
    held = SharedOverrides(redis_link).read()["pause:worker"]
    assert (held.value, held.by) == ("paused", "ada")
    assert 0 < held.seconds <= 60
    overrides.clear("pause:worker")
    assert overrides.read() == {}
