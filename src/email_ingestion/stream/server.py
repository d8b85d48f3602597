"""What the server says of itself: its version, what it keeps, and its clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from email_ingestion.stream.connection import Link

WRITTEN_SECONDS = 5


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What an operator must know of a Redis before trusting mail to it."""

    version: str
    dbsize: int  # keys of the database, whoever's
    append_only: bool
    append_failed: bool  # it could not write its append-only file lately
    policy: str  # maxmemory-policy
    memory_used: int  # bytes
    memory_max: int  # bytes, 0 = unlimited
    time: float  # Unix seconds, by its clock


def write_once(link: Link) -> None:
    """Return when Redis took a new key, which is gone again; raises RedisConnectionError, also when it is full."""

    def write() -> None:
        key = link.keys.name("doctor")
        link.client.set(key, "", ex=WRITTEN_SECONDS)
        link.client.delete(key)

    link.beside(write)


def server_facts(link: Link) -> ServerFacts:
    """Ask the server; raises like `Link.run`."""

    def ask() -> ServerFacts:
        pipe = link.client.pipeline(transaction=False)
        for section in ("server", "persistence", "memory"):
            pipe.info(section)
        pipe.dbsize()
        pipe.time()
        server, persistence, memory, dbsize, (seconds, microseconds) = pipe.execute()
        valkey: Any = server.get("valkey_version")
        return ServerFacts(
            version=f"valkey {valkey}" if valkey else str(server["redis_version"]),
            dbsize=int(dbsize),
            append_only=bool(persistence["aof_enabled"]),
            append_failed=persistence.get("aof_last_write_status") == "err",
            policy=str(memory["maxmemory_policy"]),
            memory_used=int(memory["used_memory"]),
            memory_max=int(memory["maxmemory"]),
            time=seconds + microseconds / 1e6,
        )

    return link.run(ask)
