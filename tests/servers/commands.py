"""A command of ours in this process: as from a shell, without the second that a Python takes to start."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import typer

from email_ingestion.cli.exit_codes import leave, run
from email_ingestion.cli.main import app
from tests.servers.processes import Place


def command(here: Place, function: Callable[..., Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Run one in the place's folder and environment, to its exit code and its output."""
    return _ended(here, options, lambda: run(function))


def typed(here: Place, *words: str) -> subprocess.CompletedProcess[str]:
    """The same for `email-ingestion` with these words."""
    done = _ended(here, words, lambda: leave(typer.main.get_command(app)))
    assert "Traceback" not in done.stderr, done.stderr
    return done


def at_terminal(here: Place, *words: str) -> tuple[subprocess.Popen[bytes], int]:
    """The same as a process whose three streams are a terminal, and the descriptor of our end of that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [here.python, "-m", "email_ingestion", *words],
        cwd=here.folder,
        env=here.environment | {"TERM": "xterm", "COLUMNS": "160"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    return process, ours


def told(here: Place, *words: str, ends: int = 0) -> Any:
    """What it answers with `--json`."""
    done = typed(here, *words, "--json")
    assert done.returncode == ends, done.stderr + done.stdout
    return json.loads(done.stdout)


def _ended(here: Place, words: tuple[str, ...], go: Callable[[], Any]) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.chdir(here.folder),
            patch.dict(os.environ, here.environment, clear=True),
            patch("sys.argv", ["email-ingestion", *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            go()
    except SystemExit as end:
        return subprocess.CompletedProcess(list(words), int(end.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError(f"{words} did not end by itself")
