"""`make release`: the same bytes from the same commit, which the package index takes, with the changelog as notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from email_ingestion import __version__
from tests.deploy.machines import NETWORK_TROUBLE, call, copy_checkout, last_line, not_tried

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


def test_a_release_is_made_twice_the_same(folder: Path):
    sums = []
    checkouts = [copy_checkout(folder / f"release-{number}") for number in (1, 2)]
    for here in checkouts:
        (here / "CHANGELOG.md").write_text(
            f"# Changelog\n\n## [{__version__}] - 2026-01-31\n\n### Added\n\n- Mail.\n\n## [0.0.1]\n"
        )
        done = call("scripts/release.sh", "--no-image", cwd=here, environment={"SOURCE_DATE_EPOCH": "1767225600"})
        if done.returncode and any(trouble in done.stderr for trouble in NETWORK_TROUBLE):
            not_tried(f"pip reaches no package index: {last_line(done.stderr)}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (here / "dist" / "NOTES.md").read_text().split() == ["###", "Added", "-", "Mail."]
        sums.append((here / "dist" / "SHA256SUMS").read_text())
    assert sums[0] == sums[1]
    assert sums[0].count(__version__) == 2
    (here / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n- Mail.\n")
    refused = call("scripts/release.sh", "--no-image", cwd=here)
    assert (refused.returncode, f"no section [{__version__}]" in refused.stderr) == (1, True)
