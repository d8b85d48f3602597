"""Back to the version before: its code goes on with the database of today's, and today's goes on afterwards."""

from __future__ import annotations

import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from email_ingestion.ledger.migrate import COMPATIBLE_FROM, HEAD
from gmail_sandbox import RunningSandbox
from tests.servers.commands import told, typed
from tests.servers.missing import program
from tests.servers.processes import ROOT, Place

PARTS = ("src", "scripts", "config", "producer.py", "worker.py")
VERSION_0_1_0 = "fe9d612121d21a9e17ef48bec932355874c0e6a6"
BEFORE_SCHEMA_0006 = "ac829f9~1"  # never released: it refused a database that the commit after it had opened


def code_of(commit: str, folder: Path) -> Path:
    """Write the real code of an earlier commit into a folder."""
    command = [program("git", "git"), "-C", str(ROOT), "archive", commit, *PARTS]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the history of this repository is not here (git fetch --unshallow): {archive.stderr.decode()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def run_old(here: Place, code: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the old code in the place of today's."""
    old = replace(here, environment=here.environment | {"PYTHONPATH": str(code / "src")})
    command = ["-m", "email_ingestion"] if words[0] == "email-ingestion" else [str(code / words[0])]
    # An absolute path stays itself behind ROOT.
    return old.run(*command, *words[1:])


def deliver(sandbox: RunningSandbox, *numbers: int) -> None:
    for number in numbers:
        sandbox.deliver(
            f"Subject: letter {number}\r\nMessage-ID: <{number}@example.org>\r\n"
            "Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nHello\r\n--x\r\nContent-Type: text/csv\r\n"
            f'Content-Disposition: attachment; filename="table-{number}.csv"\r\n\r\na;b\r\n--x--\r\n'.encode()
        )


def ingest(here: Place) -> None:
    for command in (("producer.py", "--once"), ("worker.py", "--drain")):
        done = here.run(*command)
        assert done.returncode == 0, done.stderr


def marks(here: Place) -> list[tuple]:
    return [here.rows(f"SELECT version_num FROM {table}")[0] for table in ("schema_revision", "alembic_version")]


@pytest.mark.parametrize(("commit", "version"), [(VERSION_0_1_0, None), (BEFORE_SCHEMA_0006, "0005")])
def test_old_code_goes_on_with_the_database_of_today(
    here: Place, sandbox: RunningSandbox, tmp_path: Path, commit: str, version: str | None
):
    code = code_of(commit, tmp_path / "old")
    deliver(sandbox, 1, 2)
    ingest(here)
    if version:  # else it needs no leave
        assert told(here, "database", "downgrade", "--to", version) == [{"usable_from": version, "before": "0006"}]

    deliver(sandbox, 3)
    for command in (("producer.py", "--once"), ("worker.py", "--drain")):
        done = run_old(here, code, *command)
        assert done.returncode == 0, done.stderr
    found = run_old(here, code, "email-ingestion", "search", "letter")
    assert (found.returncode, len(found.stdout.splitlines())) == (0, 3), found.stderr
    assert marks(here) == [(HEAD,), (version or COMPATIBLE_FROM,)]

    deliver(sandbox, 4)
    ingest(here)
    assert sorted(here.rows("SELECT subject FROM emails")) == [(f"letter {number}",) for number in (1, 2, 3, 4)]
    # The old code's attachments are found too: the database itself fills the index.
    for number in (1, 2, 3, 4):
        assert len(told(here, "search", f"table-{number}.csv")) == 1
    assert told(here, "database", "check")[0]["state"] == "ok"


def test_old_code_takes_what_todays_producer_put_into_the_stream(here: Place, sandbox: RunningSandbox, tmp_path: Path):
    deliver(sandbox, 1, 2)  # before the first run, so each entry has the field `history`
    assert here.run("producer.py", "--once").returncode == 0
    done = run_old(here, code_of(VERSION_0_1_0, tmp_path / "old"), "worker.py", "--drain")
    assert done.returncode == 0, done.stderr
    assert sorted(here.rows("SELECT subject FROM emails")) == [("letter 1",), ("letter 2",)]


def test_a_downgrade_says_what_it_did_and_refuses_what_there_never_was(here: Place):
    assert typed(here, "database", "downgrade", "--to", "0.1.0").returncode == 1  # there is no database
    assert here.run("worker.py", "--drain").returncode == 0
    for version, schema in (("0005", "0005"), ("v0.1.0", "0006")):
        done = typed(here, "database", "downgrade", "--to", version)
        assert done.returncode == 0
        assert f"Code of schema {schema} can use the database now" in done.stdout
        assert "Nothing was removed" in done.stdout
    refused = typed(here, "database", "downgrade", "--to", "3.7")
    assert refused.returncode == 64
    assert "0.1.0" in refused.stderr
    assert typed(here, "database", "downgrade").returncode == 64
