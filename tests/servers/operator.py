"""An operator at the keyboard of a place: commands as they are typed, in this process, which is many times quicker."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from typing import Any
from unittest.mock import patch

import pytest
import typer

from email_ingestion.cli.app import app
from email_ingestion.cli.exits import leave
from tests.servers.processes import Place


def typed(here: Place, *words: str) -> subprocess.CompletedProcess[str]:
    """What `email-ingestion` with these words does in that folder and environment."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, here.environment, clear=True),
        patch("sys.argv", ["email-ingestion", *words]),
        contextlib.chdir(here.folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        leave(typer.main.get_command(app))
    code = ended.value.code
    assert isinstance(code, int)
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def told(here: Place, *words: str, ends: int = 0) -> Any:
    """What it answers with `--json`."""
    done = typed(here, *words, "--json")
    assert done.returncode == ends, done.stderr + done.stdout
    return json.loads(done.stdout)
