"""The stream on fakeredis: its Lua scripts run in milliseconds and need no server; integration tests use a real one."""

from __future__ import annotations

from collections.abc import Callable

import fakeredis
import pytest

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import RedisConnectionError
from email_ingestion.records import Cursor
from email_ingestion.stream import GROUP, Appender, Consumer, Keys, RedisLink
from tests.servers.links import message

LEASE = 60.0


@pytest.fixture(params=[1, 3], ids=["one partition", "three partitions"])
def redis_link(request: pytest.FixtureRequest) -> RedisLink:
    client = fakeredis.FakeRedis(server=fakeredis.FakeServer(version=(7,)))
    breaker = Breaker("redis", BreakerPolicy(fail_max=1000), (RedisConnectionError,), lambda event: None)
    return RedisLink(client, Keys(), breaker, request.param)


@pytest.fixture
def appender(redis_link: RedisLink) -> Appender:
    made = Appender(redis_link)
    made.restart_cursor("default", "INBOX", Cursor(1, 0))
    return made


@pytest.fixture
def append(appender: Appender) -> Callable[..., None]:
    """Append messages with these UIDs to the account's stream; keywords are those of the messages."""

    def append(*uids: int, after: int = 0) -> tuple[int, Cursor]:
        return appender.append("default", "INBOX", Cursor(1, after), uids[-1], [message(uid) for uid in uids])

    return append


@pytest.fixture
def consumer(redis_link: RedisLink) -> Consumer:
    made = Consumer(redis_link, "here-worker-1", LEASE)
    made.ensure_group()
    return made


@pytest.fixture
def other(redis_link: RedisLink) -> Consumer:
    return Consumer(redis_link, "there-worker-1", LEASE)


@pytest.fixture
def age(redis_link: RedisLink) -> Callable[[float], None]:
    """Let all pending entries be idle for so many seconds, without waiting."""

    def age(seconds: float) -> None:
        client = redis_link.client
        for keys in redis_link.partitions:
            for entry in (
                client.xpending_range(keys.stream, GROUP, "-", "+", 1000) if client.exists(keys.stream) else ()
            ):
                client.execute_command(
                    *("XCLAIM", keys.stream, GROUP, entry["consumer"], 0, entry["message_id"]),
                    *("IDLE", int(seconds * 1000), "RETRYCOUNT", entry["times_delivered"], "JUSTID"),
                    parse_justid=True,
                )

    return age
