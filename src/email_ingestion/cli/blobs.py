"""`email-ingestion blobs collect`: removes stored bytes that nothing refers to any more."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from itertools import islice
from typing import Annotated

import typer

from email_ingestion.blobs import DiskBlobs, open_blobs, reference
from email_ingestion.cli.typed import span
from email_ingestion.errors import ConfigurationError
from email_ingestion.ledger import Ledger, open_ledger
from email_ingestion.settings import Settings, load_settings
from email_ingestion.stream import Census, open_link

CHUNK = 500
LEAST = timedelta(days=1)  # far longer than bytes wait for the row that refers to them

Blob = tuple[str, int]  # reference, bytes

blobs = typer.Typer(help="Look after large messages and attachments.", no_args_is_help=True)


@blobs.callback()
def _group() -> None:
    """Keep it a group: one command alone would take its place."""


@blobs.command()
def collect(
    older_than: Annotated[
        str,
        typer.Option(help="Only what was stored longer ago: 30d, 2w. Not below a day, nor below your backups' age."),
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Remove what neither the database nor the stream nor a dead letter refers to. Safe while everything runs.

    Such bytes stay behind where a message was stored and never recorded, or its dead letter was purged.

    Examples:
      email-ingestion blobs collect --dry-run
      email-ingestion blobs collect --older-than 90d --json
    """
    age = span(older_than, "--older-than")
    if age < LEAST:
        raise typer.BadParameter(
            "--older-than must be a day at least: what was stored lately may be about to be recorded"
        )
    settings = load_settings()
    store = open_blobs(settings.blob_url)
    if not isinstance(store, DiskBlobs):
        raise ConfigurationError("blobs collect works on a directory: BLOB_URL names a bucket, which cannot be locked")
    before = time.time() - age.total_seconds()
    with closing(open_ledger(settings.database_url)) as ledger:
        orphans = list(_orphans(store.aged(before), _on_their_way(settings), ledger))
    if not dry_run:
        orphans = [(ref, size) for ref, size in orphans if store.remove(ref, before)]
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


def _orphans(aged: Iterable[Blob], on_their_way: set[str], ledger: Ledger) -> Iterator[Blob]:
    left = iter(aged)
    while chunk := dict(islice(left, CHUNK)):
        used = ledger.referenced(chunk)
        yield from ((ref, size) for ref, size in chunk.items() if ref not in used and ref not in on_their_way)


def _show(orphans: list[Blob], *, dry_run: bool, as_json: bool) -> None:
    total = sum(size for _, size in orphans)
    if as_json:
        told = {"orphans": [ref for ref, _ in orphans], "bytes": total, "removed": not dry_run}
        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo(f"{len(orphans)} orphans of {total} bytes {'found, nothing removed' if dry_run else 'removed'}")
