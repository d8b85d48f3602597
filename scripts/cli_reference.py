"""Write docs/cli.md from the commands themselves: `python scripts/cli_reference.py`. A test keeps the page true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from email_ingestion.cli.backup import backup, restore_backup
from email_ingestion.cli.main import app, command_groups
from email_ingestion.cli.oauth2 import oauth2
from email_ingestion.cli.processes import producer, worker

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
EXAMPLES = "\nExamples:\n"
PROGRAMS: dict[str, Callable[..., Any]] = {
    "python producer.py": producer,
    "python worker.py": worker,
    "python -m src.auth.oauth2_gmail": oauth2,
    "python scripts/backup.py": backup,
    "python scripts/restore.py": restore_backup,
}
HEAD = """# Every command

Made by `python scripts/cli_reference.py` from the commands themselves; a test keeps it true. `--help` says the same.

**Exit codes**, of every command: 0 ok · 1 negative answer ("there is none" of a command that looks for something, "not
all is well" of one that asks for that) · 2 failed · 64 wrong usage · 78 wrong configuration · 130 interrupted · 141
nobody read on (`… | head -1`). Errors are one sentence on stderr. Ctrl-C ends `status --watch` and `logs --follow`
with 0.

**Output**: on a terminal a table, or one line per value where that is wider than the terminal; in a pipe tabs below a
header; with `--json` a list of objects for a command that lists, one object for one that reports, both also when there
is nothing. `logs --json` is the exception: one object per line, as it comes.

**Completion**: `email-ingestion --install-completion` once, for bash, zsh, fish or PowerShell.
"""


def reference() -> str:
    """Return the page."""
    top: Any = typer.main.get_command(app)
    lines = [HEAD]
    for heading, names in command_groups().items():
        lines.append(f"## {heading}\n")
        for name in names:
            lines += _sections(f"email-ingestion {name}", top.get_command(None, name))
    lines.append("## Processes and scripts\n")
    for call, function in PROGRAMS.items():
        program = typer.Typer(add_completion=False)
        program.command()(function)
        lines += _sections(call, typer.main.get_command(program))
    return "\n".join(lines).rstrip() + "\n"


def _sections(call: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, one in command.commands.items():
            yield from _sections(f"{call} {name}", one)
        return
    text, _, examples = (command.help or "").partition(EXAMPLES)
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words = "".join(f" {_escaped(_metavar(param))}" for param in arguments)
    yield f"### {call}{words}\n"
    yield f"{text.strip()}\n"
    rows = [_row(param) for param in command.params if param.help]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows]) + "\n"
    if examples:
        yield "```bash\n" + "\n".join(line.strip() for line in examples.strip().splitlines()) + "\n```\n"


def _row(param: Any) -> str:
    names = param.opts if param.param_type_name == "option" else [_metavar(param)]
    names = [f"`{name}`" for name in (*names, *param.secondary_opts)]
    plain = isinstance(param.default, str | int | float) and not isinstance(param.default, bool) and param.default != ""
    shown = plain and param.param_type_name == "option" and param.show_default is not False
    default = f" Default: `{param.default}`." if shown else ""
    return f"| {', '.join(names)} | {_escaped(param.help)}{default} |"


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(reference())
