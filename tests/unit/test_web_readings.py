"""What a page may say of something that it looks at: nothing that was not found a moment ago."""

from __future__ import annotations

import threading
import time

import pytest

from email_ingestion.web.api_errors import as_sentence
from email_ingestion.web.readings import Source

SECONDS = 60.0


def test_what_hangs_is_not_known_though_it_was_well_a_moment_ago() -> None:
    hangs, released = threading.Event(), threading.Event()

    def look() -> str:
        if hangs.is_set():
            assert released.wait(SECONDS)
        return "well"

    source = Source("the database", look, 0.0, patience=0.05)
    try:
        assert source.get(SECONDS).value == "well"
        hangs.set()
        deadline = time.monotonic() + SECONDS
        while (reading := source.get(0.1)).value is not None:
            assert time.monotonic() < deadline
        assert reading.problem.startswith("the database has not answered for 0.")
        assert not reading.failed
    finally:
        released.set()
    assert source.get(SECONDS).value == "well"


@pytest.mark.parametrize("message", ["Redis is away", "Redis is away.", "redis is away. ", "redis is away.."])
def test_a_sentence_has_one_full_stop_whoever_wrote_it(message: str) -> None:
    assert as_sentence(message) == "Redis is away."
