"""What may not be read is said to be so: it is neither empty nor missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.daemon import running_pid
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.fleet.evidence_bundle import _end_of
from email_ingestion.fleet.log_files import unread_logs
from email_ingestion.ops.audit_log import read_audit, verify_audit
from email_ingestion.ops.collectors import CrashGauges
from email_ingestion.ops.start_journal import read_starts
from email_ingestion.settings import load_settings


def as_nobody(call: Callable[[], Any]) -> Any:
    """Return what `call` returns to a user for whom modes count, which they do not for root."""
    if os.geteuid():
        return call()
    os.seteuid(65534)
    try:
        return call()
    finally:
        os.seteuid(0)


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # what is above it may be closed too
    folder = Path("logs")
    folder.mkdir()
    for name in ("audit.log", "starts.jsonl", "worker.log", "worker.lock", "worker.pid", "worker.crash"):
        (folder / name).write_text("")
        (folder / name).chmod(0)
    folder.chmod(0)
    return folder


def test_settings_that_another_user_may_not_read_say_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    data = Path("data")
    data.mkdir()
    data.chmod(0o600)  # not even its owner may enter it
    file = Path(".env")
    file.write_text("IMAP_USER=someone@example.com\n")
    file.chmod(0o644)  # whatever the umask of the tests is
    with pytest.raises(
        ConfigurationError, match=rf"user \d+ may not open data: .* as its owner, user {os.getuid()}, or"
    ):
        as_nobody(load_settings)
    data.chmod(0o755)
    file.chmod(0)
    with pytest.raises(ConfigurationError, match=r"cannot read .*\.env: Perm.*; user \d+ may not open .*\.env: give"):
        as_nobody(load_settings)


@pytest.mark.parametrize(
    "look",
    [
        lambda folder: list(read_audit(folder)),
        verify_audit,
        read_starts,
        lambda folder: running_pid(folder / "worker.pid"),
        lambda folder: _end_of(folder / "worker.log"),
    ],
)
def test_what_may_not_be_read_is_no_answer(closed: Path, look: Callable[[Path], Any]) -> None:
    with pytest.raises(OperationFailed, match=r"cannot read .*logs.*Permission denied; give the command as its owner"):
        as_nobody(lambda: look(closed))


def test_crashes_that_nobody_can_count_are_no_number(closed: Path) -> None:
    assert as_nobody(lambda: list(CrashGauges(closed, lambda: 0.0).collect())) == []


def test_following_says_which_log_it_does_not_follow(closed: Path) -> None:
    closed.chmod(0o755)
    (said,) = as_nobody(lambda: list(unread_logs(closed)))
    assert said.startswith("cannot read logs/worker.log: ")
