"""A ledger that went back is noticed, and its mailboxes are compared at once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from email_ingestion.events import LedgerWentBack
from email_ingestion.ledger.mark import LedgerMark
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.producer.ledger_watch import LedgerWatch
from tests.contract.ledgers import letters
from tests.servers.links import Heard, link
from tests.servers.redis import RedisServer

HERE = LedgerMark("7", "00000001", 100)


def test_a_mark_grows_with_what_is_recorded(ledger: Ledger):
    before = ledger.mark()
    ledger.record(letters(1))
    after = ledger.mark()
    assert before
    assert after
    assert after.position > before.position
    assert before.is_ahead_of(after) is False
    assert after.is_ahead_of(before) is True


@pytest.mark.parametrize(
    ("now", "lost"),
    [
        (LedgerMark("7", "00000001", 100), False),
        (LedgerMark("7", "00000001", 200), False),
        (LedgerMark("7", "00000001", 99), True),
        (LedgerMark("7", "00000002", 200), True),  # a failover: what was not replicated is gone
        (LedgerMark("8", "00000001", 200), True),
        (LedgerMark("7", "", 200), False),  # a server in recovery does not tell its timeline
    ],
)
def test_a_failover_or_an_older_state_may_have_lost_commits(now: LedgerMark, lost: bool):
    assert HERE.is_ahead_of(now) is lost


def test_every_producer_compares_its_mailboxes_when_the_ledger_went_back(tmp_path: Path, redis_server: RedisServer):
    heard, compared, shown = Heard(), [], []
    with (
        closing(open_ledger(f"sqlite:///{tmp_path}/new.db")) as new,
        closing(open_ledger(f"sqlite:///{tmp_path}/old.db")) as old,
    ):
        new.record(letters(1, 2, 3))
        old.record(letters(1))
        current = [new]

        def watch(name: str) -> LedgerWatch:
            redis = link(redis_server.url)
            return LedgerWatch(redis, lambda: current[0], lambda: compared.append(name), shown.append, heard)

        first, second = watch("first"), watch("second")
        for each in (first, second, first, second):
            each._look()
        assert compared == []
        current[0] = old
        for each in (first, second, first, second):
            each._look()
        assert compared == ["first", "second"]
        assert len(heard.of(LedgerWentBack)) == 2
        current[0] = new
        watch("third")._look()
        current[0] = old
        watch("fourth")._look()  # it has just been started, and finds it itself
        assert compared == ["first", "second", "fourth"]
