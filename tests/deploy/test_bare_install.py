"""The package as docs/install.md installs it: by pip, in a new environment, in a folder without a checkout."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.documented import commands
from tests.acceptance.test_fresh_clone import index_environment
from tests.deploy.machines import NETWORK_TROUBLE, call, done_by, last_line, not_tried
from tests.servers.processes import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1500)]
PAGE = ROOT / "docs" / "install.md"


def test_the_package_installs_runs_and_ends(folder: Path, roots: object):  # which are made meanwhile
    work = folder / "a package"  # quotes do what they should
    for name in ("home", "mail", "dist"):
        (work / name).mkdir(parents=True, exist_ok=True)
    done_by(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work / "dist", cwd=ROOT)
    (wheel,) = (work / "dist").glob("*.whl")
    done_by(sys.executable, "-m", "venv", work / "venv")
    environment = index_environment() | {"HOME": str(work / "home"), "PATH": f"{work}/venv/bin:{os.environ['PATH']}"}
    environment |= {"OPS_PORT": "0", "METRICS_PORT": "0"}  # others may have the usual ones

    def typed(command: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=work / "mail",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode and any(trouble in done.stderr for trouble in NETWORK_TROUBLE):
            not_tried(f"pip reaches no package index: {last_line(done.stderr)}")
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
        return done.stdout

    lines = [
        each
        for each in commands(PAGE)
        if each.startswith(("pip install 'email-ingestion[sandbox]'", "email-ingestion "))
    ]
    install, start, stop, init = lines[:4]
    try:
        typed(install.replace("'email-ingestion[sandbox]'", f"'{wheel}[sandbox]'"))
        screen = typed(start)
        assert "300 messages travelled" in screen
        assert "email-ingestion stop" in screen  # there is no checkout, and no script
        assert not re.search(r"scripts/|\.venv", screen), screen
        for command in ("status", "search receipt", "backup", "doctor || [ $? = 1 ]"):
            typed(f"email-ingestion {command}")
    finally:
        if (work / "venv/bin/email-ingestion").exists():
            subprocess.run(["bash", "-c", stop], cwd=work / "mail", env=environment, check=False, timeout=300)
    typed(stop)
    typed(init.replace("/srv/mail", shlex.quote(str(work / "elsewhere"))) + " --systemd --compose")
    assert (work / "elsewhere/deploy/docker/compose.yaml").exists()
    assert {path.name for path in (work / "mail").iterdir()} <= {"data", "logs", "pids", "backups", "config"}
    home = work / "home"  # where pip, and what it calls, may have caches
    assert [path for path in home.rglob("*") if "email" in path.relative_to(home).as_posix()] == []
    assert call("pgrep", "-f", f"{work}/venv").stdout == ""
