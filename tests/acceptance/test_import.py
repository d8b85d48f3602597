"""A Takeout file and the mailbox it was made from: every message comes once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.commands import told
from tests.servers.processes import Place, gmail_settings, place
from tests.servers.redis import RedisServer

NAMES = {"\\Inbox": "Inbox", "\\Sent": "Sent", "\\Important": "Important", "\\Starred": "Starred", "\\Draft": "Drafts"}


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings(mail="300")) as running:
        yield running


@pytest.fixture
def here(tmp_path: Path, own_redis: RedisServer, sandbox: RunningSandbox) -> Iterator[Place]:
    settings = gmail_settings(sandbox, tmp_path / "here") | {"IMAP_EXCLUDE_LABELS": "none"}
    with place(tmp_path / "here", own_redis.url, **settings) as made:
        yield made


@pytest.fixture
def takeout(tmp_path: Path, sandbox: RunningSandbox) -> Path:
    """The mailbox as Takeout would give it out."""
    path = tmp_path / "All mail.mbox"
    mail = sandbox.with_account(lambda account: [(m, account.raw(m)) for m in account.messages.values()])
    with path.open("wb") as file:
        for message, raw in mail:
            when = datetime.fromtimestamp(message.internaldate / 1000, UTC)
            labels = [NAMES.get(label, label) for label in sorted(message.labels)]
            labels += [] if "\\Seen" in message.flags else ["Unread"]
            file.write(f"From {message.msgid}@xxx {when:%a %b %d %H:%M:%S +0000 %Y}\n".encode())
            file.write(f"X-GM-THRID: {message.thrid}\nX-Gmail-Labels: ".encode() + _quoted(labels) + b"\n")
            for line in raw.replace(b"\r\n", b"\n").splitlines(keepends=True):
                file.write(b">" + line if line.lstrip(b">").startswith(b"From ") else line)
            file.write(b"\n" if raw.endswith(b"\n") else b"\n\n")
    return path


def _quoted(labels: list[str]) -> bytes:
    text = ",".join(f'"{label}"' if "," in label else label for label in labels)
    return b"=?UTF-8?Q?" + b"".join(b"=%02X" % byte for byte in text.encode()) + b"?="


def _identities(here: Place) -> list[str]:
    return sorted(row[0] for row in here.rows())


def _all(sandbox: RunningSandbox) -> list[str]:
    return sorted(f"default:gm:{message.msgid}" for message in sandbox.messages())


def test_every_message_of_a_takeout_file_and_its_mailbox_comes_once(
    here: Place, sandbox: RunningSandbox, takeout: Path
):
    report = told(here, "import", str(takeout))
    assert (report["complete"], report["messages"], report["queued"]) == (True, 300, 300)
    assert here.run("worker.py", "--drain").returncode == 0
    assert here.run("producer.py", "--once").returncode == 0
    assert here.run("worker.py", "--drain").returncode == 0
    assert _identities(here) == _all(sandbox)
    assert sum(sandbox.with_stats(lambda stats: dict(stats.fetched_messages)).values()) == 0, "nothing was downloaded"
    other = takeout.with_name("again.mbox")
    other.write_bytes(takeout.read_bytes() + b"\n")
    report = told(here, "import", str(other))
    assert (report["known"], report["queued"]) == (300, 0)
