"""A ledger that went back is noticed, and its mailboxes are compared at once."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import MetaData, create_engine

from email_ingestion.blobs import open_blobs
from email_ingestion.errors import RedisConnectionError, SinkUnavailable
from email_ingestion.events import LedgerWentBack
from email_ingestion.ledger.mark import LedgerMark
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.producer.ledger_watch import LedgerWatch
from email_ingestion.records import SinkMessage
from email_ingestion.sinks.database import DatabaseSink
from tests.contract.ledgers import letters, mail, raw_of
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


def test_tables_that_were_dropped_and_made_anew_are_another_ledger(postgres_url: str):
    """The log of PostgreSQL goes on, and the new ledger may soon have more than the old one had."""
    with closing(open_ledger(postgres_url)) as ledger:
        ledger.record(letters(1))
        before = ledger.mark()
        engine = create_engine(postgres_url)
        with engine.begin() as connection:
            found = MetaData()
            found.reflect(connection)
            found.drop_all(connection)
        engine.dispose()
        with pytest.raises(SinkUnavailable):
            ledger.ping()
        ledger.record(letters(2, 3))
        after = ledger.mark()
    assert before
    assert after
    assert before.is_ahead_of(after)


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
    heard, compared = Heard(), []
    with closing(open_ledger(f"sqlite:///{tmp_path}/new.db")) as first_ledger:
        first_ledger.record(letters(1))
    shutil.copy(tmp_path / "new.db", tmp_path / "old.db")
    with (
        closing(open_ledger(f"sqlite:///{tmp_path}/new.db")) as new,
        closing(open_ledger(f"sqlite:///{tmp_path}/old.db")) as old,
    ):
        new.record(letters(2, 3))
        current = [new]

        def watch(name: str) -> LedgerWatch:
            redis = link(redis_server.url)
            return LedgerWatch(redis, lambda: current[0], lambda: compared.append(name), _show, heard)

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


def test_that_mail_is_missing_is_told_until_every_mailbox_is_compared(redis_server: RedisServer):
    said: dict[str, str | None] = {}
    comparing = [True]
    watch = LedgerWatch(
        link(redis_server.url),
        lambda: pytest.fail("nobody asks the ledger"),
        lambda: None,
        said.__setitem__,
        Heard(),
        is_comparing=lambda: comparing[0],
    )
    watch._tell("queue", "mail left it", 0.0)
    watch._tell_no_more()
    assert said == {"queue": "mail left it"}
    comparing[0] = False
    watch._tell_no_more()
    assert said == {"queue": None}


def test_an_sqlite_file_made_anew_is_another_one_however_far_the_first_had_come(tmp_path: Path):
    path = tmp_path / "ledger.db"
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        before = ledger.mark()
    path.unlink()
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        ledger.record(letters(1))
        now = ledger.mark()
    assert before
    assert now
    assert before.is_ahead_of(now)


def test_a_worker_misses_what_it_recorded_though_others_have_recorded_more(database_url: str, tmp_path: Path):
    """As after a failover that lost commits: connections are new, and the mark has grown again."""
    missed: list[str] = []
    with closing(DatabaseSink(open_ledger(database_url), open_blobs(f"file:{tmp_path}"), 1000)) as sink:
        sink.on_loss = missed.append
        sink.deliver(sink_messages(1, 2))
        sink.ping()
        assert missed == []
        lose(database_url, "default:gm:2")
        sink.deliver(sink_messages(3))
        assert missed == ["default:gm:2"]
        sink.deliver(sink_messages(4))
        lose(database_url, "default:gm:4")
        sink.ping()
        assert missed == ["default:gm:2", "default:gm:4"]
        sink.ping()
        assert len(missed) == 2


def test_a_worker_misses_what_it_recorded_in_a_file_over_which_an_older_one_was_copied(tmp_path: Path):
    """In place, as `cp` does: the connection stays, and what is recorded next hides how far the file went back."""
    missed: list[str] = []
    path, older = tmp_path / "ledger.db", tmp_path / "older.db"
    with closing(DatabaseSink(open_ledger(f"sqlite:///{path}"), open_blobs(f"file:{tmp_path}"), 1000)) as sink:
        sink.on_loss = missed.append
        sink.deliver(sink_messages(1))
        with closing(sqlite3.connect(path)) as file:
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        older.write_bytes(path.read_bytes())
        sink.deliver(sink_messages(2, 3))
        with closing(sqlite3.connect(path)) as file:
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        path.write_bytes(older.read_bytes())
        sink.deliver(sink_messages(4, 5, 6))
        assert missed == ["default:gm:3"]


def test_what_a_worker_missed_is_told_until_somebody_is_told(database_url: str, tmp_path: Path):
    told = []

    def on_loss(email_id: str) -> None:
        told.append(email_id)
        if len(told) == 1:
            raise RedisConnectionError("refused")

    with closing(DatabaseSink(open_ledger(database_url), open_blobs(f"file:{tmp_path}"), 1000)) as sink:
        sink.on_loss = on_loss
        sink.deliver(sink_messages(1))
        lose(database_url, "default:gm:1")
        sink.deliver(sink_messages(2))
        sink.ping()
        assert told == ["default:gm:1", "default:gm:1"]


def test_the_mailboxes_are_compared_when_a_worker_missed_something(tmp_path: Path, redis_server: RedisServer):
    compared: list[None] = []
    redis = link(redis_server.url)
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        ledger.record(letters(1))
        watch = LedgerWatch(redis, lambda: ledger, lambda: compared.append(None), _show, Heard())
        watch._look()
        redis.client.incr(redis.keys.ledger_losses)
        watch._look()
        watch._look()
        assert len(compared) == 1


def _show(_what: str, _text: str | None) -> None:
    """What `/ready` says is not looked at here."""


def lose(database_url: str, email_id: str) -> None:
    """Let the database forget a message, and break all connections to it."""
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DELETE FROM emails WHERE email_id = '{email_id}'")
        if connection.dialect.name == "sqlite":
            copy = Path(database_url.removeprefix("sqlite:///")).with_suffix(".copy")
            connection.exec_driver_sql(f"VACUUM INTO '{copy}'")
            copy.replace(copy.with_suffix(".db"))
        else:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
    engine.dispose()


def sink_messages(*numbers: int) -> list[SinkMessage]:
    return [SinkMessage(mail(number), raw_of(number)) for number in numbers]
