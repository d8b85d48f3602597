"""`email-ingestion blobs collect`: removes stored bytes that nothing refers to any more."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from email_ingestion.blobs import Aged, Blobs, open_blobs, reference
from email_ingestion.cli.common import parse_duration
from email_ingestion.cli.progress import progress
from email_ingestion.settings import Settings, load_settings
from email_ingestion.stream import Census, open_link

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger

CHUNK = 500
LEAST = timedelta(days=1)  # far longer than bytes wait for the row that refers to them

blobs = typer.Typer(help="Look after large messages and attachments.", no_args_is_help=True)


@blobs.callback()
def _group() -> None:
    """Keep it a group: one command alone would take its place."""


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

    A BLOB_URL belongs to one database: what another refers to is not seen.

    Such bytes stay behind where a message was stored and never recorded, or its dead letter was purged. In a bucket
    they are put aside first, where they are still found, and removed by a run as much later as --older-than says.

    Examples:
      email-ingestion blobs collect --dry-run
      email-ingestion blobs collect --older-than 90d --json
    """
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    age = parse_duration(older_than, "--older-than")
    if age < LEAST:
        raise typer.BadParameter(
            "--older-than must be a day at least: what was stored lately may be about to be recorded"
        )
    settings = load_settings()
    store = open_blobs(settings.blob_url)
    before = time.time() - age.total_seconds()
    with closing(open_ledger(settings.database_url)) as ledger:
        orphans = list(_orphans(store.aged(before), _on_their_way(settings), ledger))
    if not dry_run:
        orphans = list(_removed(store, orphans))
    _show(orphans, dry_run=dry_run, as_json=as_json)


def _on_their_way(settings: Settings) -> set[str]:
    """What entries of the stream and dead letters refer to.

    Dead letters are looked at twice, because one that was replayed or died meanwhile is seen on one side at least. And
    all this happens before the database is asked, where everything ends.
    """
    link = open_link(settings.redis_address, "email-ingestion-blobs")
    censuses = [Census(link, keys) for keys in link.partitions]
    looks = (look for census in censuses for look in (census.dead(), census.queued(), census.dead()))
    return {reference(entry.sha256) for pages in looks for page in pages for entry in page.entries}


def _orphans(aged: Iterable[Aged], on_their_way: set[str], ledger: Ledger) -> Iterator[Aged]:
    left = iter(aged)
    while chunk := list(islice(left, CHUNK)):
        used = ledger.referenced({each.ref for each in chunk}) | on_their_way
        yield from (each for each in chunk if each.ref not in used)


def _removed(store: Blobs, orphans: list[Aged]) -> Iterator[Aged]:
    with progress("removing", len(orphans)) as advance:
        for orphan in orphans:
            if store.remove(orphan):
                yield orphan
            advance(1)


def _show(orphans: list[Aged], *, dry_run: bool, as_json: bool) -> None:
    gone, aside = (_told([each for each in orphans if each.final is final]) for final in (True, False))
    if as_json:
        typer.echo(json.dumps(gone | {"removed": not dry_run, "aside": aside}, indent=2))
        return
    typer.echo(f"{_sum(gone)} {'found, nothing removed' if dry_run else 'removed'}")
    if aside["orphans"]:
        typer.echo(f"{_sum(aside)} {'to be put aside first' if dry_run else 'put aside: a later run removes them'}")


def _told(orphans: list[Aged]) -> dict[str, Any]:
    return {"orphans": [each.ref for each in orphans], "bytes": sum(each.size for each in orphans)}


def _sum(told: dict[str, Any]) -> str:
    return f"{len(told['orphans'])} orphans of {told['bytes']} bytes"
