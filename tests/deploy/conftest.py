"""The deployment stage (`scripts/test.sh --deploy`): what it makes once, and its end after so many minutes."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.machines import (
    APP_IMAGE,
    DOCKER_PACKAGES,
    PACKAGES,
    PYTHON_IMAGE,
    DebianRoot,
    Podman,
    call,
    copy_checkout,
    not_tried,
)

STAGE_SECONDS = 25 * 60  # on two free cores it takes a dozen minutes, and all of CI has an hour
STARTED = time.monotonic()


@pytest.fixture(autouse=True)
def _in_time() -> None:
    if time.monotonic() - STARTED > STAGE_SECONDS:
        not_tried(f"the stage has taken {STAGE_SECONDS // 60} minutes already")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    if os.geteuid() != 0:
        not_tried("only root can make machines and containers")
    if call("unshare", "--mount", "--net", "--pid", "--fork", "true").returncode:
        not_tried("this machine allows no namespaces")
    kept = os.environ.get("DEPLOY_FOLDER")  # for who works on this stage: what takes minutes to make stays there
    made = Path(kept or tempfile.mkdtemp(prefix="email-ingestion-deploy-", dir="/var/tmp"))
    made.mkdir(exist_ok=True)
    made.chmod(0o755)
    yield made
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        if line.split()[1].startswith(str(made)):
            call("umount", "-l", line.split()[1])
    if not kept:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def roots(folder: Path) -> Iterator[dict[str, DebianRoot]]:
    """Both Debians are made at once, beside what is tried meanwhile."""
    made = {name: DebianRoot(folder / name, each) for name, each in (("debian", PACKAGES), ("docker", DOCKER_PACKAGES))}
    yield made
    for root in made.values():
        root.close()


@pytest.fixture(scope="session")
def debian(roots: dict[str, DebianRoot]) -> Path:
    """A Debian with systemd, Python and Redis."""
    return roots["debian"].made()


@pytest.fixture(scope="session")
def checkout(folder: Path) -> Path:
    return copy_checkout(folder / "checkout")


@pytest.fixture(scope="session")
def podman(folder: Path, debian: Path, checkout: Path) -> Iterator[Podman]:
    """Our image, built from its Dockerfile, and those that stand in for the official ones."""
    for program in ("podman", "runc"):
        if shutil.which(program) is None:
            not_tried(f"{program} is not installed (Debian: apt-get install podman runc)")
    podman = Podman(folder / "podman")
    podman.import_root(debian, PYTHON_IMAGE)
    podman.build(checkout, APP_IMAGE)
    yield podman
    podman.close()
