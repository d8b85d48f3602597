"""The examples of docs/api.md: checked as strictly as ours, installed, and given mail by a real worker."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from email_ingestion.records import Cursor
from email_ingestion.stream import Appender
from tests.servers.links import link, message
from tests.servers.processes import ROOT, Place
from tests.servers.redis import RedisServer

EXAMPLE = ROOT / "examples" / "sink-csv"
MODULE = EXAMPLE / "src" / "csv_sink"
PAGE = ROOT / "docs" / "api.md"


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the example is installed as any package is."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", folder)
    run("pip", "install", *options, EXAMPLE, cwd=folder)
    return folder


@pytest.fixture
def snippets(tmp_path: Path) -> list[Path]:
    """The examples of the page as modules."""
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    paths = [tmp_path / f"snippet_{number}.py" for number in range(len(found))]
    for path, text in zip(paths, found, strict=True):
        path.write_text(text)
    return paths


def test_the_examples_are_strictly_typed_and_a_mistake_in_one_is_found(snippets: list[Path], tmp_path: Path) -> None:
    options = ("--strict", "--python-executable", sys.executable, "--cache-dir", tmp_path / "cache")
    run("mypy", *options, *snippets, MODULE, cwd=tmp_path)
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from email_ingestion import Ledger, Sink, SinkMessage\n"
        "class Half:\n    name = 'half'\n    def ping(self) -> None: ...\n"
        "def open_sink(settings: object) -> Sink: return Half()\n"
        "def owed(message: SinkMessage) -> object: return message.owed_to\n"
    )
    with pytest.raises(AssertionError) as caught:
        run("mypy", *options, wrong, cwd=tmp_path)
    report = str(caught.value)
    for complaint in (
        'has no attribute "Ledger"',
        'missing following "Sink" protocol member',
        'no attribute "owed_to"',
    ):
        assert complaint in report


def test_the_examples_of_the_page_run(snippets: list[Path], tmp_path: Path) -> None:
    for path in snippets:
        run(path.stem, cwd=tmp_path)


def test_the_example_package_passes_its_own_test(tmp_path: Path) -> None:
    run("pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'its'}", cwd=EXAMPLE)


def test_a_worker_delivers_through_the_sink_of_an_installed_package(
    installed: Path, here: Place, own_redis: RedisServer
) -> None:
    appender = Appender(link(own_redis.url))
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    raw = b"From: ann@example.org\r\nSubject: hello\r\n\r\nworld\r\n"
    mail = [*(message(uid, raw=raw) for uid in (1, 2, 3)), message(4, raw=b"Subject: from nobody\r\n\r\nhello\r\n")]
    appender.append("default", "INBOX", Cursor(1, 0), 4, mail)
    out = here.folder / "mail.csv"
    here.set(PYTHONPATH=installed, SINKS=f"csv:{out}")
    drained = here.run("worker.py", "--drain")
    assert drained.returncode == 0, drained.stderr
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert sorted(row[0] for row in rows) == [each.envelope.email_id for each in mail[:3]]
    states = here.rows("SELECT state, count(*) FROM deliveries WHERE sink LIKE 'csv:%' GROUP BY state ORDER BY state")
    assert states == [("dead", 1), ("delivered", 3)]

    here.set(SINKS="csv")
    refused = here.run("worker.py", "--drain")
    assert (refused.returncode, "csv needs a file" in refused.stderr) == (78, True), refused.stderr
    here.set(SINKS=f"csv:{here.folder}/missing/mail.csv")
    examined = here.run("-m", "email_ingestion", "doctor")
    assert re.search(r"cannot be\s+written", examined.stdout), examined.stdout
