"""A reparse gives the rows of a fresh delivery, on each database, whatever the rows were before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text

from email_ingestion.blobs import DiskBlobStore, reference
from email_ingestion.ledger.model import LedgerWrite
from email_ingestion.ledger.record_updates import RecordChoice
from email_ingestion.ledger.store import open_ledger
from email_ingestion.parsing import parse
from email_ingestion.records import PARSER_VERSION
from email_ingestion.reparse import LiveMail, Reparser, ReparseSummary
from email_ingestion.routing import Router
from email_ingestion.sinks.database import DatabaseSink
from tests.servers.poison import poisoned_python
from tests.unit.parsing.messages import envelope

CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*.eml"))
ROUTER = Router([{"name": "files", "has_attachment": True, "tags": ["files"], "priority": 7}], ())
THRESHOLD = 2000  # bytes: some attachments lie in the blob store
NO_WAIT = LiveMail(lambda: 0).let_pass


class Archive:
    """A ledger with the corpus delivered, and a blob store."""

    def __init__(self, url: str, folder: Path) -> None:
        self.ledger = open_ledger(url)
        self.blobs = DiskBlobStore(folder)
        self.sqlite = url.startswith("sqlite")

    def deliver(self, raws: list[bytes], first: int = 1, account: str = "me") -> None:
        writes = []
        for number, raw in enumerate(raws, first):
            here = replace(
                envelope(), account=account, gm_msgid=number, uid=number, size=len(raw),
                sha256=hashlib.sha256(raw).hexdigest(), labels=("\\Inbox",), flags=("\\Seen",),
                internaldate=envelope().internaldate + timedelta(days=number),
            )  # fmt: skip
            writes.append(LedgerWrite(ROUTER.decide(parse(here, raw)).email, raw))
        DatabaseSink(self.ledger, self.blobs, THRESHOLD).deliver(writes)

    def reparse(self, choice: RecordChoice | None = None, **how: bool) -> ReparseSummary:
        made = Reparser(
            self.ledger, self.blobs, ROUTER, threshold=THRESHOLD, processes=2, timeout=60, let_live_mail_pass=NO_WAIT
        )
        for _ in made.run(choice or RecordChoice(), **how):
            pass
        return made.summary

    def execute(self, *statements: str) -> None:
        with self.ledger._database.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row, and on SQLite every word of the indices; PostgreSQL's are expressions over the rows."""
        with self.ledger._database.begin() as connection:
            tables = [name for name in inspect(connection).get_table_names() if name in {"emails", "attachments"}]
            found = {name: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {name}"))] for name in tables}
            found["contents"] = [tuple(row) for row in connection.execute(text("SELECT sha256, size FROM contents"))]
            if self.sqlite:
                for index in ("email_words", "attachment_words"):
                    connection.exec_driver_sql(f"CREATE VIRTUAL TABLE temp.v USING fts5vocab(main, {index}, instance)")
                    found[index] = [tuple(row) for row in connection.execute(text("SELECT * FROM temp.v"))]
                    connection.exec_driver_sql("DROP TABLE temp.v")
        return {name: sorted(rows, key=repr) for name, rows in found.items()}


@pytest.fixture
def archive(database_url: str, tmp_path: Path) -> Iterator[Archive]:
    made = Archive(database_url, tmp_path / "blobs")
    made.deliver([path.read_bytes() for path in CORPUS])
    with closing(made.ledger):
        yield made


COPIED = "email_id, 500 + position, 'antique', content_type, size, sha256, content_ref"
AGED = (
    "UPDATE emails SET parser_version = 0, cc_addrs = NULL, tags = NULL, priority = NULL, bounce = NULL",
    "UPDATE emails SET text = 'antediluvian ' || text, subject = 'was ' || subject WHERE uid % 3 = 0",
    "UPDATE emails SET defects = '[]', from_addr = NULL, message_id = NULL WHERE uid % 5 = 0",
    "DELETE FROM attachments WHERE uid_of(email_id) % 2 = 0",
    f"INSERT INTO attachments SELECT {COPIED} FROM attachments",
    "DELETE FROM attachments WHERE position = 1",
)


def age(archive: Archive) -> None:
    """Make the rows what an older version would have written, some of them with other texts and attachments."""
    uid = "(SELECT uid FROM emails WHERE emails.email_id = attachments.email_id)"
    archive.execute(*(statement.replace("uid_of(email_id)", uid) for statement in AGED))


def test_it_gives_the_rows_the_attachments_and_the_words_of_a_fresh_delivery(archive: Archive):
    fresh = archive.everything()
    age(archive)
    assert archive.everything() != fresh
    assert archive.ledger.mail_search.hits("antediluvian")
    summary = archive.reparse()
    assert (summary.checked, summary.failed) == (len(CORPUS), {})
    assert summary.changed == len(CORPUS)
    assert {"text", "cc_addrs", "tags", "attachments"} <= summary.fields.keys()
    found = archive.everything()
    for name in fresh:
        assert found.get(name) == fresh.get(name), name
    assert archive.ledger.mail_search.hits("antediluvian") == []
    assert archive.reparse().checked == 0


def test_a_dry_run_says_the_same_and_writes_nothing(archive: Archive):
    age(archive)
    before = archive.everything()
    tried = archive.reparse(dry_run=True, only_changed=True)
    assert archive.everything() == before
    done = archive.reparse()
    assert (tried.checked, tried.changed, tried.fields) == (done.checked, done.changed, done.fields)


def test_only_changed_leaves_the_others_without_a_mark(archive: Archive):
    fresh = archive.everything()
    archive.execute("UPDATE emails SET parser_version = 0", "UPDATE emails SET text = 'old' WHERE uid = 1")
    summary = archive.reparse(only_changed=True)
    assert (summary.changed, summary.unchanged) == (1, len(CORPUS) - 1)
    assert summary.fields == {"text": 1}
    assert archive.ledger.records.count(RecordChoice()) == len(CORPUS) - 1
    assert archive.reparse().changed == 0
    assert archive.everything() == fresh


def test_it_looks_at_one_account_or_at_mail_since_a_day(archive: Archive):
    archive.deliver([b"Subject: other\r\n\r\nhello"], account="other")
    archive.execute("UPDATE emails SET parser_version = 0")
    since = envelope().internaldate + timedelta(days=len(CORPUS) - 1)
    assert archive.reparse(RecordChoice(since=since), dry_run=True).checked == 2
    assert archive.reparse(RecordChoice(account="other")).checked == 1
    assert archive.reparse(RecordChoice(account="me")).checked == len(CORPUS)
    assert archive.reparse(RecordChoice(account="me", current_too=True)).unchanged == len(CORPUS)


def test_a_newer_parsers_records_stay(archive: Archive):
    archive.execute(f"UPDATE emails SET parser_version = {PARSER_VERSION + 1}")
    assert archive.reparse().checked == 0


def test_contents_that_nothing_refers_to_any_more_are_removed(archive: Archive):
    fresh = archive.everything()
    with archive.ledger._database.connect() as connection:
        kept = connection.execute(text("SELECT sha256 FROM contents ORDER BY sha256 LIMIT 1")).scalar_one()
    archive.execute(
        "UPDATE emails SET parser_version = 0 WHERE uid = 1",
        "INSERT INTO contents (sha256, size, data) SELECT 'dropped', size, data FROM contents LIMIT 1",
        *(f"INSERT INTO attachments (email_id, position, content_type, size, sha256, content_ref) VALUES ('me:gm:1',"
          f" {position}, 'x/y', 1, '{sha256}', '{reference(sha256)}')"
          for position, sha256 in ((98, "dropped"), (99, kept))),
    )  # fmt: skip
    archive.reparse()
    assert archive.everything() == fresh


def _lose_the_raw_bytes(archive: Archive) -> None:
    archive.execute("UPDATE emails SET raw_ref = 'sha256:0000' WHERE uid = 1")


def _kill_the_parser(archive: Archive) -> None:
    archive.deliver([b"X-Poison: abort\r\nSubject: x\r\n\r\nhello"], first=9000)


@pytest.mark.parametrize("damage", [_lose_the_raw_bytes, _kill_the_parser])
def test_what_cannot_be_parsed_keeps_its_row_and_holds_up_nothing(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Archive], None]
):
    damage(archive)
    before = {row[0]: row for row in archive.everything()["emails"]}
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path / "site"))
    archive.execute("UPDATE emails SET parser_version = 0, tags = NULL")
    summary = archive.reparse()
    assert len(summary.failed) == 1
    assert summary.changed == len(before) - 1
    assert archive.reparse().failed == summary.failed
    (failed,) = summary.failed
    assert failed in before


def test_a_message_deleted_meanwhile_stays_deleted(archive: Archive):
    archive.execute("UPDATE emails SET parser_version = 0, tags = NULL")
    made = Reparser(
        archive.ledger, archive.blobs, ROUTER, threshold=THRESHOLD, processes=1, timeout=60,
        let_live_mail_pass=lambda: None,
    )  # fmt: skip
    steps = made.run(RecordChoice())
    next(steps)
    archive.execute("DELETE FROM emails")
    for _ in steps:
        pass
    assert archive.ledger.count() == 0
    assert archive.everything()["attachments"] == []


def test_live_mail_passes_first_and_a_stream_that_is_never_empty_only_slows_it():
    clock, looks = [0.0], []

    def count() -> int:
        looks.append(clock[0])
        return waiting.pop() if waiting else 0

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    waiting = [0, 3, 5]
    live = LiveMail(count, clock=lambda: clock[0], sleep=sleep)
    live.let_pass()
    assert (len(looks), waiting) == (3, [])
    waiting = [1] * 1000
    before = clock[0]
    live.let_pass()
    assert 4 < clock[0] - before < 6
