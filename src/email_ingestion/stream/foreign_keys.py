"""Find keys of ours that hold another type than we write there, and move them out of the way.

Somebody else wrote them: every command on such a key fails, a script in its middle too. Moved aside, nothing of it is
lost, and the key counts as missing: a producer lists its mailbox anew, a counter begins at 0, a queue is empty and
`reconcile` brings back what was in it. How many partitions there are is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from email_ingestion.stream.keys import Keys

MOVED = "foreign:"  # before the name of a key that was moved; what was moved from there before is replaced
_TYPES = {
    **dict.fromkeys(("stream", "dlq", "out"), "stream"),
    **dict.fromkeys(
        ("volume", "replayed", "ledger", "ledger:losses", "queue:losses", "partitions", "doctor"), "string"
    ),
    **dict.fromkeys(("processes", "control", "scrub", "proofs"), "hash"),
    "priority": "zset",
}
_FAMILIES = {  # what the beginning of a name says
    **dict.fromkeys(("cursor:", "budget:", "lockout:", "quarantine:", "suspects:", "miscounts:"), "hash"),
    **dict.fromkeys(("lease:", "alive:", "proving:"), "string"),
    "receipts:": "list",
}


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A key of ours, of the type that somebody gave it."""

    keys: Keys
    name: str
    kind: str
    belongs: str

    def __str__(self) -> str:
        article = "an" if self.kind[:1] in "aeiou" else "a"
        return f"{self.key} is {article} {self.kind} where a {self.belongs} belongs"

    @property
    def key(self) -> str:
        """The whole key."""
        return self.keys.name(self.name)

    @property
    def moved_to(self) -> str:
        """Where it is moved."""
        return self.keys.name(MOVED + self.name)


def find_foreign_keys(node: redis.Redis, keys: Keys) -> list[ForeignKey]:
    """Return those of one partition, on whose server `node` is. Raises the errors of the client."""
    start = keys.name("")
    there = {found.decode("utf-8", "replace") for found in node.scan_iter(match=f"{start}*", count=1000)}
    names = sorted(name.removeprefix(start) for name in there)
    expected = [(name, kind) for name in names if (kind := _type_of(name))]
    pipe = node.pipeline(transaction=False)
    for name, _ in expected:
        pipe.type(keys.name(name))
    kinds = [found.decode() for found in pipe.execute()]
    return [
        ForeignKey(keys, name, kind, belongs)
        for (name, belongs), kind in zip(expected, kinds, strict=True)
        if kind not in {belongs, "none"}
    ]


def set_aside(script: Callable[..., Any], found: ForeignKey) -> bool:
    """Move a key away if it still is of a foreign type; `script` is `lua/set_aside.lua`. Returns whether it was."""
    if found.name == "partitions":
        return False
    return bool(script(keys=[found.key, found.moved_to], args=[found.belongs]))


def _type_of(name: str) -> str | None:
    return _TYPES.get(name) or next((kind for start, kind in _FAMILIES.items() if name.startswith(start)), None)
