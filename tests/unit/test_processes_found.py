"""Processes on this machine, of other users too: whose they are, which live, and that no command ends over them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from email_ingestion.cli.exit_codes import leave
from email_ingestion.fleet import managed_processes
from tests.servers.processes import until


class _OfAnotherUser(psutil.Process):
    """A process that tells nobody but its user what it does."""

    owner = os.getuid() + 1

    def cwd(self) -> str:
        raise psutil.AccessDenied

    def uids(self):
        return SimpleNamespace(real=self.owner)


@pytest.mark.parametrize("is_of_the_service", [True, False])
def test_a_process_of_another_user_is_ours_if_the_folder_is_that_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_of_the_service: bool
) -> None:
    (tmp_path / "pids").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_OfAnotherUser, "owner", os.getuid() + (not is_of_the_service))
    monkeypatch.setattr(managed_processes.psutil, "Process", _OfAnotherUser)
    assert managed_processes._is_ours(os.getpid()) is is_of_the_service


def test_what_may_not_be_ended_is_said_to_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed_processes.os, "geteuid", lambda: os.getuid() + 2)
    said: list[str] = []
    managed_processes._terminate({"producer": _OfAnotherUser(os.getpid())}, 1.0, said.append)
    assert len(said) == 1
    assert "runs on: it is of the user" in said[0]


def test_a_redis_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    (program := tmp_path / "redis-server").symlink_to(str(shutil.which("sleep")))
    with subprocess.Popen([program, "60"]) as process:
        (file := tmp_path / "redis.pid").write_text(f"{process.pid}\n")
        found = until(lambda: managed_processes.find_process(file), "the process is found")
        process.kill()
        until(
            lambda: found.status() == psutil.STATUS_ZOMBIE, "it has ended"
        )  # its entry stays, as it does under many a PID 1
        assert managed_processes.find_process(file) is None


def test_a_home_that_takes_no_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Command:
        def main(self, **_options: object) -> None:
            (tmp_path / "home").touch()
            (tmp_path / "home" / ".bashrc").write_text("")

    with pytest.raises(SystemExit) as end:
        leave(Command())
    assert end.value.code == 2
    assert capsys.readouterr().err == f"cannot use {tmp_path}/home/.bashrc: Not a directory.\n"
