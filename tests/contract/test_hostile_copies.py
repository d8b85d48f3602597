"""The database in a backup may come from anywhere: what is not ours is refused before anything is read or replaced."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from email_ingestion.backup import create as creating
from email_ingestion.backup.create import check_ledger
from email_ingestion.errors import OperationFailed
from email_ingestion.ledger.copy import TABLES, LedgerCopy, check_copy, copy_ledger
from email_ingestion.ledger.pg_dump import _iter_tables
from email_ingestion.ledger.store import open_ledger
from tests.contract.erasing import SILENT, Kept, identities, kept_mail, letter, message
from tests.contract.ledgers import mail, stored
from tests.servers.redis import RedisServer

EVIL = "CREATE TRIGGER bad AFTER UPDATE ON emails BEGIN DELETE FROM erased; END"


def _copied(folder: Path, *statements: str) -> tuple[Path, LedgerCopy]:
    """Return a copy of a ledger whose owner gave these statements before it was copied, or after that as `+…`."""
    url, path = f"sqlite:///{folder / 'ledger.db'}", folder / "copy"
    with closing(open_ledger(url)) as ledger:
        ledger.record([stored(mail(n, text="x" * 500, attachments=(b"x" * n,))) for n in range(1, 40)])
    _run(folder / "ledger.db", [each for each in statements if not each.startswith("+")])
    copied = copy_ledger(url, path, lambda _done, _of: None)
    assert copied
    _run(path, [each.removeprefix("+") for each in statements if each.startswith("+")])
    return path, copied


def _run(path: Path, statements: list[str]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize(
    "statements",
    [
        (f"+{EVIL}",),
        ("+DROP TRIGGER emails_deleted", "+CREATE TRIGGER emails_deleted AFTER DELETE ON emails BEGIN SELECT 1; END"),
        ("+CREATE VIEW more AS SELECT * FROM emails",),
        ("+ALTER TABLE emails RENAME TO other", "+CREATE VIEW emails AS SELECT * FROM other"),
        ("+DROP TABLE holds", "+CREATE VIRTUAL TABLE holds USING fts5(hold_id, kind)"),
        ("+CREATE VIRTUAL TABLE more USING fts5(a)",),
        (
            "+PRAGMA writable_schema=ON",
            f"+UPDATE sqlite_master SET sql = '{EVIL}', type = 'trigger', rootpage = 0 WHERE name = 'purged'",
        ),
        ("+PRAGMA writable_schema=ON", "+UPDATE sqlite_master SET sql = 'nonsense' WHERE name = 'emails'"),
        ("+UPDATE alembic_version SET version_num = '0001'",),
        ("+DROP TABLE alembic_version",),
        ("+DELETE FROM emails WHERE email_id IN (SELECT email_id FROM emails LIMIT 1)",),
    ],
)
def test_a_copy_with_code_of_others_or_of_another_schema_is_refused_in_one_sentence(
    tmp_path: Path, statements: tuple[str, ...]
):
    path, copied = _copied(tmp_path, *statements)
    before = path.read_bytes()
    with pytest.raises(OperationFailed, match="the copy of the database") as refused:
        check_copy(path, copied)
    assert str(refused.value).isprintable()
    assert path.read_bytes() == before


def test_a_copy_with_damaged_pages_is_refused(tmp_path: Path):
    path, copied = _copied(tmp_path)
    content = bytearray(path.read_bytes())
    refused = 0
    for page in range(1, len(content) // 4096):
        path.write_bytes(content[: page * 4096] + b"\xff" * 4096 + content[(page + 1) * 4096 :])
        try:
            check_copy(path, copied)
        except OperationFailed:
            refused += 1
    assert refused >= len(content) // 4096 - 3  # a free page is no damage


def test_what_an_operator_added_to_the_database_does_not_spoil_its_backups(tmp_path: Path):
    path, copied = _copied(
        tmp_path,
        'CREATE VIEW "my ""view""" AS SELECT account, count(*) FROM emails GROUP BY 1',
        "CREATE TABLE notes (a)",
        "CREATE INDEX my_index ON emails (size)",
        "CREATE TRIGGER my_trigger AFTER INSERT ON emails BEGIN INSERT INTO notes VALUES (new.email_id); END",
        "CREATE VIRTUAL TABLE my_words USING fts5(a)",
        "ANALYZE",
    )
    check_copy(path, copied)


@pytest.fixture
def kept(tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    monkeypatch.chdir(tmp_path)
    with kept_mail(tmp_path, f"sqlite:///{tmp_path / 'ledger.db'}", redis_server.url) as found:
        found.deliver(message(1, letter(1)))
        found.queue(message(3, letter(3)))
        yield found


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (EVIL, "which this release does not make"),
        ("UPDATE emails SET account = '../../x', email_id = '../../x:gm:' || gm_msgid", "that no release writes"),
    ],
)
def test_a_restore_looks_at_the_database_before_it_replaces_anything(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, statement: str, reason: str
):
    monkeypatch.setattr("email_ingestion.ledger.copy.remove_foreign_code", lambda copy: copy.execute(statement))
    with monkeypatch.context() as unproven:
        unproven.setattr(creating, "check_ledger", lambda *_: None)
        made = kept.backup()
    kept.bury()
    before = kept.in_redis()
    with pytest.raises(OperationFailed, match=reason):
        kept.restore(made)
    assert kept.in_redis() == before
    assert not kept.link.client.keys("*restoring*")
    assert not (kept.settings.erasure_dir / "restore-unfinished").exists()
    assert kept.delivered() == identities(1)


def test_a_copy_that_would_fill_the_disk_is_refused_before_and_while_it_is_unpacked(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, folder = kept.backup(), tmp_path / "there"
    folder.mkdir()
    monkeypatch.setattr(creating, "MIN_FREE_BYTES", 2**60)
    for bomb in (
        zstandard.compress(b"0" * 4_000_000),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"0" * 4_000_000),
        b"(\xb5/\xfd\xe0" + (2**45).to_bytes(8, "little"),
    ):
        (folder / "database.sqlite.zst").write_bytes(bomb)
        with pytest.raises(OperationFailed, match="than there is room for"):
            check_ledger(made, folder, SILENT)
    assert (folder / "database.sqlite").stat().st_size == 0


@pytest.mark.parametrize(
    "line",
    [
        b"COPY public.x;DROP/**/TABLE/**/emails;-- (a) FROM stdin;\n",
        b"COPY public.emails (a) FROM stdin; DROP TABLE emails; --) FROM stdin;\n",
        b"COPY public.emails (a, b) SELECT 1; --) FROM stdin;\n",
        b'COPY public.emails ("a" || "b") FROM stdin;\n',
        b"COPY public.alembic_version (version_num) FROM stdin;\n",
        b"COPY public.em\xff (a) FROM stdin;\n",
    ],
)
def test_a_dump_that_names_anything_but_our_tables_and_columns_is_refused(line: bytes):
    with pytest.raises(OperationFailed, match="none of ours"):
        list(_iter_tables([line], TABLES))


def test_the_rows_of_a_dump_are_read_by_table():
    lines = [b"--\n", b'COPY public.emails (a, "b c") FROM stdin;\n', b"1\t2\n", b"\\.\n", b"\n"]
    assert [(t, c, list(rows)) for t, c, rows in _iter_tables(lines, TABLES)] == [("emails", '(a, "b c")', [b"1\t2\n"])]
    with pytest.raises(OperationFailed, match="none of ours"):
        list(_iter_tables([*lines[:2], *lines], TABLES))
