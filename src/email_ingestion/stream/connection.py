"""Clients that never resend on their own, and Redis' errors as ours.

redis-py repeats a command whose answer was lost up to ten times by default: one lost reply would be two entries.
Here nothing is retried below the scripts, which are written to be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, TypeVar

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import ConfigurationError, LeaseLost, RedisConnectionError, StaleCursor
from email_ingestion.stream.keys import Keys

T = TypeVar("T")

# How long a blocking read waits in Redis, and how much longer its socket does: a read must never look like a hang.
BLOCK_SECONDS = 1.0
ANSWER_SECONDS = 5.0
CONNECTIONS = 64  # of one process at a time

# What Redis says when it is there but cannot serve; by the first word, for most have no class in redis-py.
UNSERVING = frozenset(
    [
        *("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM"),
        *("NOREPLICAS", "OOM", "READONLY", "TRYAGAIN", "UNBLOCKED", "WRONGPASS"),
    ]
)
# For these redis-py cuts the first word off.
UNSERVING_CLASSES = (
    redis.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.NoPermissionError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)


def connect(address: str, name: str, health_check: int = 30) -> redis.Redis:
    """A client for `address` (a redis:// URL) that shows up in CLIENT LIST as `name`; nothing is contacted yet.

    It sends a PING first of all and after `health_check` idle seconds, with 0 never.

    Raises ConfigurationError for an address that is none.
    """
    try:
        pool = redis.BlockingConnectionPool.from_url(
            address,
            # A thread waits for a connection instead of failing: two hundred watchers are no trouble with Redis.
            max_connections=CONNECTIONS,
            timeout=BLOCK_SECONDS + ANSWER_SECONDS,
            client_name=name,
            decode_responses=False,
            health_check_interval=health_check,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=ANSWER_SECONDS,
            socket_keepalive=True,
            socket_timeout=BLOCK_SECONDS + ANSWER_SECONDS,
        )
    except ValueError as error:
        raise ConfigurationError(f"REDIS_URL is no Redis address: {error}") from error
    return redis.Redis.from_pool(pool)


def reach(address: str) -> None:
    """Return when Redis answers at `address`; raises RedisConnectionError or ConfigurationError."""
    with _translated():
        connect(address, "email-ingestion").ping()


class Link:
    """A client, the keys, and the breaker through which every call goes."""

    def __init__(self, client: redis.Redis, keys: Keys, breaker: Breaker) -> None:
        self.client = client
        self.keys = keys
        self.breaker = breaker

    def script(self, name: str) -> Script:
        """The script `lua/<name>.lua`, sent by its hash and loaded again where Redis forgot it."""
        return self.client.register_script((files(__package__) / "lua" / f"{name}.lua").read_bytes())

    def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, a piece of conversation with Redis.

        Raises RedisConnectionError when Redis is away or unserving, CircuitBreakerError when it was lately, and
        StaleCursor when a script says so.
        """

        def speak() -> T:
            with _translated():
                return call()

        return self.breaker.run(speak)

    def beside(self, call: Callable[[], T]) -> T:
        """The result of `call`, past the breaker: it neither counts nor is held back. Raises RedisConnectionError."""
        with _translated():
            return call()


def open_link(address: str, name: str) -> Link:
    """A link for a command that ends at its first error: its breaker never opens, and nobody watches it.

    Without PING: a Redis that refuses writes (MISCONF) refuses that too, and can still be looked at and backed up.
    """
    breaker = Breaker("redis", BreakerPolicy(fail_max=sys.maxsize), (RedisConnectionError,), lambda _: None)
    return Link(connect(address, name, health_check=0), Keys(), breaker)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ResponseError as error:
        word = str(error).split(" ", 1)[0]
        if word == "STALECURSOR":
            raise StaleCursor(str(error)) from error
        if word == "FENCED":
            holder = str(error).removeprefix("FENCED").strip().partition(" ")[0] or "nobody"
            raise LeaseLost(f"the account's lease is no longer this process's, {holder} has it") from error
        if word in UNSERVING or isinstance(error, UNSERVING_CLASSES) or "used memory > 'maxmemory'" in str(error):
            raise RedisConnectionError(f"Redis does not serve: {error}") from error
        raise
    except RedisError as error:
        raise RedisConnectionError(f"Redis does not answer: {_said(error)}") from error


def _said(error: RedisError) -> str:
    """Redis' words, except where they are about the protocol and not about the matter."""
    if "HELLO must be called" in str(error):
        return "Authentication required: set REDIS_PASSWORD"
    return str(error) or type(error).__name__


def missing_group(error: ResponseError) -> bool:
    """Whether the consumer group, or the stream with it, was deleted by somebody."""
    return str(error).startswith(("NOGROUP", "UNBLOCKED the stream key"))


def text(value: Any) -> str:
    """Redis' bytes as text; whatever is not UTF-8 is shown, not refused."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
