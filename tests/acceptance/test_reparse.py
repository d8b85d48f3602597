"""Yesterday's mail in today's record, on a live system, and when the command is killed in the middle."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing

from email_ingestion.records import PARSER_VERSION
from gmail_sandbox import RunningSandbox
from tests.servers.processes import Place, until

COPIES = 1500  # rows of one raw message: more than the command does at once


def run(here: Place, *options: str) -> subprocess.CompletedProcess[str]:
    done = here.run("-m", "email_ingestion", "reparse", *options)
    assert "Traceback" not in done.stderr
    return done


def change(here: Place, *statements: str) -> None:
    with closing(sqlite3.connect(here.folder / "data" / "email_ingestion.db", timeout=30)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def versions(here: Place) -> dict[int, int]:
    return dict(here.rows("SELECT parser_version, count(*) FROM emails GROUP BY 1"))


def ingest(here: Place) -> None:
    for command in (("producer.py", "--once"), ("worker.py", "--drain")):
        done = here.run(*command)
        assert done.returncode == 0, done.stderr


def letter(number: int) -> bytes:
    return f"Subject: letter {number}\r\nCc: Ann <ann@example.com>\r\n\r\nhello {number}\r\n".encode()


def test_old_mail_gets_todays_record_beside_a_live_worker(here: Place, sandbox: RunningSandbox):
    for number in range(20):
        sandbox.deliver(letter(number))
    ingest(here)
    change(
        here, "UPDATE emails SET parser_version = 0, cc_addrs = NULL", "UPDATE emails SET subject = 'x' WHERE uid = 1"
    )
    worker, producer = here.worker(), here.producer()
    until(lambda: worker.metric("email_ingestion_reparse_pending_messages") == 20, "the worker tells what is old")

    tried = run(here, "--dry-run", "--only-changed")
    assert tried.returncode == 0, tried.stderr
    assert "20 records looked at: 20 would change, 0 stay as they are, 0 could not be parsed" in tried.stdout
    assert "cc_addrs\t20" in tried.stdout
    assert versions(here) == {0: 20}

    sandbox.deliver(letter(20))
    done = run(here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "20 changed" in done.stdout
    until(lambda: len(here.rows()) == 21, "new mail is delivered too")
    assert versions(here) == {PARSER_VERSION: 21}
    assert {row[0] for row in here.rows("SELECT cc_addrs FROM emails")} == {
        '[{"name": "Ann", "addr": "ann@example.com"}]'
    }
    assert sorted(here.rows("SELECT subject FROM emails")) == sorted((f"letter {number}",) for number in range(21))
    assert "reparse" in (here.folder / "logs" / "audit.log").read_text()
    assert (worker.alive, producer.alive) == (True, True)
    assert run(here, "--account", "nobody").returncode == 64


def test_killed_in_the_middle_it_goes_on_where_it_was(here: Place, sandbox: RunningSandbox):
    sandbox.deliver(letter(1))
    ingest(here)
    names = [row[0] for row in here.rows("SELECT name FROM pragma_table_info('emails')")]
    others = {"email_id": "account || ':gm:' || n", "gm_msgid": "n", "parser_version": "0", "cc_addrs": "NULL"}
    values = ", ".join(others.get(name, name) for name in names)
    change(
        here,
        f"WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {COPIES})"
        f" INSERT INTO emails ({', '.join(names)}) SELECT {values} FROM emails, number",
    )
    begun = subprocess.Popen([here.python, "-m", "email_ingestion", "reparse"], cwd=here.folder, env=here.environment)
    until(lambda: versions(here)[PARSER_VERSION] > 100, "some of it is done")
    begun.kill()
    begun.wait()
    left = versions(here).get(0, 0)
    done = run(here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{left:,} records looked at: {left:,} changed")
    assert versions(here) == {PARSER_VERSION: COPIES + 1}
    assert here.rows("SELECT count(*) FROM emails WHERE cc_addrs IS NULL") == [(0,)]
