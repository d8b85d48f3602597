"""Where Redis is and how mail is spread over it, as the settings say; contacts nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["standalone", "sentinel", "cluster"]
Node = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """It may hold passwords: never print it."""

    url: str  # redis:// or rediss://; behind Sentinel only its user, password, TLS and database number count
    partitions: int = 1
    mode: Mode = "standalone"
    nodes: tuple[Node, ...] = ()  # the sentinels, or some nodes of the cluster
    master: str = ""  # as the sentinels call it
    sentinel_password: str | None = None
