"""The address of Redis, and the number of partitions; no connection is made here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["standalone", "sentinel", "cluster"]
Node = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis. It may hold passwords: never print it."""

    url: str  # redis:// or rediss://; behind Sentinel only its user, password, TLS and database number count
    partitions: int = 1
    mode: Mode = "standalone"
    nodes: tuple[Node, ...] = ()  # the sentinels, or some nodes of the cluster
    master: str = ""  # as the sentinels call it
    sentinel_password: str | None = None


def parse_node(text: str) -> Node:
    """Parse `host:port`; raise ValueError for anything else."""
    address = urlsplit(f"//{text}")
    if not address.hostname or not address.port or address.path:
        message = f"{text!r} is no host:port"
        raise ValueError(message)
    return address.hostname, address.port
