"""`make docs`: the pages become a site that is whole and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.processes import ROOT

LOADED = re.compile(
    r"""<(?:script|img|iframe|link [^>]*rel="(?:stylesheet|preload|icon)")[^>]*\b(?:src|href)="([^"]+)"""
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What the site is made of, as a checkout has it."""
    for name in ("docs", "config", "deploy", "bench", "tests", "examples", "src"):
        (tmp_path / name).symlink_to(ROOT / name) if name != "docs" else shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    for path in ("mkdocs.yml", "scripts/docs_site.py", *(each.name for each in ROOT.glob("*.md"))):
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def build(sources: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("mkdocs")), "build"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, check=False, cwd=sources, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(sources: Path):
    done = build(sources)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(sources / "docs").with_suffix(".html") for path in (sources / "docs").rglob("*.md")}
    made = {path.relative_to(sources / "site") for path in (sources / "site").rglob("*.html")}
    assert {Path("index.html") if page == Path("README.html") else page for page in pages} <= made
    loaded = {url for path in made for url in LOADED.findall((sources / "site" / path).read_text())}
    assert loaded
    assert not [url for url in loaded if "//" in url]


@pytest.mark.parametrize(
    ("page", "text"),
    [("accounts.md", "[gone](gone.md)"), ("accounts.md", "[gone](backup.md#no-such-section)"), ("unnamed.md", "# New")],
    ids=["no such page", "no such section", "not in the index"],
)
def test_what_leads_nowhere_ends_the_build(sources: Path, page: str, text: str):
    with (sources / "docs" / page).open("a") as file:
        file.write(f"\n\n{text}\n")
    done = build(sources)
    assert done.returncode == 1
    assert (text[text.find("(") + 1 : -1] if "(" in text else page) in done.stderr
