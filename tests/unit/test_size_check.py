"""Which of two answers is the message, and how many bytes one may have."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from email_ingestion.mailbox import MessageSummary
from email_ingestion.producer.size_check import MARGIN_BYTES, Answer, SizeCheck, max_bytes


class CountedMiscounts:
    """In memory what `Miscounts` keeps in Redis."""

    def __init__(self) -> None:
        self.row = 0

    def expected(self) -> bool:
        return self.row >= 5

    def add(self) -> None:
        self.row += 1

    def end_row(self) -> None:
        self.row = 0


def announced(size: int | None) -> MessageSummary:
    defects = ("size:unreadable",) if size is None else ()
    return MessageSummary(1, size or 0, datetime.now(UTC), (), (), None, None, defects)


EMPTY, CUT, OTHER, WHOLE = Answer(0, "e"), Answer(60, "c"), Answer(80, "o"), Answer(100, "w")


@pytest.mark.parametrize(
    ("size", "first", "second", "kept", "mismatch"),
    [
        (100, CUT, WHOLE, WHOLE, False),
        (100, WHOLE, CUT, WHOLE, False),
        (100, EMPTY, WHOLE, WHOLE, False),
        (100, CUT, CUT, CUT, True),
        (100, CUT, OTHER, OTHER, True),
        (100, OTHER, CUT, OTHER, True),
        (100, EMPTY, EMPTY, None, False),
        (100, CUT, EMPTY, None, False),
        (100, EMPTY, CUT, None, False),
        (0, CUT, CUT, CUT, True),
        (0, EMPTY, EMPTY, None, False),
        (None, EMPTY, CUT, CUT, False),
        (None, EMPTY, EMPTY, None, False),
    ],
)
def test_one_of_two_answers_is_kept(
    size: int | None, first: Answer, second: Answer, kept: Answer | None, mismatch: bool
) -> None:
    assert SizeCheck(CountedMiscounts()).choose(announced(size), first, second) == (kept, mismatch)


def test_only_proven_miscounts_in_a_row_make_sizes_worth_nothing() -> None:
    counted = CountedMiscounts()
    sizes = SizeCheck(counted)
    for _ in range(4):
        sizes.choose(announced(100), CUT, CUT)
    sizes.choose(announced(100), CUT, OTHER)  # proves nothing
    assert counted.row == 0
    for _ in range(4):
        sizes.choose(announced(100), CUT, CUT)
    assert sizes.fits(announced(100), 100)
    assert counted.row == 0
    for _ in range(5):
        assert not sizes.is_trusted(60)
        sizes.choose(announced(100), CUT, CUT)
    assert sizes.is_trusted(60)
    assert not sizes.is_trusted(0)


def test_a_download_has_a_fifth_or_a_mebibyte_to_spare() -> None:
    assert max_bytes(announced(0), 7) == MARGIN_BYTES
    assert max_bytes(announced(100), 7) == 100 + MARGIN_BYTES
    assert max_bytes(announced(100_000_000), 7) == 120_000_000
    assert max_bytes(announced(None), 7) == 7
