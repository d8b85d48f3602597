"""`scripts/prepare_release.py`: [Unreleased] becomes a version, in every file that says one, or nothing is written."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from email_ingestion import __version__
from email_ingestion.ledger.migrate import HEAD, RELEASES
from tests.servers.processes import ROOT

FILES = (
    "CHANGELOG.md",
    "deploy/docker/Dockerfile",
    "docs/install.md",
    "docs/upgrading.md",
    "scripts/prepare_release.py",
    "src/email_ingestion/__init__.py",
    "src/email_ingestion/ledger/migrate.py",
)
NEXT = "7.0.0"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    with (tmp_path / "docs/upgrading.md").open("a") as page:
        page.write(f"\n### {__version__} to {NEXT}\n\n- Nothing.\n")
    changelog = tmp_path / "CHANGELOG.md"
    text = re.sub(r"\n## \[Unreleased\]\n", "\n## [Unreleased]\n\n### Fixed\n\n- A thing.\n", changelog.read_text())
    changelog.write_text(text)
    return tmp_path


def prepared(tree: Path, version: str = NEXT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/prepare_release.py", version],
        cwd=tree,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1767225600"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def texts(tree: Path) -> dict[str, str]:
    return {name: (tree / name).read_text() for name in FILES}


def test_what_is_unreleased_becomes_the_version_wherever_one_stands(tree: Path):
    before = texts(tree)
    done = prepared(tree)
    assert done.returncode == 0, done.stderr
    after = texts(tree)
    changelog = after["CHANGELOG.md"]
    assert f"\n## [Unreleased]\n\n## [{NEXT}] - 2026-01-01\n\n### Fixed\n\n- A thing.\n" in changelog
    assert changelog.replace(f"\n## [{NEXT}] - 2026-01-01\n", "") == before["CHANGELOG.md"]
    assert f'\n__version__ = "{NEXT}"\n' in after["src/email_ingestion/__init__.py"]
    assert f"\nARG VERSION={NEXT}\n" in after["deploy/docker/Dockerfile"]
    releases = re.search(r"^RELEASES = (\{.*\})", after["src/email_ingestion/ledger/migrate.py"], re.MULTILINE)
    assert releases
    assert ast.literal_eval(releases[1]) == RELEASES | {NEXT: HEAD}
    rows = re.findall(r"^\| (\d+\.\d+\.\d+) \| (\d{4}) \| ", after["docs/install.md"], re.MULTILINE)
    assert dict(rows) == RELEASES | {NEXT: HEAD}
    assert after["docs/upgrading.md"] == before["docs/upgrading.md"]

    refused = prepared(tree)  # once is enough
    assert (refused.returncode, f"does not come after {NEXT}" in refused.stderr) == (1, True)
    assert texts(tree) == after


@pytest.mark.parametrize(
    ("version", "wrong", "said"),
    [
        ("7.0", None, "is no version"),
        ("07.0.0", None, "is no version"),
        (__version__, None, "does not come after"),
        ("0.0.9", None, "does not come after"),
        ("7.0.1", None, "### "),  # docs/upgrading.md does not know it
        (
            NEXT,
            ("CHANGELOG.md", r"(?s)(\n## \[Unreleased\]\n).*?(\n## \[)", r"\1\n### Added\n\2"),
            "nothing to release",
        ),
        (NEXT, ("CHANGELOG.md", r"\n## \[Unreleased\]\n", "\n## Unreleased\n"), "not one section"),
        (NEXT, ("deploy/docker/Dockerfile", "ARG VERSION=.*", "ARG RELEASE=1"), "should have one"),
        (NEXT, ("docs/install.md", r"\| 0001 to", "| 1 to"), "should have one"),
    ],
)
def test_what_stands_in_the_way_is_said_and_nothing_is_written(
    tree: Path, version: str, wrong: tuple[str, str, str] | None, said: str
):
    if wrong:
        name, old, new = wrong
        (tree / name).write_text(re.sub(old, new, (tree / name).read_text()))
    before = texts(tree)
    done = prepared(tree, version)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr
    assert texts(tree) == before


def test_the_image_is_labelled_with_the_version():
    assert f"\nARG VERSION={__version__}\n" in (ROOT / "deploy/docker/Dockerfile").read_text()
