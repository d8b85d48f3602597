"""Leases on a real Redis: one process reads an account, the others are refused by the very script that appends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from email_ingestion.errors import LeaseLost, RedisConnectionError
from email_ingestion.producer.lease_renewer import LeaseRenewer
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender, Keys, Leases
from email_ingestion.stream.clients import CONNECTIONS
from email_ingestion.stream.leases import LEASE_SECONDS
from tests.servers.links import link, message
from tests.servers.processes import until
from tests.servers.redis import RedisServer

KEYS = Keys()


def _leases(server: RedisServer, seat: str, term: str = "1") -> Leases:
    return Leases(link(server.url), seat, term)


def _lapse(server: RedisServer, account: str = "default") -> None:
    """The holder has not been heard of for the life of its lease."""
    with server.client() as client:
        client.delete(KEYS.lease(account))


def test_one_process_has_an_account_until_it_leaves_or_its_lease_lapses(redis_server: RedisServer):
    here, there = _leases(redis_server, "here"), _leases(redis_server, "there")
    assert here.renew(["a", "b"]) == {}
    assert there.renew(["a", "b", "c"]) == {"a": here.owner, "b": here.owner}
    here.release(["a", "c"])
    assert there.renew(["a", "b", "c"]) == {"b": here.owner}
    _lapse(redis_server, "b")
    assert there.renew(["a", "b", "c"]) == {}
    assert here.renew(["a"]) == {"a": there.owner}


def test_an_account_that_is_read_no_more_is_free_at_once(redis_server: RedisServer):
    here, there = _leases(redis_server, "here"), _leases(redis_server, "there")
    renewer = LeaseRenewer(here, ["a", "b"], lambda _: None)
    renewer.start()
    try:
        assert renewer.owns("a", 60.0)
        assert renewer.owns("b", 60.0)
        renewer.set_accounts(["b", "c"])
        assert not renewer.owns("a")
        assert renewer.owns("c", 60.0)
        assert renewer.owns("b")
        until(lambda: "a" not in there.renew(["a", "b"]), "the other process gets it")
        assert set(there.renew(["b", "c"])) == {"b", "c"}
    finally:
        renewer.close()


def test_a_lease_lapses_by_itself_and_every_hold_prolongs_it(redis_server: RedisServer):
    here = _leases(redis_server, "here")
    here.renew(["a"])
    with redis_server.client() as client:
        assert 0 < client.pttl(KEYS.lease("a")) <= LEASE_SECONDS * 1000
        client.pexpire(KEYS.lease("a"), 500)
        here.renew(["a"])
        assert client.pttl(KEYS.lease("a")) > 500


def test_the_next_life_of_a_seat_takes_over_at_once_and_the_last_one_is_refused(redis_server: RedisServer):
    before, after = _leases(redis_server, "here", "1"), _leases(redis_server, "here", "2")
    assert before.renew(["a"]) == {}
    assert after.renew(["a"]) == {}
    with pytest.raises(LeaseLost):
        Appender(link(redis_server.url), before.owner).restart_cursor("a", "INBOX", Cursor(1, 0))


def test_a_seat_whose_name_begins_like_another_is_another(redis_server: RedisServer):
    assert _leases(redis_server, "here-2").renew(["a"]) == {}
    assert _leases(redis_server, "here").renew(["a"]) == {"a": "here-2 1"}


def test_who_lost_the_lease_appends_nothing_and_moves_no_cursor(redis_server: RedisServer):
    here, there = _leases(redis_server, "here"), _leases(redis_server, "there")
    mine, theirs = (Appender(link(redis_server.url), each.owner) for each in (here, there))
    here.renew(["default"])
    cursor = mine.restart_cursor("default", "INBOX", Cursor(1, 0))
    assert mine.append("default", "INBOX", cursor, 1, [message(1)])[0] == 1
    _lapse(redis_server)
    there.renew(["default"])
    assert theirs.append("default", "INBOX", Cursor(1, 1), 2, [message(2)])[0] == 1
    with pytest.raises(LeaseLost, match="there has it"):
        mine.append("default", "INBOX", Cursor(1, 1), 3, [message(2), message(3)])
    with pytest.raises(LeaseLost):
        mine.restart_cursor("default", "INBOX", Cursor(9, 0))
    assert theirs.cursor("default", "INBOX") == Cursor(1, 2)
    assert theirs.backlog().depth == 2


def test_a_lapsed_lease_that_nobody_took_is_refused_too_until_it_is_taken_again(redis_server: RedisServer):
    here = _leases(redis_server, "here")
    appender = Appender(link(redis_server.url), here.owner)
    here.renew(["default"])
    cursor = appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    _lapse(redis_server)
    with pytest.raises(LeaseLost, match="nobody has it"):
        appender.append("default", "INBOX", cursor, 1, [message(1)])
    here.renew(["default"])
    assert appender.append("default", "INBOX", cursor, 1, [message(1)])[0] == 1


def test_a_full_redis_still_gives_and_keeps_leases(redis_server: RedisServer):
    here, there = _leases(redis_server, "here"), _leases(redis_server, "there")
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            assert here.renew(["a", "b"]) == {}
            assert here.renew(["a", "b"]) == {}
            assert there.renew(["a", "b", "c"]) == {"a": here.owner, "b": here.owner}
        finally:
            client.config_set("maxmemory", 0)


def test_leases_are_taken_again_as_soon_as_redis_is_back(own_redis: RedisServer):
    here = _leases(own_redis, "here")
    here.renew(["a"])
    own_redis.kill()
    with pytest.raises(RedisConnectionError):
        here.renew(["a"])
    own_redis.forget()
    own_redis.start()
    assert here.renew(["a"]) == {}


def test_two_that_fight_for_an_account_never_both_append(redis_server: RedisServer):
    sides = [_leases(redis_server, name) for name in ("here", "there")]
    appenders = [Appender(link(redis_server.url), side.owner) for side in sides]
    sides[0].renew(["default"])
    appenders[0].restart_cursor("default", "INBOX", Cursor(1, 0))
    uid = refused = 0
    for step in range(300):
        side, appender = sides[step % 7 % 2], appenders[step % 5 % 2]
        if step % 11 == 0:
            _lapse(redis_server)
            side.renew(["default"])
        try:
            added, cursor = appender.append("default", "INBOX", Cursor(1, uid), uid + 1, [message(uid + 1)])
        except LeaseLost:
            refused += 1
        else:
            assert (added, cursor.uid) == (1, uid + 1)
            uid += 1
    assert min(refused, uid) > 50
    assert appenders[0].backlog().depth == uid


def test_hundreds_of_threads_share_a_few_connections(own_redis: RedisServer):
    shared = link(own_redis.url)
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda number: Leases(shared, "here", "1").renew([f"a{number}"]), range(600)))
        clients = shared.client.client_list()
    assert found == [{}] * 600
    assert sum(each["name"] == "test" for each in clients) <= CONNECTIONS
