"""What version 0.1.0 left on its machine, made by its real code: today's code takes all of it over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from email_ingestion.cli.backup import restore_backup
from email_ingestion.ledger.migrate import HEAD
from email_ingestion.settings import load_settings
from gmail_sandbox import RunningSandbox
from tests.acceptance.test_rollback import VERSION_0_1_0, code_of, deliver, run_old
from tests.servers.commands import command, told, typed
from tests.servers.processes import Place
from tests.servers.redis import RedisServer

STREAM = "{email_ingestion}:stream"
BACKUP = "from email_ingestion.cli.backup import backup; from email_ingestion.cli.exits import run; run(backup)"


def test_what_0_1_0_stored_queued_buried_and_saved_is_taken_over(
    here: Place, sandbox: RunningSandbox, own_redis: RedisServer, tmp_path: Path
):
    here.set(BLOB_THRESHOLD_BYTES="2000")
    code = code_of(VERSION_0_1_0, tmp_path / "old")
    (code / "backup.py").write_text(BACKUP)

    def old(*words: str) -> str:
        done = run_old(here, code, *words)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    # Delivered, one of it large; a dead letter; a backup of that; and mail that waits in the stream.
    deliver(sandbox, 1, 2)
    sandbox.deliver(b"Subject: large\r\nMessage-ID: <large@example.org>\r\n\r\n" + b"word " * 2000)
    old("producer.py", "--once")
    with redis.Redis.from_url(own_redis.url) as client:
        client.xadd(STREAM, {"nonsense": "x"})
    old("worker.py", "--drain")
    old("backup.py")
    deliver(sandbox, 3, 4)
    old("producer.py", "--once")

    # Read before anything is written, then carried on.
    letters = told(here, "dlq", "list")
    assert len(letters) == 1
    found = typed(here, "doctor")
    assert found.returncode in {0, 1}, found.stdout
    assert "failed" not in found.stdout
    for program in (("worker.py", "--drain"), ("producer.py", "--once")):
        done = here.run(*program)
        assert done.returncode == 0, done.stderr
    assert here.rows("SELECT version_num FROM schema_revision") == [(HEAD,)]
    subjects = [subject for (subject,) in here.rows("SELECT subject FROM emails ORDER BY subject")]
    assert subjects == ["large", *(f"letter {number}" for number in (1, 2, 3, 4))]
    assert told(here, "database", "check")[0]["state"] == "ok"
    assert len(told(here, "search", "letter")) == 4
    assert len(told(here, "search", "table-1.csv")) == 1  # of an attachment that 0.1.0 delivered
    (large,) = told(here, "search", "large")
    raw = typed(here, "export", large["email_id"], "--output", str(tmp_path / "large.eml"))
    assert raw.returncode == 0, raw.stderr
    assert (tmp_path / "large.eml").read_bytes().endswith(b"word " * 10)
    assert typed(here, "reconcile").returncode == 0
    assert typed(here, "reparse", "--all").returncode == 0
    assert typed(here, "audit", "verify").returncode in {0, 1}

    # Its backup is listed, rehearsed and restored: the dead letter is back after a purge.
    assert typed(here, "dlq", "purge", "--all", "--yes").returncode == 0
    (archive,) = [path for path in (here.folder / "backups").glob("*.tar") if "dlq" not in path.name]
    for words in (("--list",), ("--file", str(archive), "--rehearse"), ("--file", str(archive), "--force")):
        done = command(here, restore_backup, *words)
        assert done.returncode == 0, done.stderr + done.stdout
    assert [each["id"] for each in told(here, "dlq", "list")] == [each["id"] for each in letters]
    assert len(told(here, "search", "letter")) == 4
    for log in ("logs", "errors"):
        assert typed(here, log).returncode in {0, 1}


def test_each_setting_of_0_1_0_is_one_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    example = (code_of(VERSION_0_1_0, tmp_path / "old") / "config/.env.example").read_text()
    lines = [line[1:] for line in example.splitlines() if re.match(r"#[A-Z0-9_]+=.+", line)]
    assert len(lines) >= 40
    (tmp_path / ".env").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().worker_batch_size == 100
