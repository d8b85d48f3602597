"""The table of commands leads to commands that explain themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from email_ingestion.cli.common import OrderTurns
from email_ingestion.cli.main import COMMANDS, GROUPS, app

HEAVY = ("fastapi", "sqlalchemy", "redis", "google.auth", "imapclient")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_explains_itself(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0, shown.output
    assert name in shown.output


def test_help_is_one_screen_with_every_command_once() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    lines = shown.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    listed = " ".join(lines[3:-2]).split()
    assert all(listed.count(name) == 1 for name in COMMANDS)
    assert {"--version", "--install-completion", "--show-completion", "--help"} <= set(listed)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("st", {"start", "starts", "stop", "status"}),
        ("dlq re", {"replay"}),
        ("--ver", {"--version"}),
        ("logs --fol", {"--follow"}),
    ],
)
def test_the_shell_completes_commands_and_options(words: str, completed: set[str], tmp_path: Path) -> None:
    line = f"email-ingestion {words}"
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_EMAIL_INGESTION_COMPLETE": "complete_bash"}
    script = Path(sys.executable).with_name("email-ingestion")
    shown = subprocess.run(
        [script], env=os.environ | asked, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30
    )
    assert set(shown.stdout.split()) == completed


def test_completion_can_be_printed_for_a_shell(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("email-ingestion")
    shown = subprocess.run(
        [script, "--show-completion", "bash"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30
    )
    assert "_EMAIL_INGESTION_COMPLETE=complete_bash" in shown.stdout


def test_a_mistyped_command_is_told_what_may_be_meant() -> None:
    shown = CliRunner().invoke(app, ["statsu"])
    assert shown.exit_code != 0
    assert "Did you mean 'status'" in shown.output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_how_its_help_begins(name: str) -> None:
    table: Any = typer.main.get_command(app)
    _, line = COMMANDS[name]
    assert line.endswith(".")
    assert table.get_command(None, name).help.startswith(line.removesuffix("."))


@pytest.mark.parametrize(
    ("words", "heavy"), [("--help", HEAVY), ("blobs --help", ("sqlalchemy",)), ("evidence --help", HEAVY)]
)
def test_help_does_not_wait_for_what_work_needs(words: str, heavy: tuple[str, ...]) -> None:
    """Measured in a process of its own: this one has imported everything."""
    asked = (
        "import atexit, sys; from email_ingestion.cli.main import main; "
        f"atexit.register(lambda: print([name for name in {heavy!r} if name in sys.modules])); main()"
    )
    command = [sys.executable, "-c", asked, *words.split()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: " in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("process", "heavy"),
    [
        ("app.producer", ("sqlalchemy", "rich", "pydantic.v1", "opentelemetry.sdk")),
        ("app.worker", ("rich", "pydantic.v1", "opentelemetry.sdk")),
        ("web.server", ("opentelemetry.sdk.metrics",)),
    ],
)
def test_a_process_starts_without_what_only_a_look_at_the_database_or_a_terminal_needs(
    process: str, heavy: tuple[str, ...]
) -> None:
    asked = f"import email_ingestion.{process}, sys; print([each for each in {heavy!r} if each in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_a_process_has_read_an_order_by_its_second_reading_after_it() -> None:
    turns = OrderTurns()
    assert [turns.has_read("worker", at) for at in (1.0, 1.0, 2.0, 2.0)] == [
        False
    ] * 4  # the reading of 2.0 may be older
    assert turns.has_read("worker", 3.0)
    assert not turns.has_read("producer", 3.0)
    assert not any(turns.has_read("blind", None) for _ in range(9))
