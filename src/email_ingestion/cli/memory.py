"""`memory` and `starts`: what a live process does with its memory, and how processes began and ended."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Annotated, Any

import typer

from email_ingestion.background import BackgroundThread
from email_ingestion.cli.common import current_user, parse_duration
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.daemon import running_pid
from email_ingestion.fleet.admin_client import AdminClient, RunningProcess, matching, running_processes
from email_ingestion.ops.start_journal import ProcessStart, read_starts, utc
from email_ingestion.settings import Settings, load_settings

MAX_SECONDS = 300.0
MEGABYTE = 1_000_000


def memory(
    process: Annotated[
        str, typer.Argument(help="producer, worker, worker-2, …; else all of this machine.", show_default=False)
    ] = "",
    span: Annotated[str, typer.Option("--for", metavar="SPAN", help="How long it is watched: 30s, 2m.")] = "30s",
    top: Annotated[int, typer.Option(min=1, max=100, help="Lines of the program shown.")] = 10,
    as_json: Json = False,
) -> int:
    """Watch the memory of live processes for a while: size, growth, and the lines that hold what they allocated.

    They go on meanwhile, more slowly. A leak is a line that holds more the longer it is watched.

    Examples:
      email-ingestion memory
      email-ingestion memory worker --for 2m --top 20
    """
    seconds = parse_duration(span, "--for").total_seconds()
    if not 1 <= seconds <= MAX_SECONDS:
        raise typer.BadParameter(f"--for is 1s to {MAX_SECONDS:.0f}s")
    settings = load_settings()
    found = matching(running_processes(settings), lambda each: process in {"", each.stem}, f"is {process or 'there'}")
    client = AdminClient(settings, current_user())

    def watch(each: RunningProcess) -> dict[str, Any]:
        body = {"seconds": seconds, "top": top}
        return {"process": each.stem, **client.post(each, "memory", body, seconds)}

    threads = BackgroundThread("memory", parallel=len(found))  # an interrupt does not wait for what they wait for
    reports = [each.result() for each in [threads.submit(partial(watch, each)) for each in found]]
    if as_json:
        typer.echo(json.dumps(reports, indent=2))
        return OK
    for report in reports:
        size, growth, held, peak = (_size(report[f"{name}_bytes"]) for name in ("rss", "rss_growth", "held", "peak"))
        typer.echo(
            f"{report['process']}: {size} resident, {growth} more than {span} before; "
            f"of what it allocated meanwhile it holds {held}, at most {peak}"
        )
        show([{**each, "bytes": _size(each["bytes"])} for each in report["lines"]], as_json=False)
        show(report["objects"], as_json=False)
    return OK


def starts(
    last: Annotated[str, typer.Option("--last", metavar="SPAN", help="Only those within: 24h, 30d.")] = "30d",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, the newest.")] = 50,
    as_json: Json = False,
) -> int:
    """Show when each process of this machine was started, with which version, for how long, and how it ended.

    An end without a word is a process that was killed: by kill -9, for want of memory, or with the machine. Exit code
    1 when there was no start.

    Examples:
      email-ingestion starts --last 7d
    """
    settings = load_settings()
    since = time.time() - parse_duration(last, "--last").total_seconds()
    found = [each for each in read_starts(settings.log_dir) if each.started >= since][-limit:]
    newest = {each.process: each for each in found}
    rows = [_row(settings, each, is_newest=newest[each.process] is each) for each in found]
    show(rows, as_json=as_json)
    if not rows:
        say(f"no process was started here within {last}")
    return OK if rows else NEGATIVE


def _row(settings: Settings, start: ProcessStart, *, is_newest: bool) -> dict[str, Any]:
    runs = start.ended is None and is_newest and running_pid(settings.pid_dir / f"{start.process}.pid") == start.pid
    seconds = (start.ended or time.time()) - start.started if start.ended or runs else None
    end = start.reason or "finished"
    return {
        "started (UTC)": utc(start.started),
        "process": start.process,
        "pid": start.pid,
        "version": start.version,
        "seconds": None if seconds is None else round(seconds),
        "exit": start.exit_code,
        "end": "runs" if runs else "killed, without a word" if start.ended is None else end,
    }


def _size(number: int) -> str:
    return f"{number / MEGABYTE:.1f} MB" if abs(number) >= MEGABYTE / 10 else f"{number:,} B"
