"""The Redis servers themselves: version, persistence, memory and clock of each, and two write probes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
from redis.exceptions import MovedError, RedisError

from email_ingestion.settings import RedisAddress
from email_ingestion.stream.clients import CONNECT_SECONDS, login_options, no_retry
from email_ingestion.stream.keys import Keys
from email_ingestion.stream.redis_link import RedisLink

PROBE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The facts that an operator must know of a Redis before trusting mail to it."""

    address: str  # host and port; empty ones behind Sentinel, which names them anew each time
    version: str  # empty where it does not tell
    dbsize: int  # keys of the database, of all programs
    append_only: bool | None  # this and the following: None where a managed server does not tell
    append_failed: bool  # it could not write its append-only file lately
    policy: str | None  # maxmemory-policy
    memory_used: int | None  # bytes
    memory_max: int | None  # bytes, 0 = unlimited
    time: float  # Unix seconds, by its clock


def check_writable(link: RedisLink) -> None:
    """Return when Redis takes a write in every partition, past the breaker; raises RedisConnectionError otherwise.

    The write removes nothing, so that a Redis over its memory limit, which must be drained, counts as working.
    """
    for keys in link.partitions:
        link.call_unguarded(partial(link.client.hdel, keys.control, ""))


def write_new_key(link: RedisLink) -> None:
    """Return when each partition took a new key, deleted again; raises RedisConnectionError, also when one is full."""

    def write() -> None:
        for keys in link.partitions:
            key = keys.name("doctor")
            link.client.set(key, "", ex=PROBE_SECONDS)
            link.client.delete(key)

    link.call_unguarded(write)


def read_server_info(link: RedisLink) -> list[ServerInfo]:
    """Return the facts of each server that takes writes; raises like `RedisLink.call`."""
    return link.call(lambda: [_server_info(server) for server in link.masters()])


def serves_without_password(address: RedisAddress, host: str, port: int) -> bool:
    """Return whether a server tells a caller without a password about our mail; False where nobody answers.

    TLS is that of `address`.
    """
    _, tls = login_options(address)
    options: dict[str, Any] = {"socket_timeout": CONNECT_SECONDS, "socket_connect_timeout": CONNECT_SECONDS, **tls}
    stranger = redis.Redis(host=host, port=port, retry=no_retry(), **options)
    try:
        stranger.xlen(Keys().stream)
    except MovedError:
        return True
    except (RedisError, OSError):
        return False
    finally:
        stranger.close()
    return True


def _server_info(server: redis.Redis) -> ServerInfo:
    pipe = server.pipeline(transaction=False)
    for section in ("server", "persistence", "memory"):
        pipe.info(section)
    pipe.dbsize()
    pipe.time()
    *sections, dbsize, now = pipe.execute(raise_on_error=False)
    if isinstance(now, Exception):
        raise now
    info, persistence, memory = (each if isinstance(each, dict) else {} for each in sections)
    seconds, microseconds = now
    valkey: Any = info.get("valkey_version")
    connection = server.get_connection_kwargs()
    return ServerInfo(
        address=f"{connection.get('host', '')}:{connection.get('port', '')}",
        version=f"valkey {valkey}" if valkey else str(info.get("redis_version", "")),
        dbsize=0 if isinstance(dbsize, Exception) else int(dbsize),
        append_only=bool(persistence["aof_enabled"]) if "aof_enabled" in persistence else None,
        append_failed=persistence.get("aof_last_write_status") == "err",
        policy=str(memory["maxmemory_policy"]) if "maxmemory_policy" in memory else None,
        memory_used=int(memory["used_memory"]) if "used_memory" in memory else None,
        memory_max=int(memory["maxmemory"]) if "maxmemory" in memory else None,
        time=seconds + microseconds / 1e6,
    )
