"""Every promise, once broken in a copy of the product, makes a test fail: tests that cannot fail prove nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations.mutants import MUTANTS, Edit, Mutant
from tests.servers.processes import ROOT

COPIED = (
    *("src", "tests", "bench", "config", "docs", "deploy", "scripts"),
    *("producer.py", "worker.py", "pyproject.toml", "requirements.lock", "README.md"),
)
TESTS_FAILED = 1  # pytest's exit code; others say that it could not run them

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def _copy(to: Path) -> Path:
    to.mkdir(parents=True)
    for name in COPIED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, to / name)
    return to


def _apply(edit: Edit, copy: Path) -> None:
    path = copy / edit.file
    text = path.read_text()
    assert text.count(edit.old) == 1, f"{edit.file} has {text.count(edit.old)} times: {edit.old}"
    path.write_text(text.replace(edit.old, edit.new))


def _run(copy: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    paths = f"{copy / 'src'}{os.pathsep}{copy}"
    return subprocess.run(
        command, cwd=copy, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Whether each chosen test passes while nothing is broken, in a copy like the mutants'."""
    copy = _copy(tmp_path_factory.mktemp("whole") / "copy")
    where = subprocess.run(
        [sys.executable, "-c", "import email_ingestion; print(email_ingestion.__file__)"],
        env=os.environ | {"PYTHONPATH": str(copy / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(copy)), "the copy is not what the tests run on"
    return {test: _run(copy, (test,)).returncode == 0 for test in sorted({t for m in MUTANTS for t in m.tests})}


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_broken_promise_is_noticed(mutant: Mutant, passing: dict[str, bool], tmp_path: Path):
    assert all(passing[test] for test in mutant.tests), "its tests fail on the whole product too"
    copy = _copy(tmp_path / "copy")
    for edit in mutant.edits:
        _apply(edit, copy)
    result = _run(copy, mutant.tests)
    assert result.returncode == TESTS_FAILED, result.stdout[-3000:] + result.stderr[-3000:]
