"""The table of commands leads to commands that explain themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from email_ingestion.cli.app import COMMANDS, app

HEAVY = ("fastapi", "sqlalchemy", "redis", "google.auth", "imapclient")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_explains_itself(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0, shown.output
    assert name in shown.output


def test_the_list_of_commands_has_a_line_for_each() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(f"│ {name} " in shown for name in COMMANDS)


def test_a_command_does_not_wait_for_what_others_import() -> None:
    """Measured in a process of its own: this one has imported everything."""
    asked = f"import sys, email_ingestion.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
