"""`make version` and `make release`: the same bytes from the same commit, which the package index takes, an image that
says its version, and manifests that the schemas of Kubernetes allow.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from email_ingestion import __version__
from tests.deploy.machines import NETWORK_TROUBLE, Podman, call, copy_checkout, done_by, last_line, not_tried
from tests.servers.processes import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1500)]
NEXT = "7.0.0"
DAY = {"SOURCE_DATE_EPOCH": "1767225600"}
KUBERNETES = ROOT / "deploy" / "kubernetes"
# Resources of other projects, whose schemas the validator does not have.
OTHERS = {"Kustomization", "ScaledObject", "ServiceMonitor", "PrometheusRule"}


def release(here: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = call("scripts/release.sh", *words, cwd=here, environment=DAY | variables, seconds=900)
    if done.returncode and any(trouble in done.stderr for trouble in NETWORK_TROUBLE):
        not_tried(f"pip reaches no package index: {last_line(done.stderr)}")
    return done


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Path:
    """A checkout whose next version is made, with the tools of a release once one was made."""
    here = copy_checkout(folder / "release-1")
    page = here / "docs" / "upgrading.md"
    page.write_text(f"{page.read_text()}\n### {__version__} to {NEXT}\n\n- Nothing.\n")
    changelog = here / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## [Unreleased]\n\n### Added\n\n- Mail.\n\n## [0.0.1]\n\n- Nothing.\n")
    refused = release(here, "--no-image")
    assert (refused.returncode, f"no section [{__version__}]" in refused.stderr) == (1, True)
    done_by("make", "version", f"VERSION={NEXT}", cwd=here, environment=DAY)
    done = release(here, "--no-image")
    assert done.returncode == 0, done.stdout + done.stderr
    return here


def test_a_release_is_made_twice_the_same(folder: Path, prepared: Path):
    first = prepared / "dist"
    assert (first / "NOTES.md").read_text().split() == ["###", "Added", "-", "Mail."]
    assert (first / "SHA256SUMS").read_text().count(NEXT) == 2
    again = folder / "release-2"
    done_by("cp", "-a", prepared, again)
    shutil.rmtree(again / "dist")
    done_by("git", "init", "-q", cwd=again)
    done_by("git", "add", "--all", cwd=again)
    author = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    done_by("git", *author, "commit", "-q", "-m", f"Release {NEXT}", cwd=again)
    done = release(again, "--no-image")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (again / "dist" / "SHA256SUMS").read_text() == (first / "SHA256SUMS").read_text()

    (again / "README.md").write_text("something else")
    refused = release(again, "--no-image")
    assert (refused.returncode, "README.md" in refused.stderr) == (1, True), refused.stderr


def test_a_release_has_an_image_of_its_version(prepared: Path, podman: Podman):
    # Debian's client of PostgreSQL, and the base that stands in for the official one.
    words = ("--build-arg", "POSTGRESQL_CLIENT=debian", "--network=host", "--pull=never")
    done = release(prepared, *words, **podman.environment, CONTAINER_ENGINE="podman")
    if done.returncode and any(trouble in done.stdout for trouble in NETWORK_TROUBLE):
        not_tried(f"the image cannot be built without a network: {last_line(done.stderr)}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"image email-ingestion:{NEXT}: " in done.stdout
    found = json.loads(podman.done_by("image", "inspect", f"email-ingestion:{NEXT}"))[0]
    assert found["Labels"]["org.opencontainers.image.version"] == NEXT
    assert "healthcheck.py" in str(found["Healthcheck"])


def test_the_schemas_of_kubernetes_allow_every_manifest(prepared: Path, folder: Path):
    built = folder / "built.yaml"
    built.write_text(done_by("kubectl", "kustomize", KUBERNETES) if shutil.which("kubectl") else "")
    files = [*sorted(KUBERNETES.glob("*.yaml")), *([built] if built.stat().st_size else [])]
    done = call(prepared / ".venv-release/bin/kubernetes-validate", "--strict", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    told = (done.stdout + done.stderr).splitlines()
    unknown = {line.partition(" for kind ")[2].split()[0] for line in told if "find schema" in line}
    assert unknown == OTHERS
    assert len([line for line in told if " passed for resource " in line]) >= 20
