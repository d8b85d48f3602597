"""A beginning of an id is enough for every command that takes one, and what is ambiguous does nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from email_ingestion.cli import dlq, stuck_work
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender, Consumer, RedisLink
from email_ingestion.stream.pending import PendingEntries
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

ANSI = re.compile(r"\x1b\[[0-9;]*m")
app = typer.Typer()
app.add_typer(dlq.dlq, name="dlq")
app.add_typer(stuck_work.pending, name="pending")
app.command()(stuck_work.revoke)


@pytest.fixture
def redis_link(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RedisLink:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    found = link(redis_server.url)
    appender = Appender(found)
    since = appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    appender.append("default", "INBOX", since, 3, [message(uid) for uid in (1, 2, 3)])
    Consumer(found, "one", 60).read_new(3, block=False)
    return found


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, " ".join(ANSI.sub("", result.stderr).replace("│", " ").split())


def test_entries_and_dead_letters_go_by_a_beginning(redis_link: RedisLink) -> None:
    first, second, third = (each.id for each in PendingEntries(redis_link).entries())
    common = first[:8]
    code, out, err = run("pending", "to-dlq", common)
    assert (code, out) == (2, "")
    assert all(each in err for each in (first, second, third, "may mean 3 entries"))
    assert run("pending", "to-dlq", first[:5])[0] == 2
    code, _, err = run("pending", "to-dlq", "99999999")
    assert (code, err) == (1, "there is no id of an entry that begins with 99999999")
    assert len(list(PendingEntries(redis_link).entries())) == 3
    assert run("pending", "to-dlq", first, second)[0] == 0

    letters = [line.split("\t")[0] for line in run("dlq", "list")[1].splitlines() if line[:1].isdigit()]
    assert len(letters) == 2
    for command in ("show", "replay", "export", "purge"):
        code, out, err = run("dlq", command, letters[0][:8])
        assert (code, out) == (2, ""), command
        assert letters[0] in err
        assert letters[1] in err
        assert run("dlq", command, "99999999")[0] == 1
        assert run("dlq", command, letters[0][:5])[0] == 2
    assert run("dlq", "replay", letters[0][:-1] if letters[0][:-1] not in letters[1] else letters[0])[0] == 0
    left = [line.split("\t")[0] for line in run("dlq", "list")[1].splitlines() if line[:1].isdigit()]
    assert left == letters[1:]
    code, out, _ = run("dlq", "show", left[0][:6])
    assert code == 0
    assert left[0] in out


def test_a_message_is_revoked_by_a_beginning(redis_link: RedisLink) -> None:
    ids = [each.email_id for each in PendingEntries(redis_link).entries()]
    assert ids == ["default:gm:1001", "default:gm:1002", "default:gm:1003"]
    code, _, err = run("revoke", "default:gm:100")
    assert code == 2
    assert all(each in err for each in (*ids, "may mean 3 messages"))
    assert run("revoke", "1002")[0] == 2  # too short
    code, out, _ = run("revoke", "gm:1002")
    assert code == 0
    assert ids[1] in out
    assert [each.email_id for each in PendingEntries(redis_link).entries()] == [ids[0], ids[2]]
    assert "no worker has this message" in run("revoke", "gm:1009")[2]
