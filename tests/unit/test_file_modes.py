"""Whom the files of this program are open to."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.file_modes import open_to_others, repair_modes, share_with_group

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make(path: Path, mode: int) -> Path:
    if path.suffix:
        path.write_text("x")
    else:
        path.mkdir()
    path.chmod(mode)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make(tmp_path / "project", 0o755))
    return tmp_path / "project"


def test_a_folder_as_git_clone_leaves_it_and_its_files_are_closed_to_group_and_others(here: Path) -> None:
    logs = make(here / "logs", 0o755)
    files = [make(logs / "worker.log", 0o644), make(logs / "old", 0o775), make(logs / "private.log", 0o600)]
    repair_modes([Path("logs"), Path("absent")])
    assert [mode_of(path) for path in (logs, *files)] == [0o700, 0o600, 0o700, 0o600]
    assert mode_of(here) == 0o755


@pytest.mark.parametrize(("folder_mode", "kept"), [(0o2755, 0o2750), (0o2770, 0o2770), (0o750, 0o750), (0o770, 0o770)])
def test_bits_of_a_group_that_an_administrator_set_stay(here: Path, folder_mode: int, kept: int) -> None:
    logs = make(here / "logs", folder_mode)
    log = make(logs / "worker.log", 0o644)
    repair_modes([logs])
    assert (mode_of(logs), mode_of(log)) == (kept, 0o640)


@pytest.mark.parametrize(
    ("folder_mode", "file_mode"), [(0o700, 0o600), (0o755, 0o600), (0o750, 0o640), (0o2750, 0o640), (0o2770, 0o660)]
)
def test_a_new_log_is_shared_with_the_group_of_its_folder_only_where_that_was_meant(
    here: Path, folder_mode: int, file_mode: int
) -> None:
    log = make(make(here / "logs", folder_mode) / "worker.log", 0o600)
    share_with_group(log)
    assert mode_of(log) == file_mode


def test_folders_elsewhere_and_what_links_point_to_stay(here: Path, tmp_path: Path) -> None:
    shared = make(tmp_path / "var-log", 0o755)
    linked = make(tmp_path / "linked.txt", 0o644)
    logs = make(here / "logs", 0o700)
    (logs / "link.txt").symlink_to(linked)
    (here / "data").symlink_to(shared)
    repair_modes([shared, here, logs, here / "data"])
    assert [mode_of(path) for path in (shared, linked, here)] == [0o755, 0o644, 0o755]


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user of this machine can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="modes-") as name:
        yield make(Path(name) / "open", 0o755)


def test_what_others_can_read_is_named_and_a_secret_for_the_group_is_right(reachable: Path) -> None:
    reachable.parent.chmod(0o755)
    files = [make(reachable / name, mode) for name, mode in (("a.env", 0o644), ("b.env", 0o640), ("c.env", 0o604))]
    assert list(open_to_others([*files, reachable / "absent"])) == [(files[0], 0o644), (files[2], 0o604)]
    reachable.chmod(0o700)
    assert list(open_to_others(files)) == []
