"""A command of ours in this process: as from a shell, without the second that a Python takes to start."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from email_ingestion.cli.exits import run
from tests.servers.processes import Place


def command(here: Place, function: Callable[..., Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Run it in the place's folder and environment, to its exit code and its output."""
    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd()
    os.chdir(here.folder)
    try:
        with (
            patch.dict(os.environ, here.environment, clear=True),
            patch("sys.argv", ["command", *options]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            run(function)
    except SystemExit as end:
        return subprocess.CompletedProcess(list(options), int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        os.chdir(before)
