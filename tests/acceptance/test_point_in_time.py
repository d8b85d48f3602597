"""PostgreSQL goes back to a point in time by its own log, with the commands of docs/postgresql.md, and mail goes on."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from gmail_sandbox import RunningSandbox
from tests.servers.missing import program
from tests.servers.postgres import archiving_postgres
from tests.servers.processes import ROOT, Place, until

pytestmark = pytest.mark.soak  # half a minute of starts and stops
PAGE = (ROOT / "docs" / "postgresql.md").read_text()
SECTION = PAGE[PAGE.index("## Back to a point in time") :]


@dataclass(frozen=True)
class DatabaseServer:
    """A server whose folders stand for those of the page."""

    url: str
    folder: Path

    def ask(self, statement: str) -> list[tuple]:
        parts = make_url(self.url)
        with psycopg.connect(host=parts.query["host"], user="postgres", dbname="postgres", autocommit=True) as found:
            cursor = found.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def subjects(self) -> list[str]:
        return sorted(row[0] for row in self.ask("SELECT subject FROM emails"))

    def type(self, commands: str) -> None:
        """Type commands of the page as root on this machine, where a script plays systemd and another one sudo."""
        for written, here in (("/var/lib/postgresql/15", self.folder), ("/srv", self.folder / "srv")):
            commands = commands.replace(written, str(here))
        done = subprocess.run(
            ["bash", "-ec", commands], env=self._environment(), capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _environment(self) -> dict[str, str]:
        return {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin:/usr/sbin", "PGHOST": str(self.folder)}


@pytest.fixture
def database() -> Iterator[DatabaseServer]:
    program("pg_basebackup", "postgresql")
    with tempfile.TemporaryDirectory(prefix="pitr-", ignore_cleanup_errors=True) as folder:
        settings = re.search(r"```\n(archive_mode.*?)```", SECTION, re.DOTALL)
        assert settings
        written = settings[1].replace("/srv", f"{folder}/srv")
        with archiving_postgres(Path(folder), written) as url:
            yield DatabaseServer(url, Path(folder))


def blocks() -> tuple[str, str]:
    """The copy of each night, and the way back."""
    copy, back = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    return copy, back


def letter(number: int) -> bytes:
    return b"Subject: letter %d\r\nMessage-ID: <pitr-%d@example.org>\r\n\r\nhello %d\r\n" % (number, number, number)


def expected(*numbers: int) -> list[str]:
    return sorted(f"letter {number}" for number in numbers)


def test_a_database_that_goes_back_to_a_moment_gets_what_came_after_it_from_the_mail_server(
    here: Place, sandbox: RunningSandbox, database: DatabaseServer
):
    here.set(DATABASE_URL=database.url, IMAP_POLL_SECONDS=1)

    def delivered(*numbers: int) -> None:
        for number in numbers:
            sandbox.deliver(letter(number))

    producer, worker = here.producer(), here.worker()
    delivered(1, 2)
    until(lambda: database.ask("SELECT to_regclass('emails')") != [(None,)], "the tables are there")
    until(lambda: database.subjects() == expected(1, 2), "the mail of before the copy")
    copy, back = blocks()
    database.type(copy.replace("$(date +%Y%m%d)", "20261128"))
    delivered(3, 4)
    until(lambda: database.subjects() == expected(1, 2, 3, 4), "the mail of before the mistake")
    ((moment,),) = database.ask("SELECT now()::text")
    delivered(5, 6)
    until(lambda: database.subjects() == expected(1, 2, 3, 4, 5, 6), "the mail of after the moment")
    erased = here.run("-m", "email_ingestion", "erase", "--id", _id_of(database, "letter 2"), "--yes")
    assert erased.returncode == 0, erased.stderr
    database.ask("DELETE FROM emails WHERE subject = 'letter 3'")  # somebody's mistake
    until(lambda: database.subjects() == expected(1, 4, 5, 6), "what is to be undone")
    assert (producer.terminate(), worker.terminate()) == (0, 0)

    database.type(back.replace("2026-11-28 14:03:00+00", moment))
    assert database.subjects() == expected(1, 2, 3, 4)  # as it was, and without what came later
    until(lambda: not database.ask("SELECT 1 WHERE pg_is_in_recovery()"), "it is the master again")
    again = here.run("-m", "email_ingestion", "erase", "--reapply")
    assert again.returncode == 0, again.stderr
    assert database.subjects() == expected(1, 3, 4)
    delivered(7)
    producer, worker = here.producer(), here.worker()
    until(lambda: database.subjects() == expected(1, 3, 4, 5, 6, 7), "what came after the moment, once each")
    assert "ledger_went_back" in producer.log()
    assert here.run("-m", "email_ingestion", "reconcile").returncode == 0
    assert (producer.terminate(), worker.terminate()) == (0, 0)


def _id_of(database: DatabaseServer, subject: str) -> str:
    ((found,),) = database.ask(f"SELECT email_id FROM emails WHERE subject = '{subject}'")
    return str(found)
