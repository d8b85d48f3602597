"""How dead letters are shown: tables on a terminal, tab separated otherwise, or JSON; never a word of the mail.

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
KIND_COLUMNS = ("fingerprint", "count", "first", "last", "example", "reason", "error_type", "error")
KIND_TABLE = ("fingerprint", "count", "last", "reason", "error_type", "error")
WHOLE = {"id", "fingerprint", "dead_at", "last", "reason", "count", "attempts"}
TITLES = {"dead_at": "died (UTC)", "last": "last (UTC)", "error_type": "class", "attempts": "tries"}
ERROR_LINE = re.compile(r"(?P<kind>[\w.]+)(?P<parents> \([\w, ]+\))?(?P<text>: .*)?")


def show_letters(letters: Sequence[DeadLetter], *, as_json: bool) -> None:
    """A list of letters; their errors' texts and tracebacks are for `show_letter`."""
    show([_record(letter, LETTER_COLUMNS) for letter in letters], as_json=as_json, drawn=partial(_table, LETTER_TABLE))


def show_kinds(found: Sequence[FailureGroup], *, as_json: bool) -> None:
    """Letters by fingerprint."""
    show(kinds_as_json(found), as_json=as_json, drawn=partial(_table, KIND_TABLE))


def kinds_as_json(found: Sequence[FailureGroup]) -> list[dict[str, Any]]:
    """Letters by fingerprint as part of a larger JSON answer."""
    return [_record(kind, KIND_COLUMNS) for kind in found]


def show_letter(letter: DeadLetter, *, as_json: bool) -> None:
    """Everything that is known of one letter, except the message."""
    record = {name: _told(value) for name, value in asdict(letter).items() if name != "traceback"}
    trace = told_traceback(letter.traceback)
    if as_json:
        typer.echo(json.dumps(record | {"traceback": trace}, indent=2))
        return
    for name, value in record.items():
        typer.echo(f"{name + ':':<13} {printable(value) or '-'}")
    if trace:
        typer.echo(f"\n{trace}")


def told_traceback(trace: str) -> str:
    """The frames, and of each error its class; its text too when the class is ours."""
    kept, in_frames = [], False
    for line in trace.splitlines():
        if line.startswith(("Traceback (", "  File ")):
            kept.append(line)
            in_frames = True
        elif in_frames and line.startswith("    "):
            kept.append(line)
        elif in_frames:
            # The first line after the frames names the error; whatever follows may be the rest of its text.
            kept.append(_told_error(line))
            in_frames = False
    return "\n".join(printable(line) for line in kept)


def _told_error(line: str) -> str:
    match = ERROR_LINE.fullmatch(line)
    if match is None:
        return WITHHELD
    ours = match["kind"].startswith("email_ingestion.") or match["parents"]
    said = f": {WITHHELD}" if match["text"] and not ours else redact(match["text"] or "")
    return f"{match['kind']}{match['parents'] or ''}{said}"


def _record(record: DeadLetter | FailureGroup, names: Sequence[str]) -> dict[str, Any]:
    return {name: _told(getattr(record, name)) for name in names}


def _told(value: Any) -> Any:
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


def answer(found: Sequence[object]) -> int:
    """The exit code for what was found; says so when it is nothing."""
    if found:
        return OK
    say("no dead letters")
    return NEGATIVE
