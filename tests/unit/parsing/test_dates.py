"""Dates as programs write them."""

from __future__ import annotations

import pytest

from email_ingestion.parsing import dates
from email_ingestion.parsing.defects import Defects


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("Mon, 1 Jan 2024 10:00:00 +0200", "2024-01-01T08:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00 +02:00", "2024-01-01T08:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00 +2", "2024-01-01T08:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00 +-0200", "2024-01-01T08:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00 GMT-0500", "2024-01-01T15:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00 UTC+01:00", "2024-01-01T09:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00 CEST", "2024-01-01T08:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00 EST", "2024-01-01T15:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00 -0500 (EST)", "2024-01-01T15:00:00+00:00"),
        ("Mon Jan  1 10:00:00 CET 2024", "2024-01-01T09:00:00+00:00"),
        ("Mon, 1 Jan 2024 10.00.00 +0100", "2024-01-01T09:00:00+00:00"),
        ("Mon, 1 Jan 2024 10:00:00.123 +0100", "2024-01-01T09:00:00+00:00"),
        ("1 Jan 2024 10:00 PM +0100", "2024-01-01T21:00:00+00:00"),
        ("1 Jan 2024 12:00 AM +0000", "2024-01-01T00:00:00+00:00"),
        ("Sat, 31 Dec 2016 23:59:60 +0000", "2016-12-31T23:59:59+00:00"),
        ("2024-01-01T10:00:00+02:00", "2024-01-01T08:00:00+00:00"),
    ],
)
def test_a_date_is_the_moment_it_was_meant_to_be(value: str, moment: str) -> None:
    found = dates.parse([value], Defects())
    assert found
    assert found.isoformat() == moment


@pytest.mark.parametrize("value", ["01.02.2024", "yesterday", "12:00", "Mon, 99 Jan 2024 10:00:00 +0000", "1.2.3.4"])
def test_what_is_no_date_gives_none(value: str) -> None:
    assert dates.parse([value], Defects()) is None
