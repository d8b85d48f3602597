"""Lets `python producer.py` work with whatever Python an operator types: goes on in the project's `.venv`."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def enter_venv() -> None:
    """Return when the package can be imported; otherwise start again in `.venv`, or say how to make it."""
    if find_spec("email_ingestion"):
        return
    if not VENV.exists() or Path(sys.prefix) == VENV.parent.parent:
        sys.exit(f"email-ingestion is not installed: run {ROOT}/scripts/start.sh --sandbox once, it makes .venv")
    command = [str(VENV), *sys.orig_argv[1:]]
    if os.name == "nt":
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)  # noqa: S606 - our own interpreter
