"""`resend`: let the workers deliver mail once more to one sink, or for the first time to one that was added later."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from email_ingestion.atomic_files import atomic_write
from email_ingestion.cli.common import audited, parse_instant, refuse_unknown_account
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.id_arguments import pick_delivered
from email_ingestion.cli.output import Json, printable, say
from email_ingestion.cli.progress_bars import progress
from email_ingestion.settings import Settings, load_settings

if TYPE_CHECKING:
    from email_ingestion.ledger.resends import ResendChoice
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.resend import ResendSummary

NICE = 10  # live mail's processes come first
NAMED = 20  # messages of which nothing can be said; --json names all
POLL_SECONDS = 0.5
STARTED = Path("data/resend")  # a file for each sink: when a resend began that is not all noted down yet, and of what


def resend(
    *,
    sink: Annotated[str, typer.Option(help="The sink, as SINKS names it.")],
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="Received then or later: 2026-01-31, or 7d for a span.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="Received before then.")] = None,
    message: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="This message, whatever the routes say; repeatable.")
    ] = None,
    query: Annotated[str, typer.Option(help="What `search` finds with these words.")] = "",
    account: Annotated[str | None, typer.Option(help="Only this account, by its configured name.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that was ever delivered.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the sink would get.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Stay until the workers have begun with all of it.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Take back what no worker has begun with.")] = False,
    refused_changes: Annotated[
        bool, typer.Option("--changes", help="In place of mail, the changes of it that the sink refused.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Send delivered mail again to a sink that lost its data, or for the first time to one that was added later.

    What the sink had goes to it again, in the same form and under the same identity; what was never owed to it goes to
    it where today's routes send it there. Workers deliver it when no live mail waits for the sink, so nothing needs to
    keep running, and a resend that was killed is given again as it was. Without a choice it says how many still wait.
    Exit code 1 when a message could not be read.

    Examples:
      email-ingestion resend --sink webhook --since 2026-01-31 --dry-run
      email-ingestion resend --sink webhook --all --follow
      email-ingestion resend --sink webhook --cancel
      email-ingestion resend --sink webhook --changes --dry-run
    """
    from email_ingestion.ledger.resends import ResendChoice  # noqa: PLC0415 - help comes without SQLAlchemy
    from email_ingestion.ledger.search_filter import SearchFilter  # noqa: PLC0415
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415

    settings = load_settings()
    _refuse_unknown_sink(settings, sink)
    given = {"since": since, "until": until, "id": message, "query": query, "account": account, "all": everything}
    asked = {name: value for name, value in given.items() if value}
    if cancel and (asked or dry_run or follow):
        raise typer.BadParameter("--cancel goes with --sink alone")
    if refused_changes and (asked or cancel or follow):
        raise typer.BadParameter("--changes goes with --sink and --dry-run alone")
    if everything and (since or until or message or query):
        raise typer.BadParameter("--all takes no other choice but --account")
    only = SearchFilter(account=account, after=parse_instant(since, "--since"), before=parse_instant(until, "--until"))
    if only.after and only.before and only.after >= only.before:
        raise typer.BadParameter("--since must be earlier than --until")
    with closing(open_ledger(settings.database_url)) as ledger:
        if account:
            refuse_unknown_account(settings, account, lambda: ledger.count(account))
        if cancel:
            return _cancel(settings, ledger, sink)
        if refused_changes:
            return _tell_again(settings, ledger, sink, dry_run=dry_run, as_json=as_json)
        found = None
        if asked:
            ids = tuple(_picked(ledger, each) for each in message or ())
            found = _mark(settings, ledger, sink, ResendChoice(only, query, ids), asked, dry_run=dry_run)
        left = ledger.resends.left(sink)
        _show(found, left, sink, dry_run=dry_run, as_json=as_json)
        if follow and not dry_run:
            _follow(ledger, sink, left)
    return NEGATIVE if found and found.failed else OK


def _refuse_unknown_sink(settings: Settings, sink: str) -> None:
    further = settings.sinks[1:]
    if sink not in further:
        there = f"configured beside the database: {', '.join(further)}" if further else "SINKS names only the database"
        raise typer.BadParameter(f"there is no sink {printable(sink)!r} to send to; {there}")


def _picked(ledger: Ledger, part: str) -> str:
    identity = pick_delivered(ledger, part)
    if identity is None:
        say(f"{printable(part)} is not in the database: email-ingestion search finds identities.")
        raise typer.Exit(NEGATIVE)
    return identity


def _mark(
    settings: Settings, ledger: Ledger, sink: str, choice: ResendChoice, asked: dict[str, Any], *, dry_run: bool
) -> ResendSummary:
    """Note down in the database what the sink is owed."""
    from email_ingestion.blobs import open_blobs  # noqa: PLC0415
    from email_ingestion.resend import Resender  # noqa: PLC0415
    from email_ingestion.routing import Router  # noqa: PLC0415

    os.nice(NICE)
    router = Router(settings.routes, settings.sinks[1:])
    with (
        _started(ledger, sink, asked, dry_run=dry_run) as started,
        audited(settings.log_dir, "resend", {"sink": sink, "asked": asked}, dry_run=dry_run) as outcome,
    ):
        made = Resender(ledger, open_blobs(settings.blob_url), router, sink, started)
        with progress("finding what is owed", ledger.count(choice.only.account)) as advance:
            for done in made.run(choice, dry_run=dry_run):
                advance(done)
        outcome |= {"owed": made.summary.owed, "failed": len(made.summary.failed)}
    return made.summary


@contextmanager
def _started(ledger: Ledger, sink: str, asked: dict[str, Any], *, dry_run: bool) -> Iterator[datetime]:
    """Yield when this resend began: when the same one was begun before and killed, it goes on where it was."""
    now = ledger.resends.now()
    if dry_run:
        yield now
        return
    STARTED.mkdir(parents=True, exist_ok=True)
    path = STARTED / f"{sink.replace('/', '_')}.json"
    started = _read_start(path, asked)
    if started:
        say(f"going on with the resend that was begun at {started:%Y-%m-%d %H:%M:%S} UTC")
    else:
        with atomic_write(path) as file:
            file.write(json.dumps({"asked": asked, "started": now.isoformat()}).encode())
    yield started or now
    path.unlink(missing_ok=True)


def _read_start(path: Path, asked: dict[str, Any]) -> datetime | None:
    try:
        found = json.loads(path.read_bytes())
        return datetime.fromisoformat(found["started"]).astimezone(UTC) if found["asked"] == asked else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _cancel(settings: Settings, ledger: Ledger, sink: str) -> int:
    with audited(settings.log_dir, "resend_cancel", {"sink": sink}) as outcome:
        taken = ledger.resends.cancel(sink)
        outcome["taken_back"] = taken
    typer.echo(f"{taken:,} messages taken back; what a worker had begun with is delivered")
    return OK


def _tell_again(settings: Settings, ledger: Ledger, sink: str, *, dry_run: bool, as_json: bool) -> int:
    """Have the workers tell a sink the changes again that it refused for good."""
    refused = ledger.told_changes.refused(sink)
    with audited(settings.log_dir, "resend_changes", {"sink": sink}, dry_run=dry_run) as outcome:
        count = len(refused) if dry_run else ledger.told_changes.try_again(sink)
        outcome["changes"] = count
    if as_json:
        listed = [{**event.as_json(), "reason": reason} for event, reason in refused]
        typer.echo(json.dumps({"sink": sink, "dry_run": dry_run, "changes": count, "refused": listed}, indent=2))
        return OK
    for event, reason in refused[:NAMED]:
        say(f"{event.seq} {event.kind.value} {printable(event.email_id)}: {printable(reason)}")
    would = "would be told" if dry_run else "is told"
    typer.echo(f"{printable(sink)} {would} {count:,} changes again that it refused")
    return OK


def _show(found: ResendSummary | None, left: int, sink: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        counts = {}
        if found:
            names = ("owed", "repeated", "new", "waiting", "delivered_since", "dead_letters", "not_routed", "failed")
            counts = {name: getattr(found, name) for name in names}
        typer.echo(json.dumps({"sink": sink, "dry_run": dry_run} | counts | {"left": left}, indent=2))
        return
    if found:
        would = "would get" if dry_run else "gets"
        typer.echo(
            f"{printable(sink)} {would} {found.owed:,} messages: {found.repeated:,} again, "
            f"{found.new:,} for the first time"
        )
        others = (
            (found.waiting, "wait for it anyway"),
            (found.delivered_since, "it got since this resend began"),
            (found.dead_letters, "are dead letters of it: email-ingestion dlq replay"),
            (found.not_routed, "the routes do not send to it"),
        )
        for count, what in others:
            if count:
                typer.echo(f"{count:,} {what}")
        for email_id, reason in list(found.failed.items())[:NAMED]:
            say(f"{printable(email_id)}: it is not known whether it is owed: {reason}")
    if not dry_run:
        typer.echo(f"{left:,} wait to be sent again; workers deliver them when nothing else waits for the sink")


def _follow(ledger: Ledger, sink: str, total: int) -> None:
    with progress(f"resending to {sink}", total) as advance:
        done = 0
        while left := ledger.resends.left(sink):
            advance(max(0, total - left - done))
            done = max(done, total - left)
            time.sleep(POLL_SECONDS)
        advance(total - done)
    typer.echo("the workers have begun with all of it")
