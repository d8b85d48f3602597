"""What all integration tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from email_ingestion.app.account import LedgerOnDemand


@pytest.fixture(autouse=True)
def _ledgers_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test opened, in whatever thread: Python 3.13 complains of a database left open."""
    opened: list[LedgerOnDemand] = []
    made = LedgerOnDemand.__init__

    def remember(ledger: LedgerOnDemand, url: str) -> None:
        made(ledger, url)
        opened.append(ledger)

    monkeypatch.setattr(LedgerOnDemand, "__init__", remember)
    yield
    for ledger in opened:
        ledger.close()
