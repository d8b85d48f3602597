"""What commands leave on the disk is for their user alone, whatever umask the shell has."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import typer

from email_ingestion.cli.backup import backup
from email_ingestion.cli.exit_codes import leave, run
from email_ingestion.cli.main import app
from email_ingestion.ledger.store import open_ledger
from tests.contract.erasing import kept_mail, letter, message
from tests.contract.ledgers import mail, stored
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


COMMANDS = {
    ("incident", "open", "mail is late"): "data/incidents/*/assessment.json",
    ("incident", "note", "001", "somebody looked"): "data/incidents/*/entries.jsonl",
    ("evidence", "collect", "--out", "evidence"): "evidence/manifest.json",
    ("dlq", "export", "--all", "--output", "letters.jsonl"): "letters.jsonl",
    ("dlq", "purge", "--all", "--yes"): "backups/dlq-*.jsonl",
    ("export", "default:gm:7", "--output", "letter.eml"): "letter.eml",
    ("erase", "--id", "default:gm:7", "--yes"): "data/erasure/reports/*.json",
    ("backup.py",): "backups/*.tar",
    ("drain", "--output", "queue.dump"): "queue.dump",
    ("audit", "verify"): "logs/audit.log",
}


@pytest.fixture(params=[0o022, 0o000], ids=["022", "000"])
def umask(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """The umask of a shell, in whose folder there are mail, dead letters and a queue."""
    monkeypatch.chdir(tmp_path)
    values = {"IMAP_USER": "me@example.com", "IMAP_AUTH": "password", "IMAP_PASSWORD": "secret"}
    for name, value in (values | {"REDIS_URL": redis_server.url, "SINKS": "files:data/out"}).items():
        monkeypatch.setenv(name, value)
    before = os.umask(0o077)
    url = f"sqlite:///{tmp_path}/data/email_ingestion.db"
    with kept_mail(tmp_path / "data", url, redis_server.url) as kept:
        kept.queue(message(1, letter(1)), message(2, letter(2)))
        kept.bury()
        kept.queue(message(3, letter(3)))
    with closing(open_ledger(url)) as ledger:
        ledger.record([stored(mail(7))])
    yield request.param
    os.umask(before)


def test_nothing_that_a_command_writes_is_open_to_others(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for words, written in COMMANDS.items():
        os.umask(umask)
        monkeypatch.setattr(sys, "argv", list(words) if words == ("backup.py",) else ["email-ingestion", *words])
        with pytest.raises(SystemExit) as end:
            run(backup) if words == ("backup.py",) else leave(typer.main.get_command(app))
        assert end.value.code in {0, 1}, words
        assert list(tmp_path.glob(written)), words
    modes = {path.relative_to(tmp_path).as_posix(): path.lstat().st_mode for path in tmp_path.rglob("*")}
    assert {name: oct(mode) for name, mode in modes.items() if stat.S_IMODE(mode) & 0o077} == {}
