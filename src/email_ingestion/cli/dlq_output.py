"""Prints dead letters: tables on a terminal, tab separated otherwise, or JSON; never a word of the mail.

An error's text or a foreign field may quote a message, so everything passes through `redact` and, of a traceback, only
the frames and our own errors' texts are shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Records, printable, say, show
from email_ingestion.ops.redaction import WITHHELD, redact
from email_ingestion.stream.dead_letters import DeadLetter, FailureGroup

LETTER_COLUMNS = (
    *("id", "dead_at", "reason", "error_type", "attempts", "replays", "account", "fingerprint", "email_id"),
    "sink",
)
# A terminal is 80 columns wide: `dlq show` and --json have the rest.
LETTER_TABLE = ("id", "dead_at", "reason", "error_type", "attempts", "fingerprint")
GROUP_COLUMNS = ("fingerprint", "count", "first", "last", "example", "reason", "error_type", "error")
GROUP_TABLE = ("fingerprint", "count", "last", "reason", "error_type", "error")
WHOLE = {"id", "fingerprint", "dead_at", "last", "reason", "count", "attempts"}
TITLES = {"dead_at": "died (UTC)", "last": "last (UTC)", "error_type": "class", "attempts": "tries"}
ERROR_LINE = re.compile(r"(?P<kind>[\w.]+)(?P<parents> \([\w, ]+\))?(?P<text>: .*)?")


def show_letters(letters: Sequence[DeadLetter], *, as_json: bool) -> None:
    """Print a list of dead letters, without the texts and tracebacks of their errors."""
    show(
        [_record(dead_letter, LETTER_COLUMNS) for dead_letter in letters],
        as_json=as_json,
        make_table=partial(_table, LETTER_TABLE),
    )


def show_groups(groups: Sequence[FailureGroup], *, as_json: bool) -> None:
    """Print dead letters grouped by fingerprint."""
    show(groups_as_json(groups), as_json=as_json, make_table=partial(_table, GROUP_TABLE))


def groups_as_json(groups: Sequence[FailureGroup]) -> list[dict[str, Any]]:
    """Return dead letters grouped by fingerprint, as JSON has them."""
    return [_record(group, GROUP_COLUMNS) for group in groups]


def show_letter(dead_letter: DeadLetter, *, as_json: bool) -> None:
    """Print everything that is known of one dead letter, except the message."""
    record = {name: _redacted(value) for name, value in asdict(dead_letter).items() if name != "traceback"}
    trace = safe_traceback(dead_letter.traceback)
    if as_json:
        typer.echo(json.dumps(record | {"traceback": trace}, indent=2))
        return
    for name, value in record.items():
        typer.echo(f"{name + ':':<13} {printable(value) or '-'}")
    if trace:
        typer.echo(f"\n{trace}")


def safe_traceback(trace: str) -> str:
    """Return the frames of a traceback, and the class of every error; its text too when the class is ours."""
    kept, in_frames = [], False
    for line in trace.splitlines():
        if line.startswith(("Traceback (", "  File ")):
            kept.append(line)
            in_frames = True
        elif in_frames and line.startswith("    "):
            kept.append(line)
        elif in_frames:
            # The first line after the frames names the error; whatever follows may be the rest of its text.
            kept.append(_safe_error_line(line))
            in_frames = False
    return "\n".join(printable(line) for line in kept)


def _safe_error_line(line: str) -> str:
    match = ERROR_LINE.fullmatch(line)
    if match is None:
        return WITHHELD
    ours = match["kind"].startswith("email_ingestion.") or match["parents"]
    text = f": {WITHHELD}" if match["text"] and not ours else redact(match["text"] or "")
    return f"{match['kind']}{match['parents'] or ''}{text}"


def _record(record: DeadLetter | FailureGroup, names: Sequence[str]) -> dict[str, Any]:
    return {name: _redacted(getattr(record, name)) for name in names}


def _redacted(value: Any) -> Any:
    return redact(value) if isinstance(value, str) else value


def _table(columns: Sequence[str], records: Records) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in columns:
        # What an operator copies into the next command stays in one piece.
        table.add_column(TITLES.get(name, name), no_wrap=name in WHOLE, overflow="fold")
    for record in records:
        # Text, not str: an error's text must not be read as rich's markup.
        table.add_row(*(Text(_short(name, printable(record[name]))) for name in columns))
    return table


def _short(name: str, value: str) -> str:
    return value[5:19].replace("T", " ") if name in {"dead_at", "last"} else value


def exit_code(found: Sequence[object]) -> int:
    """Return the exit code of a search; say so when nothing was found."""
    if found:
        return OK
    say("no dead letters")
    return NEGATIVE
