"""What was measured on what: the machine and the versions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

LIBRARIES = ("fast-mail-parser", "imapclient", "redis", "hiredis", "sqlalchemy", "zstandard")


def describe() -> str:
    """As lines of a list."""
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n".join(
        [
            (
                f"- {os.cpu_count()} × {_processor()}, {memory:.0f} GiB, {platform.system()} {platform.release()}; "
                f"load {load:.1f} when it began"
            ),
            f"- Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {libraries}",
            f"- {_said('redis-server', '--version', 3)}, Dovecot {_said('dovecot', '--version', 2)}",
        ]
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.machine()


def _said(program: str, option: str, words: int) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")
    if not path:
        return f"no {program}"
    said = subprocess.run([path, option], capture_output=True, text=True, check=False).stdout
    return " ".join(said.split()[:words])
