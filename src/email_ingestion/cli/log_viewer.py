"""`email-ingestion logs` and `errors`: the log files of this machine, searched and summed up."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from email_ingestion.cli.common import parse_duration
from email_ingestion.cli.exit_codes import FAILED, NEGATIVE, OK
from email_ingestion.cli.output import Json, printable, say, show
from email_ingestion.errors import RedisConnectionError, fingerprint_of
from email_ingestion.fleet.log_files import LogFilter, Record, follow_records, read_records, unread_logs
from email_ingestion.settings import load_settings

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LEADING = ("timestamp", "level", "component", "event")  # in this order, without their names
LEFT_OUT = (*LEADING, "instance", "pid")
TEXTS = ("exception", "stacks", "output")  # of many lines, which a terminal shows below the record
MESSAGE_CHARACTERS = 120


def logs(
    since: Annotated[str, typer.Option("--since", metavar="SPAN", help="How far back: 90s, 10m, 24h.")] = "10m",
    level: Annotated[Level, typer.Option("--level", help="This level and above.")] = "INFO",
    component: Annotated[
        Literal["producer", "worker", "web"] | None, typer.Option("--component", help="Only these.")
    ] = None,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    as_json: Json = False,
) -> int:
    """Print what the processes of this machine logged, by time. Exit code 1 when that is nothing.

    Exit code 2 when nothing was found and not everything could be read: then it is said where to look.

    Examples:
      email-ingestion logs --since 1h --level ERROR
      email-ingestion logs --component worker --follow
      email-ingestion logs --json | jq 'select(.duration_ms > 1000)'
    """
    settings = load_settings()
    wanted = LogFilter(datetime.now(UTC) - parse_duration(since, "--since"), level, component)
    nothing, on_terminal, gaps = True, sys.stdout.isatty(), list[str]()
    if following:
        for gap in unread_logs(settings.log_dir):
            say(gap)
    try:
        for record in (
            follow_records(settings.log_dir, wanted) if following else read_records(settings.log_dir, wanted, gaps)
        ):
            nothing = False
            typer.echo(json.dumps(record) if as_json else _text(record) if on_terminal else _line(record))
    except KeyboardInterrupt:
        if not following:
            raise
        return OK
    for gap in gaps:
        say(gap)
    if not nothing:
        return OK
    if gaps:
        return FAILED
    say("nothing like that was logged")
    return NEGATIVE


def errors(
    last: Annotated[str, typer.Option("--last", metavar="SPAN", help="How far back: 10m, 24h, 7d.")] = "24h",
    as_json: Json = False,
) -> int:
    """Sum up what went wrong, alike by alike: errors in the log files, and dead letters.

    Exit code 0 when nothing was, 1 when something was, 2 when nothing was found and not everything could be read.

    Examples:
      email-ingestion errors
      email-ingestion errors --last 7d --json
    """
    settings = load_settings()
    since = datetime.now(UTC) - parse_duration(last, "--last")
    gaps: list[str] = []
    rows = _kinds(read_records(settings.log_dir, LogFilter(since, "ERROR"), gaps))
    try:
        rows += _dead_kinds(since)
    except RedisConnectionError as error:
        gaps.append(f"the dead letters are not among these: {error}")
    show(sorted(rows, key=lambda row: (-row["count"], row["fingerprint"])), as_json=as_json)
    for gap in gaps:
        say(gap)
    if rows:
        return NEGATIVE
    nothing = "no error was logged, and there is no dead letter; whether all runs, says email-ingestion status"
    say("whether something went wrong is not known" if gaps else nothing)
    return FAILED if gaps else OK


def _text(record: Record) -> str:
    lines = [line for name in TEXTS for line in str(record.get(name, "")).splitlines()]
    return "\n    ".join([_line(record, (*LEFT_OUT, *TEXTS)), *map(printable, lines)])


def _line(record: Record, left_out: Sequence[str] = LEFT_OUT) -> str:
    fields = " ".join(f"{name}={printable(value)}" for name, value in record.items() if name not in left_out)
    head = " ".join(printable(record.get(name, "")) for name in LEADING)
    return f"{head} {fields}".rstrip()


def _kinds(found: Iterable[Record]) -> list[dict[str, Any]]:
    """Group records with the same event, class of error and words into one row."""
    rows: dict[str, dict[str, Any]] = {}
    for record in found:
        message = str(record.get("message", ""))
        row = rows.setdefault(
            fingerprint_of(record["event"], str(record.get("error_type")), message),
            {"count": 0, "first": record["timestamp"]},
        )
        # Repeated failures are logged at most every 30 s, with the number of suppressed ones.
        suppressed = record.get("suppressed", 0)
        row["count"] += 1 + (suppressed if isinstance(suppressed, int) else 0)
        row |= {
            "last": record["timestamp"],
            "source": f"{record.get('component', '')} log",
            "event": record["event"],
            "error_type": record.get("error_type"),
            "message": message[:MESSAGE_CHARACTERS],
        }
    return [{"fingerprint": fingerprint, **row} for fingerprint, row in rows.items()]


def _dead_kinds(since: datetime) -> list[dict[str, Any]]:
    from email_ingestion.cli.common import open_redis  # noqa: PLC0415 - `logs` needs no Redis
    from email_ingestion.ops.redaction import redact  # noqa: PLC0415
    from email_ingestion.stream import DeadLetterQueue  # noqa: PLC0415
    from email_ingestion.stream.dead_letters import group_failures  # noqa: PLC0415

    _, link = open_redis("errors")
    letters = (each for each in DeadLetterQueue(link).letters() if datetime.fromisoformat(each.dead_at) >= since)
    return [
        {
            "fingerprint": kind.fingerprint,
            "count": kind.count,
            "first": kind.first,
            "last": kind.last,
            "source": "dead letters",
            "event": kind.reason,
            "error_type": kind.error_type,
            "message": redact(kind.error)[:MESSAGE_CHARACTERS],
        }
        for kind in group_failures(letters)
    ]
