"""Stored bytes that vanish or rot are found by a scrub, and fetched again from the mail server that still has them."""

from __future__ import annotations

import base64
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from gmail_sandbox import RunningSandbox
from tests.servers.commands import told, typed
from tests.servers.processes import Place

ATTACHED = b"x,y\r\n" * 600


def letter(number: int, padding: int = 0) -> bytes:
    parts = [
        b"Subject: letter %d" % number,
        b"Message-ID: <stored-%d@example.org>" % number,
        b'Content-Type: multipart/mixed; boundary="b"',
        b"",
        b"--b",
        b"Content-Type: text/plain",
        b"",
        b"number %d " % number + b"." * padding,
        b"--b",
        b"Content-Type: text/csv",
        b"Content-Disposition: attachment; filename=%d.csv" % number,
        b"Content-Transfer-Encoding: base64",
        b"",
        base64.encodebytes(b"%d," % number + ATTACHED).replace(b"\n", b"\r\n"),
        b"--b--",
        b"",
    ]
    return b"\r\n".join(parts)


def blob(here: Place, digest: str) -> Path:
    return here.folder / "data" / "blobs" / digest[:2] / digest[2:4] / digest


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def pass_once(here: Place) -> None:
    assert here.run("producer.py", "--once").returncode == 0
    assert here.run("worker.py", "--drain").returncode == 0


def test_missing_and_damaged_bytes_are_found_and_fetched_again(here: Place, sandbox: RunningSandbox):
    here.set(BLOB_THRESHOLD_BYTES=2000)
    numbers = [sandbox.deliver(letter(number)) for number in range(3)]
    sandbox.deliver(b"Subject: small\r\n\r\nsmall\r\n")
    pass_once(here)
    assert told(here, "blobs", "verify")["faults"] == []
    raw = dict(here.rows("SELECT subject, sha256 FROM emails"))
    ((attached,),) = here.rows("SELECT sha256 FROM attachments WHERE filename = '2.csv'")
    blob(here, raw["letter 0"]).unlink()
    flip_a_bit(blob(here, raw["letter 1"]))
    flip_a_bit(blob(here, attached))
    with closing(sqlite3.connect(here.folder / "data" / "email_ingestion.db")) as database, database:
        database.execute("UPDATE contents SET data = x'00' WHERE sha256 = ?", (raw["small"],))

    found = told(here, "blobs", "verify", "--dry-run", ends=1)
    assert sorted(each["fault"] for each in found["faults"]) == ["damaged", "damaged", "damaged", "missing"]
    checked = told(here, "database", "check", ends=1)
    assert len(checked) == 4
    assert {row["state"] for row in checked} == {"damaged"}

    mended = told(here, "blobs", "verify")
    assert (mended["restored"], mended["lost"]) == (4, 0)
    assert told(here, "blobs", "verify")["faults"] == []
    assert told(here, "database", "check") == [{"state": "ok", "fault": ""}]

    shutil.rmtree(here.folder / "data" / "blobs")
    for command in (("blobs", "verify"), ("database", "check")):
        refused = typed(here, *command)
        assert refused.returncode == 2
        assert "it is empty; is its disk mounted" in refused.stderr
        assert "blobs verify --refill" in refused.stderr
    (found,) = (each for each in told(here, "doctor", ends=2)["checks"] if each["check"] == "blobs")
    assert (found["verdict"], "not mounted" in found["cause"]) == ("failed", True)
    refilled = told(here, "blobs", "verify", "--refill")
    assert (refilled["restored"], refilled["lost"]) == (6, 0)
    assert told(here, "database", "check") == [{"state": "ok", "fault": ""}]

    blob(here, raw["letter 0"]).unlink()
    sandbox.with_account(lambda account: account.delete(numbers[0].message.msgid))
    gone = typed(here, "blobs", "verify")
    assert gone.returncode == 1
    assert "does not have it any more" in gone.stdout
    assert "1 lost" in gone.stdout


def test_a_dead_letter_of_a_lost_blob_is_fetched_again_before_its_replay(here: Place, sandbox: RunningSandbox):
    here.set(BLOB_THRESHOLD_BYTES=2000, WORKER_MAX_RETRIES=0)
    sandbox.deliver(letter(0))
    second = sandbox.deliver(letter(1))
    assert here.run("producer.py", "--once").returncode == 0
    lost = [path for path in (here.folder / "data" / "blobs").glob("??/??/*") if not path.name.startswith(".")]
    assert len(lost) == 2
    for path in lost:
        path.unlink()
    assert here.run("worker.py", "--drain").returncode == 0
    assert len(told(here, "dlq", "list")) == 2
    sandbox.with_account(lambda account: account.delete(second.message.msgid))

    done = told(here, "dlq", "replay", "--all")
    assert (done["matched"], done["replayed"], len(done["lost"])) == (2, 1, 1)
    assert here.run("worker.py", "--drain").returncode == 0
    assert [row[0] for row in here.rows("SELECT subject FROM emails")] == ["letter 0"]
    assert len(told(here, "dlq", "list")) == 1
