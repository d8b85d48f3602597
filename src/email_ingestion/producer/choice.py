"""Which messages to take and in what portions: decisions only, nothing is fetched here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, pairwise
from typing import Literal

from email_ingestion.mailbox import MessageSummary

Reason = Literal["excluded_label", "before_start", "known", "too_large"]

END_OF_TIME = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Rules:
    """What leaves a message out."""

    exclude_labels: frozenset[str]
    start: datetime | None = None
    most_bytes: int = sys.maxsize
    begin_now: bool = False  # IMAP_START=now: what was there before the first delivery is left out

    def for_old_mail(self, begun: Callable[[], datetime | None]) -> Rules:
        """The rules for mail that was there when its cursor was made; `begun` tells the date of the first delivery."""
        return replace(self, start=begun() or END_OF_TIME) if self.begin_now else self

    def reason_against(self, outline: MessageSummary, known: Collection[int]) -> Reason | None:
        """Why a message is left out, or None; `known` are the UIDs that are accounted for."""
        if outline.uid in known:
            return "known"
        if self.start and outline.internaldate < self.start:
            return "before_start"
        if self.exclude_labels.intersection(outline.labels):
            return "excluded_label"
        return "too_large" if outline.size > self.most_bytes else None


@dataclass(frozen=True, slots=True)
class Portion:
    """Messages to fetch at once, and the last UID that is accounted for once they are in the stream."""

    wanted: tuple[MessageSummary, ...]
    upto: int

    @property
    def size(self) -> int:
        """Bytes, as the server states them."""
        return sum(outline.size for outline in self.wanted)


def portions(
    outlines: Iterable[MessageSummary], wanted: Collection[int], upto: int, most_bytes: int, *, step: int = 1
) -> Iterator[Portion]:
    """Cut ascending `outlines` into portions of at most `most_bytes`; a bigger message is one by itself.

    `upto` is the last UID of the whole stretch; UIDs that are not wanted are accounted for on the way. With the `step`
    -1 everything descends.
    """
    portion: list[MessageSummary] = []
    size = 0
    for outline in outlines:
        if outline.uid not in wanted:
            continue
        if portion and size + outline.size > most_bytes:
            yield Portion(tuple(portion), outline.uid - step)
            portion, size = [], 0
        portion.append(outline)
        size += outline.size
    yield Portion(tuple(portion), upto)


def with_next(portions: Iterable[Portion]) -> Iterator[tuple[Portion, Portion]]:
    """Each portion, and the one that follows: an empty one behind the last."""
    return pairwise(chain(portions, [Portion((), 0)]))


def portions_down(
    outlines: Sequence[MessageSummary], wanted: Collection[int], downto: int, most_bytes: int
) -> Iterator[Portion]:
    """The same from the other end: the newest of ascending `outlines` first, down to the UID `downto`."""
    return portions(reversed(outlines), wanted, downto, most_bytes, step=-1)
