"""`blobs` and `database`: what nothing refers to any more is removed, and the database is checked and compacted."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from email_ingestion.cli.common import audited, parse_duration
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.cli.progress_bars import progress, run_with_progress
from email_ingestion.errors import OperationFailed, RedisConnectionError, SinkUnavailable
from email_ingestion.settings import Settings, load_settings

if TYPE_CHECKING:
    from email_ingestion.blobs import BlobStore, OldBlob
    from email_ingestion.ledger.database_copy import CopySummary
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.reconcile.content_scrub import ScrubReport

FAULT_COLUMNS = ("state", "fault", "ref", "email_id", "problem")
CHUNK = 500
MIN_AGE = timedelta(days=1)  # far longer than bytes wait for the row that refers to them

blobs = typer.Typer(help="Look after large messages and attachments.", no_args_is_help=True)
database = typer.Typer(help="Look after the database.", no_args_is_help=True)


@blobs.command()
def collect(
    older_than: Annotated[
        str,
        typer.Option(
            help="Only what was stored longer ago: 30d, 2w. Not below a day, nor below the age of a backup or "
            "a drained queue that you may want back."
        ),
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Remove what neither the database nor the stream nor a dead letter refers to. Safe while everything runs.

    A BLOB_URL belongs to one database: what another refers to is not seen. A database without any mail is refused, for
    it may be a new one in the place of one that was lost.

    Such bytes stay behind where a message was stored and never recorded, or its dead letter was purged. In a bucket
    they are put aside first, where they are still found, and removed by a run as much later as --older-than says.

    Examples:
      email-ingestion blobs collect --dry-run
      email-ingestion blobs collect --older-than 90d --json
    """
    from email_ingestion.blobs import open_blobs  # noqa: PLC0415
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    age = parse_duration(older_than, "--older-than")
    if age < MIN_AGE:
        raise typer.BadParameter(
            "--older-than must be a day at least: what was stored lately may be about to be recorded"
        )
    settings = load_settings()
    store = open_blobs(settings.blob_url)
    before = time.time() - age.total_seconds()
    with closing(open_ledger(settings.database_url)) as ledger:
        orphans = list(_orphans(store.stored_before(before), _refs_in_redis(settings), ledger))
        if orphans and not ledger.count():
            raise OperationFailed(
                f"the database holds no mail, so nothing refers to {len(orphans)} blobs: is it theirs? "
                "nothing was removed; see DATABASE_URL and BLOB_URL in `email-ingestion config show`"
            )
    if not dry_run:
        orphans = list(_removed(store, orphans))
    _print_orphans(orphans, dry_run=dry_run, as_json=as_json)


def _refs_in_redis(settings: Settings) -> set[str]:
    """Return the blobs that entries of the stream and dead letters refer to.

    Dead letters are read twice: one that is replayed, or dies, meanwhile is then seen on one side at least. All this
    happens before the database is asked, where every message ends.
    """
    from email_ingestion.app.nightly_scrub import queued_entries  # noqa: PLC0415
    from email_ingestion.blobs import reference  # noqa: PLC0415
    from email_ingestion.stream import open_link  # noqa: PLC0415

    link = open_link(settings.redis_address, "email-ingestion-blobs")
    return {reference(entry.sha256) for entry in queued_entries(link)}


def _orphans(aged: Iterable[OldBlob], refs_in_redis: set[str], ledger: Ledger) -> Iterator[OldBlob]:
    left = iter(aged)
    while chunk := list(islice(left, CHUNK)):
        used = ledger.referenced({each.ref for each in chunk}) | refs_in_redis
        yield from (each for each in chunk if each.ref not in used)


def _removed(store: BlobStore, orphans: list[OldBlob]) -> Iterator[OldBlob]:
    with progress("removing", len(orphans)) as advance:
        for orphan in orphans:
            if store.remove(orphan):
                yield orphan
            advance(1)


def _print_orphans(orphans: list[OldBlob], *, dry_run: bool, as_json: bool) -> None:
    removed, set_aside = (_totals([each for each in orphans if each.final is final]) for final in (True, False))
    if as_json:
        typer.echo(json.dumps(removed | {"removed": not dry_run, "aside": set_aside}, indent=2))
        return
    typer.echo(f"{_sentence(removed)} {'found, nothing removed' if dry_run else 'removed'}")
    if set_aside["orphans"]:
        typer.echo(
            f"{_sentence(set_aside)} {'to be put aside first' if dry_run else 'put aside: a later run removes them'}"
        )


def _totals(orphans: list[OldBlob]) -> dict[str, Any]:
    return {"orphans": [each.ref for each in orphans], "bytes": sum(each.size for each in orphans)}


def _sentence(totals: dict[str, Any]) -> str:
    return f"{len(totals['orphans'])} orphans of {totals['bytes']} bytes"


@blobs.command()
def verify(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look: fetch nothing again.")] = False,
    max_rate: Annotated[
        float, typer.Option("--max-rate", min=0, help="Megabytes read in a second; 0 for as fast as possible.")
    ] = 20.0,
    refill: Annotated[
        bool, typer.Option("--refill", help="Its disk is new and empty on purpose: fetch everything again.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Read all stored messages and attachments and compare them with their hashes. Safe while everything runs.

    What is missing or damaged is fetched from the mail server again, or an attachment taken from its message. Exit
    code 0 when everything is sound now, 1 when something is not, 2 when it could not be looked at. The producer does
    the same every BLOB_VERIFY_SECONDS.

    A blob directory that is wholly empty is taken for a disk that is not mounted, and nothing is written into it. When
    the disk is lost and a new one is mounted there, say so with --refill.

    Examples:
      email-ingestion blobs verify
      email-ingestion blobs verify --dry-run --json
      email-ingestion blobs verify --max-rate 100
      email-ingestion blobs verify --refill
    """
    if refill and dry_run:
        raise typer.BadParameter("--refill fetches, and --dry-run only looks")
    settings = load_settings()
    if refill:
        from email_ingestion.blobs import open_blobs  # noqa: PLC0415 - help comes without it

        open_blobs(settings.blob_url).begin_anew()
    report = _scrub(settings, fetch_again=not dry_run, max_rate=max_rate * 1e6)
    rows = [asdict(each) | {"state": "lost" if each.problem else "restored"} for each in report.faults]
    if as_json:
        sums = {"checked": report.checked, "bytes": report.size, "lost": len(report.lost)}
        typer.echo(json.dumps(sums | {"restored": len(rows) - len(report.lost), "faults": rows}, indent=2))
        return NEGATIVE if report.lost else OK
    if rows:
        show([{name: row[name] for name in FAULT_COLUMNS} for row in rows], as_json=False)
    restored = f", {len(rows) - len(report.lost)} restored" if len(rows) > len(report.lost) else ""
    typer.echo(f"{report.checked:,} contents of {report.size:,} bytes read{restored}: {len(report.lost)} lost")
    return NEGATIVE if report.lost else OK


def _scrub(settings: Settings, *, fetch_again: bool, max_rate: float, queue: bool = True) -> ScrubReport:
    """Look at what the ledger refers to, and with `queue` at what the stream and the dead letters refer to.

    Raises OperationFailed when the store, the database or Redis is away.
    """
    from email_ingestion.app.nightly_scrub import MailServers, queued_entries  # noqa: PLC0415
    from email_ingestion.blobs import open_blobs  # noqa: PLC0415
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy
    from email_ingestion.reconcile.content_scrub import ContentScrub  # noqa: PLC0415
    from email_ingestion.stream import open_link  # noqa: PLC0415
    from email_ingestion.stream.scrub_record import ScrubRecord  # noqa: PLC0415

    def pause(seconds: float) -> bool:
        time.sleep(seconds)
        return True

    link = open_link(settings.redis_address, "email-ingestion-blobs")
    store = open_blobs(settings.blob_url)
    try:
        with (
            closing(open_ledger(settings.database_url)) as ledger,
            MailServers(settings, link, lambda: ledger, store, lambda _: None) as servers,
        ):
            scrub = ContentScrub(
                store,
                ledger,
                lambda: queued_entries(link) if queue else (),
                fetch_again=servers.fetch if fetch_again else None,
                max_rate=max_rate,
                pause=pause,
            )
            run_with_progress("reading what is stored", scrub.steps(), lambda: (scrub.report.checked, None))
            if fetch_again:
                ScrubRecord(link).write_end()
    except (SinkUnavailable, RedisConnectionError) as error:
        raise OperationFailed(str(error)) from error
    return scrub.report


@database.command()
def check(
    contents: Annotated[
        bool, typer.Option("--contents/--no-contents", help="Read the stored messages and attachments too.")
    ] = True,
    as_json: Json = False,
) -> int:
    """Read every page and every reference of the database, and all that it refers to in the blob store.

    Exit code 0 when everything is sound, 1 when it is not. Deliveries go on meanwhile. A database that is not sound:
    docs/runbooks/backup_restore.md; for contents `email-ingestion blobs verify`.

    Examples:
      email-ingestion database check
      email-ingestion database check --no-contents
    """
    from email_ingestion.ledger.maintenance import find_damage  # noqa: PLC0415 - help comes without SQLAlchemy

    settings = load_settings()
    with _spinner("reading the database"):
        found = find_damage(settings.database_url)
    if contents and not found:
        found += [
            f"{each.ref} of {each.email_id} is {each.fault}: `email-ingestion blobs verify` fetches it again"
            for each in _scrub(settings, fetch_again=False, max_rate=0.0, queue=False).faults
        ]
    show([{"state": "damaged", "fault": each} for each in found] or [{"state": "ok", "fault": ""}], as_json=as_json)
    return NEGATIVE if found else OK


@database.command()
def compact(as_json: Json = False) -> int:
    """Give back the room that deleted rows left, and refresh the planner's numbers.

    SQLite: deliveries wait meanwhile, and as much disk as the database has must be free. PostgreSQL: nothing waits.

    Examples:
      email-ingestion database compact
    """
    from email_ingestion.ledger.maintenance import compact as squeeze  # noqa: PLC0415

    settings = load_settings()
    with audited(settings.log_dir, "database compact", {}) as outcome, _spinner("compacting the database"):
        before, after = squeeze(settings.database_url)
        outcome |= {"bytes_before": before, "bytes_after": after}
    if as_json:
        show([{"bytes_before": before, "bytes_after": after}], as_json=True)
    else:
        typer.echo(f"from {before:,} to {after:,} bytes")
    return OK


@database.command()
def downgrade(
    to: Annotated[str, typer.Option("--to", metavar="VERSION", help="Such as 0.1.0, or a schema: 0006.")],
    as_json: Json = False,
) -> int:
    """Let an older version use the database; give this before its code is started. Exit code 1 when there is none.

    Schemas only ever add: nothing is removed, and this version uses the database afterwards as before. An older
    version goes by a mark, which this sets.

    Examples:
      email-ingestion database downgrade --to 0.1.0
    """
    from email_ingestion.ledger.maintenance import allow_older_code  # noqa: PLC0415 - help comes without SQLAlchemy
    from email_ingestion.ledger.migrate import RELEASES, known_revisions  # noqa: PLC0415

    revision = RELEASES.get(to.removeprefix("v"), to)
    if revision not in known_revisions():
        raise typer.BadParameter(f"--to is a version, {', '.join(RELEASES)}, or a schema, {_range(known_revisions())}")
    settings = load_settings()
    with audited(settings.log_dir, "database downgrade", {"to": to}) as outcome, _spinner("marking the database"):
        before = allow_older_code(settings.database_url, revision)
        outcome |= {"usable_from": revision, "before": before}
    if before is None:
        say("there is no database yet: every version makes its own")
        return NEGATIVE
    if as_json:
        show([{"usable_from": revision, "before": before}], as_json=True)
    else:
        typer.echo(
            f"Code of schema {revision} can use the database now; it was {before}. Nothing was removed. "
            "Check that version out and start it."
        )
    return OK


@database.command()
def copy(
    to: Annotated[str, typer.Option("--to", metavar="URL", help="The other database, as DATABASE_URL would name it.")],
    as_json: Json = False,
) -> int:
    """Copy the database to another one, such as SQLite to PostgreSQL, while the service runs.

    Everything goes over: records, attachments, contents, deliveries, tombstones. Each row is compared with the one that
    is there, so the command may be killed and given again, and a later one brings over what changed meanwhile. To
    change over: give it until little is left, stop the workers, give it once more, set DATABASE_URL. A password is read
    from ~/.pgpass or PGPASSWORD, too. Exit code 0 when every row was the same at the last look, 1 when mail went on, or
    when the other database refuses rows: they are named, and all others are copied.

    Examples:
      email-ingestion database copy --to postgresql://mail@db.example.com/mail
    """
    from email_ingestion.ledger.database_copy import DatabaseCopy  # noqa: PLC0415 - help comes without SQLAlchemy

    settings = load_settings()
    with (
        audited(settings.log_dir, "database copy", {}) as outcome,
        closing(DatabaseCopy(settings.database_url, to)) as transfer,
    ):
        transfer.refuse_other_mail()
        done: Counter[str] = Counter()
        for title in ("copying", "comparing"):
            with progress(title, transfer.count()) as advance:
                found = transfer.run(advance)
            done += Counter({name: count for name, count in found.changes.items() if name != "refused"})
        done["refused"] = found.changes["refused"]
        done = +done
        outcome |= {"rows": found.rows.total(), "changes": dict(done), "same": found.same}
    if as_json:
        result = {"rows": dict(found.rows), "changes": dict(done), "same": found.same, "refused": found.refused}
        typer.echo(json.dumps(result, indent=2))
    else:
        changes = ", ".join(f"{count:,} {name}" for name, count in sorted(done.items())) or "nothing to do"
        typer.echo(f"{found.rows.total():,} rows compared one by one: {changes}")
        typer.echo(_outcome(found))
    return OK if found.same else NEGATIVE


def _outcome(found: CopySummary) -> str:
    if found.same:
        return "Both databases are the same."
    if not found.refused:
        return "Some rows changed meanwhile: stop the workers and give the command again."
    named = "".join(f"\n  {each}" for each in found.refused)
    return (
        f"The other database does not take {found.changes['refused']:,} rows, without which all others were copied:"
        f"{named}\n`email-ingestion reparse` makes records anew; then give the command again."
    )


def _range(revisions: Iterable[str]) -> str:
    return f"{min(revisions)} to {max(revisions)}"


@contextmanager
def _spinner(title: str) -> Iterator[None]:
    """Show on a terminal that work goes on. Raises OperationFailed for a database that is away."""
    try:
        with Console(stderr=True).status(title):
            yield
    except SinkUnavailable as error:
        raise OperationFailed(str(error)) from error
