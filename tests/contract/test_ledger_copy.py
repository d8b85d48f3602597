"""A copy of a ledger in use is whole, and bringing one back adds what is missing and removes nothing."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from email_ingestion.errors import OperationFailed
from email_ingestion.ledger.copy import LedgerCopy, check_copy, copy_ledger, merge_copy
from email_ingestion.ledger.model import Location
from email_ingestion.ledger.store import Ledger, open_ledger
from tests.contract.ledgers import mail, stored


def _copy(url: str, path: Path) -> LedgerCopy:
    copied = copy_ledger(url, path, lambda done, of: None)
    assert copied
    check_copy(path, copied)
    return copied


def _ids(url: str) -> int:
    with closing(open_ledger(url)) as ledger:
        return ledger.count()


def _emptied(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in ("places", "attachments", "emails", "contents", "purged"):
            connection.execute(text(f"DELETE FROM {table}"))
    engine.dispose()


def test_what_was_lost_comes_back_and_can_be_found(ledger: Ledger, database_url: str, tmp_path: Path):
    letters = [mail(n, subject=f"word{n}", attachments=(b"x" * n,)) for n in range(1, 31)]
    ledger.record([stored(each) for each in letters])
    ledger.record_locations("default", {Location("Work", 7, 99): letters[0].email_id})
    copied = _copy(database_url, tmp_path / "copy")
    assert copied.rows["emails"] == 30
    assert copied.rows["attachments"] == 30
    assert copied.rows["places"] == 1
    _emptied(database_url)
    assert ledger.count() == 0
    assert merge_copy(database_url, tmp_path / "copy", copied) == 30
    assert ledger.known_ids(each.email_id for each in letters) == {each.email_id for each in letters}
    assert [hit.subject for hit in ledger.mail_search.hits("word17")] == ["word17"]
    assert ledger.other_locations("default", "Work", 7, 1, 100)
    assert _copy(database_url, tmp_path / "again").rows == copied.rows


def test_what_a_later_version_added_comes_back_too(ledger: Ledger, database_url: str, tmp_path: Path):
    ledger.record([stored(mail(n)) for n in (1, 2)])
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE emails ADD COLUMN mood TEXT"))
        connection.execute(text("UPDATE emails SET mood = 'cheerful'"))
        connection.execute(text("UPDATE schema_revision SET version_num = '9999'"))
    copied = _copy(database_url, tmp_path / "copy")
    _emptied(database_url)
    assert merge_copy(database_url, tmp_path / "copy", copied) == 2
    with engine.connect() as connection:
        assert connection.execute(text("SELECT mood FROM emails")).all() == [("cheerful",)] * 2
    engine.dispose()


def test_what_an_older_version_has_no_column_for_is_left_out(ledger: Ledger, database_url: str, tmp_path: Path):
    letters = [mail(n, attachments=(b"x" * n,)) for n in (1, 2)]
    ledger.record([stored(each) for each in letters])
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text('ALTER TABLE emails ADD COLUMN "Mood today" TEXT'))
        connection.execute(text("UPDATE emails SET \"Mood today\" = 'cheerful, (''very'')'"))
        connection.execute(text("UPDATE schema_revision SET version_num = '9999'"))
    copied = _copy(database_url, tmp_path / "copy")
    _emptied(database_url)
    with engine.begin() as connection:
        connection.execute(text('ALTER TABLE emails DROP COLUMN "Mood today"'))
    engine.dispose()
    assert merge_copy(database_url, tmp_path / "copy", copied) == 2
    assert ledger.known_ids(each.email_id for each in letters) == {each.email_id for each in letters}
    assert _copy(database_url, tmp_path / "again").rows == copied.rows


def test_a_copy_whose_rows_do_not_fit_adds_nothing_and_quotes_nothing(
    ledger: Ledger, database_url: str, tmp_path: Path
):
    if not database_url.startswith("postgresql"):
        pytest.skip("SQLite takes every value")
    ledger.record([stored(mail(n, subject="confidential")) for n in (1, 2)])
    copied = _copy(database_url, tmp_path / "copy")
    _emptied(database_url)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE emails ALTER COLUMN sha256 TYPE integer USING 1"))
    engine.dispose()
    with pytest.raises(OperationFailed, match="takes nothing of the backup") as refused:
        merge_copy(database_url, tmp_path / "copy", copied)
    assert "\n" not in str(refused.value)
    assert ledger.count() == 0


def test_a_copy_that_needs_later_code_is_refused_with_a_reason(ledger: Ledger, database_url: str, tmp_path: Path):
    ledger.record([stored(mail(1))])
    copied = replace(_copy(database_url, tmp_path / "copy"), schema="9999")
    with pytest.raises(OperationFailed, match="schema 9999, which this version does not know"):
        merge_copy(database_url, tmp_path / "copy", copied)


def test_what_an_operator_gave_up_stays_given_up(ledger: Ledger, database_url: str, tmp_path: Path):
    ledger.record_purged(["default:1", "default:2"])
    copied = _copy(database_url, tmp_path / "copy")
    _emptied(database_url)
    ledger.record_purged(["default:2", "default:3"])
    merge_copy(database_url, tmp_path / "copy", copied)
    everything = {"default:1", "default:2", "default:3"}
    assert ledger.purged(everything) == everything


def test_a_copy_of_a_release_that_counted_fewer_tables_is_good(ledger: Ledger, database_url: str, tmp_path: Path):
    ledger.record_purged(["default:1"])
    copied = _copy(database_url, tmp_path / "copy")
    check_copy(tmp_path / "copy", LedgerCopy(copied.kind, copied.schema, {"emails": 0}))


def test_a_ledger_that_is_ahead_stays_ahead(ledger: Ledger, database_url: str, tmp_path: Path):
    ledger.record([stored(mail(n)) for n in range(1, 11)])
    copied = _copy(database_url, tmp_path / "copy")
    ledger.record([stored(mail(n)) for n in range(11, 16)])
    assert merge_copy(database_url, tmp_path / "copy", copied) == 0
    assert ledger.count() == 15


def test_a_copy_is_of_one_instant_while_others_write(ledger: Ledger, database_url: str, tmp_path: Path):
    ledger.record([stored(mail(n, text="x" * 3000)) for n in range(1, 1001)])
    done = threading.Event()

    def write() -> None:
        number = 1001
        while not done.is_set():
            ledger.record([stored(mail(number, attachments=(b"x",)))])
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copied = _copy(database_url, tmp_path / "copy")
    finally:
        done.set()
        writer.join()
    assert copied.rows["emails"] >= 1000
    assert copied.rows["attachments"] == copied.rows["emails"] - 1000


def test_a_damaged_copy_is_refused(ledger: Ledger, database_url: str, tmp_path: Path):
    ledger.record([stored(mail(n, text="x" * 500)) for n in range(1, 400)])
    copied = _copy(database_url, tmp_path / "copy")
    data = (tmp_path / "copy").read_bytes()
    (tmp_path / "copy").write_bytes(data[: len(data) // 2])
    with pytest.raises(OperationFailed):
        check_copy(tmp_path / "copy", copied)


def test_there_is_nothing_to_copy_before_there_is_a_ledger(database_url: str, tmp_path: Path):
    assert copy_ledger(database_url, tmp_path / "copy", lambda done, of: None) is None
    assert not (tmp_path / "ledger.db").exists()


def test_a_copy_goes_back_into_its_own_kind_of_database(ledger: Ledger, database_url: str, tmp_path: Path):
    copied = _copy(database_url, tmp_path / "copy")
    foreign = LedgerCopy("postgresql" if copied.kind == "sqlite" else "sqlite", copied.schema, copied.rows)
    with pytest.raises(OperationFailed, match="restore it there"):
        merge_copy(database_url, tmp_path / "copy", foreign)
