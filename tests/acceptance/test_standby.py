"""Two producers on one account: one reads, the other stands by; whatever happens to the first, nothing comes twice."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.stream import Keys
from gmail_sandbox import RunningSandbox
from tests.servers.processes import Place, Running, gmail_settings, place, until
from tests.servers.redis import RedisServer

TAKEOVER_SECONDS = 15.0


def letter(number: int) -> bytes:
    return b"Subject: letter %d\r\nMessage-ID: <%d@example.org>\r\n\r\n%s\r\n" % (number, number, b"x" * 20_000)


@pytest.fixture
def there(tmp_path: Path, own_redis: RedisServer, sandbox: RunningSandbox) -> Iterator[Place]:
    """Another host, as far as the producers can tell; producers that share accounts share the database too."""
    shared = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/here/data/email_ingestion.db",
        "BLOB_URL": f"file:{tmp_path}/blobs",
    }
    with place(tmp_path / "there", own_redis.url, **gmail_settings(sandbox, tmp_path / "there"), **shared) as made:
        yield made


def _watch(producer: Running) -> str | None:
    return producer.status()["accounts"][0]["watch"]


def _delivered(here: Place) -> list[str]:
    return sorted(row[1] for row in here.rows())


def _digests(sandbox: RunningSandbox) -> list[str]:
    mail = sandbox.with_account(lambda account: [account.raw(message) for message in account.messages.values()])
    return sorted(hashlib.sha256(raw).hexdigest() for raw in mail)


def _all_arrive(here: Place, sandbox: RunningSandbox) -> None:
    expected = _digests(sandbox)
    until(lambda: len(_delivered(here)) >= len(expected), "all mail in the database")
    assert _delivered(here) == expected


def _lapse(redis: RedisServer) -> None:
    """Let the holder of the lease have been silent for its whole life, without waiting for that."""
    with redis.client() as client:
        client.pexpire(Keys().lease("default"), 1)


def test_a_standby_takes_over_from_a_killed_producer_and_a_sleeper_that_wakes_is_refused(
    here: Place, there: Place, own_redis: RedisServer, sandbox: RunningSandbox
):
    worker = here.worker()
    first = here.producer()
    until(lambda: _watch(first) == "idle", "the first idles")
    second = there.producer()
    until(lambda: _watch(second) == "standby", "the second stands by")
    assert second.get("/ready")[0] == 200
    assert second.metric("email_ingestion_account_lease_held") == 0
    for number in range(60):
        sandbox.deliver(letter(number))
    until(lambda: _delivered(here), "the first delivers")
    first.kill()
    until(lambda: _watch(second) == "idle", "the second takes over", TAKEOVER_SECONDS)
    sandbox.deliver(letter(100))
    _all_arrive(here, sandbox)

    third = here.producer()
    until(lambda: _watch(third) == "standby", "the third stands by")
    second.process.send_signal(signal.SIGSTOP)
    _lapse(own_redis)
    until(lambda: _watch(third) == "idle", "the third takes over", TAKEOVER_SECONDS)
    sandbox.deliver(letter(101))
    second.process.send_signal(signal.SIGCONT)
    sandbox.deliver(letter(102))
    until(lambda: _watch(second) == "standby", "the one that slept stands by")
    _all_arrive(here, sandbox)
    assert worker.metric("email_ingestion_duplicates_total") == 0
    assert third.metric("email_ingestion_account_lease_held") == 1


@pytest.mark.soak
def test_a_producer_that_is_started_anew_reads_on_at_once_and_one_that_stops_hands_over(
    here: Place, there: Place, own_redis: RedisServer
):
    first = here.producer()
    until(lambda: _watch(first) == "idle", "the first idles")
    first.kill()
    again = here.producer()
    until(lambda: _watch(again) == "idle", "the next life reads on")
    assert '"holder"' not in again.log().split('"process_stopping"')[-1], "it did not stand by for the dead"
    second = there.producer()
    until(lambda: _watch(second) == "standby", "the second stands by")
    refused = there.run("producer.py", "--once", seconds=60)
    assert refused.returncode == 2  # a copy runs there already
    own_redis.kill()
    own_redis.start()
    until(lambda: again.get("/ready")[0] == 200, "Redis is back")
    assert again.terminate() == 0
    until(lambda: _watch(second) == "idle", "the second was handed the account")
