"""A process's conversation with Redis: the client, the keys, the breaker, the scripts, and Redis' errors as ours."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis import exceptions
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import ConfigurationError, LeaseLost, RedisConnectionError, StaleCursor
from email_ingestion.settings import RedisAddress
from email_ingestion.stream.clients import CONNECTIONS, LazyCluster, connect, current_master, fails_over
from email_ingestion.stream.keys import Keys, partition_keys, partition_of

T = TypeVar("T")

INCLUDE = re.compile(rb"^-- include (\w+)$", re.MULTILINE)  # in a script: a function of lua/shared

# What Redis says when it is there but cannot serve; by the first word, for most have no class in redis-py.
NOT_SERVING_WORDS = frozenset(
    [
        *("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM"),
        *("NOREPLICAS", "OOM", "READONLY", "TRYAGAIN", "UNBLOCKED", "WRONGPASS"),
    ]
)
# For these redis-py cuts the first word off.
NOT_SERVING_ERRORS = (
    redis.OutOfMemoryError,
    exceptions.AskError,  # a slot moved while it was spoken to, past the client that follows
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.NoPermissionError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)


def check_reachable(address: RedisAddress | str) -> None:
    """Return when Redis answers at `address`; raises RedisConnectionError or ConfigurationError."""
    with _translated():
        connect(address, "email-ingestion").ping()


def server_url(address: RedisAddress) -> str:
    """The URL of the server that takes writes now; of a Cluster, of one that knows where to go on.

    Raises RedisConnectionError when no sentinel tells.
    """
    if address.mode != "sentinel":
        return address.url
    with _translated():
        host, port = current_master(address)
    url = urlsplit(address.url)
    secret, at, _ = url.netloc.rpartition("@")
    return url._replace(netloc=f"{secret}{at}{f'[{host}]' if ':' in host else host}:{port}").geturl()


class Script:
    """A Lua script, sent by its hash, and whole where Redis does not know it: a promoted node may not."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self._client = client
        self._source = _source(name)
        self.hash = sha1(self._source, usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], args: Iterable[Any] = ()) -> Any:
        """What the script returns; all keys must be of one partition."""
        words = (*keys, *args)
        try:
            return self._client.evalsha(self.hash, len(keys), *words)
        except NoScriptError:
            return self._client.eval(self._source, len(keys), *words)  # type: ignore[arg-type]


def _source(name: str) -> bytes:
    """The text of a script, behind what it says it includes: a script on the server can call no other."""
    folder = files(__package__) / "lua"
    own = (folder / f"{name}.lua").read_bytes()
    included = [folder / "shared" / f"{each.decode()}.lua" for each in INCLUDE.findall(own)]
    return b"".join([*(each.read_bytes() for each in included), own])


class RedisLink:
    """A client, the keys, and the breaker through which every call goes.

    `keys` are those of partition 0, where everything is that belongs to no account; `partitions` all of them.
    """

    def __init__(self, client: redis.Redis, keys: Keys, breaker: Breaker, partitions: int = 1) -> None:
        self.client = client
        self.keys = keys
        self.partitions = partition_keys(partitions) if partitions > 1 else (keys,)
        self.breaker = breaker
        # Of PendingScript, which holds one connection while its thread may want another.
        self.pending_slots = threading.BoundedSemaphore(CONNECTIONS // 4)
        self.partitions_verified = False  # with Redis, on the number of partitions
        self._fix_partitions = self.script("agree")

    @property
    def fails_over(self) -> bool:
        """Whether another server takes the place of one that is gone."""
        return fails_over(self.client)

    def script(self, name: str) -> Script:
        """The script `lua/<name>.lua`."""
        return Script(self.client, name)

    def keys_for(self, account: str) -> Keys:
        """The keys of the partition that an account's mail is in."""
        return self.partitions[partition_of(account, len(self.partitions))]

    @property
    def clustered(self) -> bool:
        """Whether each partition may be on a server of its own."""
        return isinstance(self.client, LazyCluster)

    def masters(self) -> list[redis.Redis]:
        """A client for each server that takes writes; ask them inside `run`."""
        return self.client.masters() if isinstance(self.client, LazyCluster) else [self.client]

    def node_for(self, keys: Keys) -> redis.Redis:
        """A client for the server that has a partition, for what has no key to find it by; ask it inside `run`."""
        return self.client.node_for(keys.stream) if isinstance(self.client, LazyCluster) else self.client

    def call(self, operation: Callable[[], T]) -> T:
        """The result of `call`, a piece of conversation with Redis.

        Raises RedisConnectionError when Redis is away or unserving, CircuitBreakerError when it was lately,
        StaleCursor when a script says so, and ConfigurationError when Redis holds mail in another number of partitions.
        """

        def speak() -> T:
            with _translated():
                self._verify_partitions()
                return operation()

        return self.breaker.run(speak)

    def call_unguarded(self, operation: Callable[[], T]) -> T:
        """The result of `call`, past the breaker: it neither counts nor is held back. Raises RedisConnectionError."""
        with _translated():
            return operation()

    def _verify_partitions(self) -> None:
        """Once for each link: the number of partitions is fixed by whoever comes first."""
        if self.partitions_verified:
            return
        mine = len(self.partitions)
        fixed = int(self.client.get(self.keys.partitions) or 1)
        if fixed != mine > 1:
            fixed = int(self._fix_partitions(keys=[self.keys.partitions, self.keys.stream, self.keys.dlq], args=[mine]))
        if fixed != mine:
            raise ConfigurationError(
                f"REDIS_PARTITIONS is {mine}, but this Redis holds mail in {fixed}, which cannot be changed: "
                f"set REDIS_PARTITIONS={fixed}, or name an empty Redis and refill it (docs/redis.md)"
            )
        self.partitions_verified = True


def open_link(address: RedisAddress | str, name: str) -> RedisLink:
    """A link for a command that ends at its first error: its breaker never opens, and nobody watches it."""
    breaker = Breaker("redis", BreakerPolicy(fail_max=sys.maxsize), (RedisConnectionError,), lambda _: None)
    partitions = 1 if isinstance(address, str) else address.partitions
    return RedisLink(connect(address, name), Keys(), breaker, partitions)


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
        if (
            word in NOT_SERVING_WORDS
            or isinstance(error, NOT_SERVING_ERRORS)
            or "used memory > 'maxmemory'" in str(error)
        ):
            raise RedisConnectionError(f"Redis does not serve: {error}") from error
        raise
    except (RedisError, RedisClusterException) as error:
        raise RedisConnectionError(f"Redis does not answer: {_message_of(error)}") from error


def _message_of(error: Exception) -> str:
    """Redis' words, except where they are about the protocol and not about the matter."""
    if "HELLO must be called" in str(error):
        return "Authentication required: set REDIS_PASSWORD"
    return str(error) or type(error).__name__


def is_group_missing(error: ResponseError) -> bool:
    """Whether the consumer group, or the stream with it, was deleted by somebody."""
    return str(error).startswith(("NOGROUP", "UNBLOCKED the stream key"))


def text(value: Any) -> str:
    """Redis' bytes as text; whatever is not UTF-8 is shown, not refused."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
