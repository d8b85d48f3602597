"""Clients for one Redis, one behind Sentinel, and a Cluster, none of which resends a command on its own.

redis-py repeats a command whose answer was lost up to ten times by default: one lost reply would be two entries.
Here nothing is retried below the scripts, which are written to be repeated; a cluster's redirections are followed,
for a redirected command was not executed.
"""

from __future__ import annotations

import threading
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import SSLConnection, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from email_ingestion.errors import ConfigurationError
from email_ingestion.settings import Node, RedisAddress

# How long a blocking read waits in Redis, and how much longer its socket does: a read must never look like a hang.
BLOCK_SECONDS = 1.0
ANSWER_SECONDS = 5.0
CONNECT_SECONDS = 2.0  # behind Sentinel and in a Cluster: the server may be gone, and another one the master
SENTINEL_SECONDS = 1.0  # a sentinel that does not answer is skipped; there are others
CONNECTIONS = 64  # of one process at a time
# For pools that cannot wait: a limit would only turn further calls into errors.
UNLIMITED = 10_000


def connect(address: RedisAddress | str, name: str) -> redis.Redis:
    """Return a client for `address` that CLIENT LIST shows as `name`; no server is contacted yet.

    It never sends a PING by itself: a Redis that refuses writes (MISCONF) refuses that too, and can still be read.

    Raises ConfigurationError for an invalid address.
    """
    if isinstance(address, str):
        address = RedisAddress(address)
    if address.url.startswith("unix:"):
        raise ConfigurationError("REDIS_URL names a socket of Unix, which is not supported: redis://host:6379/0")
    options = {
        "client_name": name,
        "decode_responses": False,
        "health_check_interval": 0,
        "socket_connect_timeout": ANSWER_SECONDS,
        "socket_keepalive": True,
        "socket_timeout": BLOCK_SECONDS + ANSWER_SECONDS,
    }
    try:
        return _CONNECTORS[address.mode](address, options)
    except ValueError as error:
        message = "REDIS_URL is no address like redis://user:password@host:6379/0; in a password / is %2F, @ is %40"
        raise ConfigurationError(message) from error


def _standalone_client(address: RedisAddress, options: dict[str, Any]) -> redis.Redis:
    pool = redis.BlockingConnectionPool.from_url(
        address.url,
        # A thread waits for a connection instead of failing: two hundred watchers are no trouble with Redis.
        max_connections=CONNECTIONS,
        timeout=BLOCK_SECONDS + ANSWER_SECONDS,
        retry=no_retry(),
        **options,
    )
    return redis.Redis.from_pool(pool)


def _sentinel_client(address: RedisAddress, options: dict[str, Any]) -> redis.Redis:
    options["socket_connect_timeout"] = CONNECT_SECONDS
    login, tls = login_options(address)
    pools = {"max_connections": UNLIMITED, "retry": no_retry()}
    return cast("redis.Redis", _sentinel(address).master_for(address.master, **pools, **{**options, **login, **tls}))


def current_master(address: RedisAddress) -> Node:
    """Return host and port of the master that the sentinels name; raises redis-py's errors."""
    return cast("Node", _sentinel(address).discover_master(address.master))


def _sentinel(address: RedisAddress) -> Any:
    _, tls = login_options(address)
    timeouts = {"socket_timeout": SENTINEL_SECONDS, "socket_connect_timeout": SENTINEL_SECONDS, "retry": no_retry()}
    secret = {"password": address.sentinel_password} if address.sentinel_password else {}
    return Sentinel(list(address.nodes), sentinel_kwargs={**timeouts, **secret, **tls})  # type: ignore[no-untyped-call]


def login_options(address: RedisAddress) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return user, password and database of the URL, and its TLS options."""
    options: dict[str, Any] = parse_url(address.url)  # type: ignore[no-untyped-call]
    for place in ("host", "port"):
        options.pop(place, None)
    tls = {"ssl": True} if options.pop("connection_class", None) is SSLConnection else {}
    tls |= {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    return options, tls


def _cluster_client(address: RedisAddress, options: dict[str, Any]) -> redis.Redis:
    options["socket_connect_timeout"] = CONNECT_SECONDS

    def make() -> RedisCluster:
        return RedisCluster(
            url=address.url,
            startup_nodes=[ClusterNode(*node) for node in address.nodes],  # type: ignore[no-untyped-call]
            require_full_coverage=False,  # the partitions that are reachable are served
            max_connections=UNLIMITED,
            retry=no_retry(),
            **options,
        )

    parse_url(address.url)  # type: ignore[no-untyped-call]
    return cast("redis.Redis", LazyCluster(make))


_CONNECTORS = {"standalone": _standalone_client, "sentinel": _sentinel_client, "cluster": _cluster_client}


def no_retry() -> Retry:
    """Return the policy of a single attempt."""
    return Retry(NoBackoff(), 0)


def fails_over(client: redis.Redis) -> bool:
    """Whether another server takes the place of one that is gone."""
    return isinstance(client, LazyCluster) or isinstance(client.connection_pool, SentinelConnectionPool)


class LazyCluster:
    """A RedisCluster created at its first use: creating one reads the slots, and a process may start before it."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: RedisCluster | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster(), name)

    def close(self) -> None:
        """Close its connections, if there are any."""
        if self._made:
            self._made.close()

    def masters(self) -> list[redis.Redis]:
        """Return a client for each node that has slots."""
        cluster: Any = self._cluster()
        return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]

    def node_for(self, key: str) -> redis.Redis:
        """Return a client for the node that has the key."""
        cluster: Any = self._cluster()
        return cast("redis.Redis", cluster.get_redis_connection(cluster.get_node_from_key(key)))

    def _cluster(self) -> RedisCluster:
        with self._lock:
            self._made = self._made or self._make()
            return self._made
