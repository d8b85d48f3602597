"""The conservation law, as a pure function: every message of the mailbox is in the database, a dead letter or queued.

Each has one end, byte for byte. Nothing here knows Redis or a database: `world` tells what it found where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Copy:
    """One place where a message was found: whose identity it bears, and the SHA-256 of the bytes read back there."""

    email_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Found:
    """What there is at one moment. `mailbox` holds the SHA-256 of each message on the server, by identity."""

    mailbox: Mapping[str, str]
    seen: Sequence[str]  # identities that bear `\\Seen` on the server: nobody but us could have set it
    database: Sequence[Copy]
    dead: Sequence[Copy]
    queued: Sequence[Copy]
    former: Collection[str] = ()  # identities that the server had and lost
    owed: Sequence[str] = ()  # identities that are in the database, and a further sink never got


@dataclass(frozen=True, slots=True)
class Verdict:
    """The identities that break the law, by how."""

    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    invented: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing breaks it."""
        return not any(astuple(self))


def judge(found: Found) -> Verdict:
    """Compare what is on the server with where it went.

    A message may be queued and in the database at once: it was committed and not yet acknowledged.
    """
    everywhere = [*found.database, *found.dead, *found.queued]
    whereabouts = {copy.email_id for copy in everywhere}
    return Verdict(
        lost=_ordered({*(found.mailbox.keys() - whereabouts), *found.owed}),
        doubled=_ordered(_doubled(found)),
        altered=_ordered(
            copy.email_id for copy in everywhere if found.mailbox.get(copy.email_id, copy.sha256) != copy.sha256
        ),
        invented=_ordered(whereabouts - found.mailbox.keys() - set(found.former)),
        seen=_ordered(found.seen),
    )


def _doubled(found: Found) -> set[str]:
    """What has two ends: by identity in database and dead letters together, by content more often than on the server.

    The second catches a message that came in again under another identity.
    """
    ends = [*found.database, *found.dead]
    by_identity = Counter(copy.email_id for copy in ends)
    by_content = Counter(copy.sha256 for copy in ends)
    rightful = Counter(found.mailbox.values())
    return {
        copy.email_id
        for copy in ends
        if by_identity[copy.email_id] > 1 or by_content[copy.sha256] > rightful[copy.sha256] > 0
    }


def _ordered(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(ids)))
