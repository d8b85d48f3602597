"""Runs `python producer.py` in the project's `.venv`, whichever Python the operator calls."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def reexec_in_venv() -> None:
    """Return if the package can be imported; otherwise re-execute in `.venv`, or exit with a hint how to make it."""
    if find_spec("email_ingestion"):
        return
    if not VENV.exists() or Path(sys.prefix) == VENV.parent.parent:
        sys.exit(f"email-ingestion is not installed: run {ROOT}/scripts/start.sh --sandbox once, it makes .venv")
    command = [str(VENV), *sys.orig_argv[1:]]
    if os.name == "nt":
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)  # noqa: S606 - our own interpreter
