"""README's first command in a fresh clone, with nothing but a Python: `.venv`, mail, the next steps, the stop."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.servers.missing import missing, program
from tests.servers.processes import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
MINUTES = 15 * 60  # for an index that is far away


def clone(folder: Path) -> Path:
    """What is committed, as somebody gets it who clones the repository."""
    git = program("git", "git")
    done = subprocess.run([git, "clone", "-q", ROOT, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"this is no repository: {done.stderr}")
    return folder


def index_environment() -> dict[str, str]:
    """How this machine reaches a package index, and no more of its environment."""
    kept = re.compile(r"HOME|LANG|(PIP|SSL)_\w+|\w+_proxy", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if kept.fullmatch(name)}


def test_the_first_command_of_the_readme_works_in_a_fresh_clone(tmp_path: Path):
    folder = clone(tmp_path / "clone")
    environment = index_environment() | {"PATH": os.environ["PATH"]}

    def typed(command: str, code: int = 0) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MINUTES,
            check=False,
        )
        assert done.returncode == code, f"{command}: {done.returncode} {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    try:
        assert "nothing was ever started here" in typed("./scripts/stop.sh")
        assert "email-ingestion is not installed" in typed("python3 producer.py", code=2)
        screen = typed("./scripts/start.sh --sandbox")
        assert "300 messages travelled" in screen
        # What the screen says can be typed.
        for command in re.findall(r"^  Look at \w+ \w+ +(.+)$", screen, re.MULTILINE):
            assert typed(command)
        deliver = re.search(r"^  Deliver a message +(.+)$", screen, re.MULTILINE)
        assert deliver
        typed(deliver[1])
        typed("./scripts/stop.sh && ./scripts/start.sh --sandbox")  # the second time is seconds
        typed(".venv/bin/email-ingestion status && .venv/bin/email-ingestion doctor")
        typed("./scripts/stop.sh && rm -rf data")
        typed("cp config/.env.example .env")
        assert "GOOGLE_CLIENT_ID" in typed("python3 producer.py --auth-setup --no-browser", code=78)
        assert "IMAP_USER" in typed("./scripts/start.sh", code=78)
    finally:
        typed("./scripts/stop.sh")
