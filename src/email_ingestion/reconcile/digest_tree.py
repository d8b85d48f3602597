"""The digest tree of what a receiver holds: two of them are compared from the root, and only where they differ.

    root ── account ── month 2026-01 ── day 31 ── first hexadecimal digit of the bucket ── second ── … ── entries

The digest of a node is the exclusive or of the SHA-256 of its entries, "<email_id> <sha256>" each: in whatever order
they come, and so that one entry can be added or removed without the others. `docs/completeness.md` has it for those
who write receivers. It finds what accidents did, and no forger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

from email_ingestion.ledger.owed_mail import OwedMessage

Path = tuple[str, ...]  # the name of a node: account, month, day, hexadecimal digits of a bucket

DAY_DEPTH = 3  # parts of the name of a day's node; below it are buckets


@dataclass(slots=True)
class NodeDigest:
    """How many entries are below a node, and their exclusive or."""

    count: int = 0
    value: int = 0

    def add(self, other: NodeDigest) -> None:
        """Add the entries of another node."""
        self.count += other.count
        self.value ^= other.value

    @property
    def hexadecimal(self) -> str:
        """The digest as it travels."""
        return f"{self.value:064x}"


def digest_of(entries: Iterable[tuple[str, str]]) -> NodeDigest:
    """Return the digest of entries, each `email_id` and SHA-256."""
    found = NodeDigest()
    for email_id, sha256 in entries:
        found.count += 1
        found.value ^= _number(f"{email_id} {sha256}")
    return found


def bucket_of(email_id: str) -> str:
    """Return the 64 hexadecimal digits by which a day is divided further."""
    return hashlib.sha256(email_id.encode(errors="surrogatepass")).hexdigest()


def path_of(account: str, internaldate: datetime) -> tuple[str, str, str]:
    """Return account, month and day of a message: the name of the node of its day, INTERNALDATE in UTC."""
    day = internaldate.astimezone(UTC)
    return account, f"{day.year:04}-{day.month:02}", f"{day.day:02}"


def day_of(path: Path) -> datetime | None:
    """Return the beginning of the day that a name stands for, or None: a receiver may name what is no day."""
    try:
        day = date.fromisoformat("-".join(path[1:DAY_DEPTH]))
    except ValueError:
        return None
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


class DigestTree:
    """The digests of all nodes down to the days; what is below a day is computed from its entries when it is needed.

    About 1 kB for each account and day. Add all messages, then call `finish`.
    """

    def __init__(self) -> None:
        self.nodes: dict[Path, NodeDigest] = {}
        self._below: dict[Path, list[str]] = {}

    def add(self, message: OwedMessage) -> None:
        """Add a message, if it was delivered."""
        if message.state == "delivered":
            node = self.nodes.setdefault(path_of(message.account, message.internaldate), NodeDigest())
            node.count += 1
            node.value ^= _number(f"{message.email_id} {message.sha256}")

    def finish(self) -> None:
        """Make the nodes above the days."""
        for path, digest in list(self.nodes.items()):
            for depth in range(DAY_DEPTH):
                if path[: depth + 1] not in self.nodes or depth == DAY_DEPTH - 1:
                    self._below.setdefault(path[:depth], []).append(path[depth])
                self.nodes.setdefault(path[:depth], NodeDigest()).add(digest)

    def digest(self, path: Path) -> NodeDigest:
        """Return the digest of a node that is not below a day; without entries where there is none."""
        return self.nodes.get(path) or NodeDigest()

    def children(self, path: Path) -> dict[str, NodeDigest]:
        """Return the nodes below one that is above a day, by the last part of their names."""
        return {name: self.nodes[*path, name] for name in self._below.get(path, ())}

    def days(self, path: Path) -> Iterator[Path]:
        """Yield the names of the days in or below a node."""
        if len(path) == DAY_DEPTH:
            yield path
        for name in self._below.get(path, ()):
            yield from self.days((*path, name))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
