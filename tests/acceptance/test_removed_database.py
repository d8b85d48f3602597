"""The SQLite file is removed while everything runs, its `-wal` and `-shm` left behind, as by `rm data/*.db`."""

from __future__ import annotations

from gmail_sandbox import RunningSandbox
from tests.servers.processes import Place, until


def letter(number: int) -> bytes:
    return b"Subject: letter %d\r\nMessage-ID: <removed-%d@example.org>\r\n\r\nhello %d\r\n" % (number, number, number)


def subjects(here: Place) -> list[str]:
    return sorted(row[0] for row in here.rows("SELECT subject FROM emails"))


def test_a_database_that_was_removed_with_its_wal_left_is_made_anew_and_filled_again(
    here: Place, sandbox: RunningSandbox
):
    here.set(RECONCILE_SECONDS=1, IMAP_POLL_SECONDS=1)
    for number in range(5):
        sandbox.deliver(letter(number))
    producer, worker = here.producer(), here.worker()
    until(lambda: len(subjects(here)) == 5, "the first mail is delivered")
    data = here.folder / "data"
    (data / "email_ingestion.db").unlink()
    assert (data / "email_ingestion.db-wal").exists()
    for number in range(5, 8):
        sandbox.deliver(letter(number))
    until(lambda: len(subjects(here)) == 8, "all of it is in the new database")
    assert here.run("-m", "email_ingestion", "database", "check").returncode == 0
    assert producer.terminate() == 0
    assert worker.terminate() == 0
    assert len(subjects(here)) == 8
