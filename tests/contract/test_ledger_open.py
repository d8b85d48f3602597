"""Opening a ledger: migrations, several starters, and one clear sentence for whatever is wrong."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, create_engine, inspect, text

from email_ingestion import __version__
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.ledger.engine import open_engine
from email_ingestion.ledger.migrate import (
    COMPATIBLE_FROM,
    HEAD,
    RELEASES,
    _scripts,
    create,
    downgrade,
    pending_revision,
    upgrade,
)
from email_ingestion.ledger.store import open_ledger
from email_ingestion.ledger.tables import emails, metadata
from tests.contract.ledgers import letters, mail, stored
from tests.servers.postgres import fresh_database

# The index of senders is none of columns; the tests below compare its SQL.
pytestmark = pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index emails_sender")


@pytest.mark.parametrize("made", [create, upgrade])
def test_both_ways_lead_to_the_schema_of_the_code(made: Callable[[Connection], None], database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        made(connection)
        own = MigrationContext.configure(
            connection,
            opts={
                "compare_type": database_url.startswith("postgresql"),
                "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
                "include_object": lambda _object, name, *_: (
                    name not in {"emails_words", "attachments_words", "emails_sender"}
                ),
            },
        )
        assert compare_metadata(own, metadata) == []
        columns = [column["name"] for column in inspect(connection).get_columns("emails")]
    engine.dispose()
    assert columns == [column.name for column in emails.columns]
    with closing(open_ledger(database_url)) as ledger:
        assert ledger.count() == 0


@pytest.mark.parametrize("use", ["record", "ping"])
def test_tables_that_somebody_dropped_are_made_anew(database_url: str, use: str) -> None:
    with closing(open_ledger(database_url)) as ledger:
        ledger.record(letters(1))
        engine = open_engine(database_url)
        with engine.begin() as connection:
            found = MetaData()
            found.reflect(connection)
            found.drop_all(connection)
        engine.dispose()
        with pytest.raises(SinkUnavailable, match="emails"):
            ledger.ping() if use == "ping" else ledger.record(letters(2))
        ledger.ping()
        ledger.record(letters(2))
        assert ledger.count() == 1


def test_an_empty_database_is_made_as_the_migrations_would_make_it(database_url: str) -> None:
    made = []
    engine = open_engine(database_url)
    for way in (create, upgrade):
        with engine.connect() as connection, connection.begin() as trial:
            way(connection)
            made.append(_everything_in(connection))
            trial.rollback()
    engine.dispose()
    assert made[0] == made[1]
    assert len(made[0]) > 40


def _everything_in(connection: Connection) -> list[tuple[object, ...]]:
    """Columns with their types and defaults, keys, indices, triggers and functions."""
    tables = inspect(connection)
    found: list[tuple[object, ...]] = [
        (table, column["name"], str(column["type"]), column["nullable"], column["default"])
        for table in metadata.tables
        for column in tables.get_columns(table)
    ]
    found += [(table, repr(tables.get_pk_constraint(table))) for table in metadata.tables]
    found += [(table, repr(tables.get_foreign_keys(table))) for table in metadata.tables]
    questions = {
        "sqlite": (
            "SELECT type, name, sql FROM sqlite_master WHERE type <> 'table' OR name LIKE 'email\\_%' ESCAPE '\\'",
            "SELECT sql FROM sqlite_master WHERE name = 'attachment_words'",
            "SELECT * FROM email_words_config",
            "SELECT * FROM alembic_version",
            "SELECT * FROM schema_revision",
        ),
        "postgresql": (
            "SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()",
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace",
            "SELECT * FROM alembic_version",
            "SELECT * FROM schema_revision",
        ),
    }
    for question in questions[connection.dialect.name]:
        found += sorted(tuple(row) for row in connection.exec_driver_sql(question))
    return found


def test_the_newest_migration_is_the_one_the_code_asks_for():
    assert _scripts()[1].get_current_head() == HEAD


def test_opening_again_keeps_everything(database_url: str) -> None:
    for number in range(3):
        with closing(open_ledger(database_url)) as ledger:
            ledger.record(letters(number))
            assert ledger.count() == number + 1


def _start(url: str, together: Barrier, answer: Pipe) -> None:
    together.wait()
    with closing(open_ledger(url)) as ledger:
        answer.send(ledger.record(letters(1)))


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(4)
    pipes = [context.Pipe(duplex=False) for _ in range(4)]
    starters = [context.Process(target=_start, args=(database_url, together, answer)) for _, answer in pipes]
    for starter in starters:
        starter.start()
    for _, answer in pipes:
        answer.close()
    recorded = [receiver.recv() for receiver, _ in pipes]
    for starter in starters:
        starter.join()
    assert sorted(map(len, recorded)) == [0, 0, 0, 1]


def test_a_newer_schema_is_refused(database_url: str) -> None:
    open_ledger(database_url).close()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        for table in ("alembic_version", "schema_revision"):
            connection.execute(text(f"UPDATE {table} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConfigurationError, match="schema 9999"):
        open_ledger(database_url)


def test_a_newer_schema_that_only_added_is_used_as_it_is(database_url: str) -> None:
    with closing(open_ledger(database_url)) as ledger:
        ledger.record(letters(1))
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE emails ADD COLUMN mood TEXT"))
        connection.execute(text("UPDATE schema_revision SET version_num = '9999'"))
    assert pending_revision(engine) is None
    with closing(open_ledger(database_url)) as ledger:
        assert ledger.record(letters(1, 2)) == {"default:gm:2"}
        assert len(ledger.mail_search.hits("letter")) == 2
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM schema_revision")).scalar_one() == "9999"
    with pytest.raises(ConfigurationError, match="later version"):
        downgrade(engine, "0006")
    engine.dispose()


@pytest.mark.parametrize("made_by", ["0001", "0003", "0005", "0006"])
def test_a_database_of_an_older_release_keeps_its_mail(database_url: str, made_by: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        upgrade(connection, target=made_by)
        connection.execute(text("DROP TABLE schema_revision"))  # which none of them had
        _insert_old_mail(connection)
    assert pending_revision(engine) == HEAD
    with closing(open_ledger(database_url)) as ledger:
        assert [hit.email_id for hit in ledger.mail_search.hits("leaflet")] == ["default:gm:1"]
        assert ledger.record(letters(1, 2)) == {"default:gm:2"}
    with engine.connect() as connection:
        marks = [_version(connection, table) for table in ("schema_revision", "alembic_version")]
    engine.dispose()
    assert marks == [HEAD, COMPATIBLE_FROM]


def _insert_old_mail(connection: Connection) -> None:
    empty = dict.fromkeys(("labels", "to_addrs", "headers", "defects"), "[]")
    texts = dict.fromkeys(("mailbox", "sha256", "text", "raw_ref", "subject"), "x")
    dates = dict.fromkeys(("internaldate", "processed_at"), "2026-01-01T00:00:00+00:00")
    numbers = {"uidvalidity": 7, "uid": 1, "size": 1, "gm_msgid": 1}
    row = {"email_id": "default:gm:1", "account": "default"} | empty | texts | dates | numbers
    shown = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in row.values())
    connection.exec_driver_sql(f"INSERT INTO emails ({', '.join(row)}) VALUES ({shown})")
    connection.exec_driver_sql(
        "INSERT INTO attachments (email_id, position, filename, content_type, size, sha256, content_ref)"
        " VALUES ('default:gm:1', 1, 'Leaflet.pdf', 'application/pdf', 1, 'x', 'x')"
    )


def _version(connection: Connection, table: str) -> str:
    return str(connection.execute(text(f"SELECT version_num FROM {table}")).scalar_one())


def test_a_downgrade_is_a_mark_that_loses_nothing(database_url: str) -> None:
    engine = open_engine(database_url)
    assert downgrade(engine, "0005") is None
    with closing(open_ledger(database_url)) as ledger:
        ledger.record(letters(1))
    assert downgrade(engine, "0005") == COMPATIBLE_FROM
    with closing(open_ledger(database_url)) as ledger:
        assert ledger.record(letters(1, 2)) == {"default:gm:2"}
    assert downgrade(engine, "9999") == "0005"
    with engine.connect() as connection:
        assert _version(connection, "alembic_version") == HEAD
    engine.dispose()


def test_a_database_of_version_0_1_0_can_be_marked_too(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        upgrade(connection, target="0006")
        connection.execute(text("DROP TABLE schema_revision"))
    assert downgrade(engine, "0005") == "0006"
    with closing(open_ledger(database_url)) as ledger:
        assert ledger.record(letters(1)) == {"default:gm:1"}
    engine.dispose()


def test_each_release_is_told_what_it_can_use():
    known = [script.revision for script in _scripts()[1].walk_revisions()]
    assert RELEASES[__version__] == HEAD == known[0]
    assert COMPATIBLE_FROM in known
    assert set(RELEASES.values()) <= set(known)


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "mysql://root:hunter2@localhost/mail", "sqlite://", "sqlite:///:memory:", "postgresql+x://a"],
)
def test_an_address_of_no_database_we_speak_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_ledger(url)
    assert "DATABASE_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_directory_that_cannot_be_made_is_a_setting_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="mend DATABASE_URL"):
        open_ledger(f"sqlite:///{tmp_path}/file/sub/ledger.db")


def test_a_directory_that_takes_no_files_is_a_setting_to_mend() -> None:
    with pytest.raises(ConfigurationError, match="mend the permissions"):
        open_ledger("sqlite:////proc/self/ledger.db")


def test_a_file_that_is_no_database_is_a_setting_to_mend(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all " * 100)
    with pytest.raises(ConfigurationError, match="not an SQLite database"):
        open_ledger(f"sqlite:///{tmp_path}/ledger.db")


def test_a_server_that_is_away_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SinkUnavailable, match="check DATABASE_URL") as caught:
        open_ledger(f"postgresql+psycopg://joe:hunter2@/mail?host={tmp_path}")
    assert "hunter2" not in str(caught.value)


def test_a_server_database_that_cannot_hold_every_character_is_refused(postgres_server: str) -> None:
    with (
        fresh_database(postgres_server, encoding="LATIN1") as url,
        pytest.raises(ConfigurationError, match="ENCODING 'UTF8'"),
    ):
        open_ledger(url)


def test_a_read_only_server_takes_nothing_and_blames_no_message(postgres_url: str) -> None:
    open_ledger(postgres_url).close()
    read_only = postgres_url.replace("options=", "options=-cdefault_transaction_read_only%3Don%20")
    with closing(open_ledger(read_only)) as ledger:
        with pytest.raises(SinkUnavailable, match="read-only"):
            ledger.ping()
        with pytest.raises(SinkUnavailable, match="read-only"):
            ledger.record(letters(1))


def test_connections_lost_with_a_server_restart_are_replaced(postgres_url: str) -> None:
    with closing(open_ledger(postgres_url)) as ledger:
        ledger.record(letters(1))
        engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        engine.dispose()
        assert ledger.record(letters(1, 2)) == {"default:gm:2"}


def _shell(url: str) -> sqlite3.Connection:
    return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)


def test_sqlite_survives_a_power_cut_and_lets_readers_read(sqlite_url: str) -> None:
    with closing(open_ledger(sqlite_url)) as ledger, ledger._database.connect() as connection:
        asked = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() for pragma in asked]
        assert found == ["wal", 2, 1, 10_000]
        with closing(_shell(sqlite_url)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert ledger.count() == 0


def _open_and_wait(url: str, pipe: Pipe) -> None:
    """Another process of ours, with nothing to do: it keeps a connection to the database that it found."""
    with closing(open_ledger(url)) as ledger:
        ledger.count()
        pipe.send("open")
        pipe.recv()


@pytest.mark.parametrize("replacement", ["an empty file", "a copy"])
def test_a_sqlite_file_that_was_replaced_is_used_though_an_idle_process_keeps_the_old_one(
    sqlite_url: str, replacement: str
) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    new = path.with_name("new.db")
    ours, theirs = multiprocessing.Pipe()
    idle = multiprocessing.get_context("spawn").Process(target=_open_and_wait, args=(sqlite_url, theirs))
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record(letters(1))
        idle.start()
        assert ours.recv() == "open"
        if replacement == "a copy":
            with closing(_shell(sqlite_url)) as shell:
                shell.execute("VACUUM INTO ?", (str(new),))
        else:
            new.touch()
        ledger.record(letters(2))  # in the log of the old one, which must not come into the new one
        new.replace(path)
        for _ in range(3):  # the tables of an empty one are made by the call that misses them
            with suppress(SinkUnavailable):
                ledger.record(letters(3))
        assert ledger.known_ids([f"default:gm:{number}" for number in (1, 2, 3)]) == (
            {"default:gm:1", "default:gm:3"} if replacement == "a copy" else {"default:gm:3"}
        )
    with closing(_shell(sqlite_url)) as shell:
        assert shell.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ours.send("end")
    idle.join()


def test_a_locked_sqlite_file_blames_no_message(sqlite_url: str) -> None:
    with closing(open_ledger(f"{sqlite_url}?timeout=0")) as ledger, closing(_shell(sqlite_url)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SinkUnavailable, match="locked"):
            ledger.record(letters(1))
        with pytest.raises(SinkUnavailable, match="locked"):
            ledger.ping()
        other.execute("ROLLBACK")
        ledger.ping()
        assert ledger.record(letters(1)) == {"default:gm:1"}


def test_a_full_disk_blames_no_message_and_keeps_what_was_there(sqlite_url: str) -> None:
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record(letters(1))
        with ledger._database.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 5}")
        with pytest.raises(SinkUnavailable, match="disk is full"):
            ledger.record([*letters(2), stored(mail(3, text="long " * 50_000))])
        assert ledger.count() == 1
        assert ledger.known_ids(["default:gm:1", "default:gm:2"]) == {"default:gm:1"}


def test_a_deleted_sqlite_file_is_noticed(sqlite_url: str) -> None:
    """SQLite would go on writing into the deleted file, and every message in it would be lost."""
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record(letters(1))
        for path in Path(sqlite_url.removeprefix("sqlite:///")).parent.glob("ledger.db*"):
            path.unlink()
        with pytest.raises(SinkUnavailable):
            ledger.record(letters(2))
    with closing(open_ledger(sqlite_url)) as ledger:
        assert ledger.record(letters(1, 2)) == {"default:gm:1", "default:gm:2"}


READ_ONLY = """\
import os, sys
from pathlib import Path
from email_ingestion.errors import SinkUnavailable
from email_ingestion.ledger.store import open_ledger
from tests.contract.ledgers import letters

folder = Path(sys.argv[1])
with_tables = open_ledger(f"sqlite:///{folder}/warm.db")  # loads whatever this user could not
with_tables.record(letters(1))
os.chown(folder, 65534, 65534)
os.setgid(65534)
os.setuid(65534)
path = folder / "ledger.db"
ledger = open_ledger(f"sqlite:///{path}")
ledger.record(letters(1))

def refused(call):
    try:
        call()
    except SinkUnavailable as error:
        assert "it is not writable; mend the permissions" in str(error), error
        return True
    return False

path.chmod(0o444)
ledger._database.engine.dispose()  # as after an error, or when more threads ask at a time
assert refused(lambda: ledger.record(letters(2)))
assert refused(ledger.ping)
assert ledger.count() == 1
path.chmod(0o600)
tries = 0
while refused(lambda: ledger.record(letters(2))):
    tries += 1
    assert tries < 10
ledger.ping()
assert ledger.count() == 2
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user for whom modes count")
def test_an_sqlite_file_that_became_read_only_is_away_and_taken_again_when_that_is_mended() -> None:
    """SQLite opens it for reading then, which it says to nobody, and makes files beside it that may only be read."""
    with tempfile.TemporaryDirectory() as folder:  # those of pytest nobody else may enter
        command = [sys.executable, "-c", READ_ONLY, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
