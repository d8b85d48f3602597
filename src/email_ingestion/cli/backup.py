"""`python scripts/backup.py`: makes a proven backup of Redis and the database, lists them, deletes old ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from email_ingestion.backup.archive import Archive, archives
from email_ingestion.backup.create import back_up, retire
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json
from email_ingestion.cli.steps import steps
from email_ingestion.fleet.redis_server import scratch_redis
from email_ingestion.settings import Settings, load_settings
from email_ingestion.stream import open_link

ListOption = Annotated[bool, typer.Option("--list", help="List the backups, newest first, and do nothing else.")]


def backup(
    *,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Where the backup goes; default BACKUP_DIR.")
    ] = None,
    retention_days: Annotated[
        float, typer.Option(min=0, help="Then delete backups older than this; never the new one.")
    ] = 30,
    list_: ListOption = False,
    as_json: Json = False,
) -> int:
    """Back up Redis and the database while they are in use, prove the backup by loading it, delete old ones.

    Settings, tokens and the blob directory are not in it. Exit code 0 when the backup is proven, 2 when there is none.

    Examples:
      python scripts/backup.py
      python scripts/backup.py --output-dir /mnt/backups --retention-days 90
      python scripts/backup.py --list
    """
    settings = load_settings()
    directory = output_dir or settings.backup_dir
    if list_:
        return show(list(archives(directory)), as_json=as_json)
    link = open_link(settings.redis_address, "email-ingestion-backup")
    with steps() as told:
        made = back_up(link, ledger_url(settings), directory, scratch_redis, told)
    deleted = retire(directory, retention_days, made)
    if as_json:
        gone = [str(archive.path) for archive in deleted]
        typer.echo(json.dumps(made.as_dict() | {"verified": True, "deleted": gone}, indent=2))
    else:
        typer.echo(f"{made.path}: {summary(made)}; loaded into a scratch server and equal")
        for archive in deleted:
            typer.echo(f"deleted {archive.path}, older than {retention_days:g} days")
    return OK


def ledger_url(settings: Settings) -> str | None:
    """The database to back up; None when mail does not go there."""
    return settings.database_url if "database" in settings.sinks else None


def show(found: Sequence[Archive], *, as_json: bool) -> int:
    """The list, and its exit code."""
    if as_json:
        typer.echo(json.dumps([archive.as_dict() for archive in found], indent=2))
        return OK if found else NEGATIVE
    if not found:
        typer.echo("there are no backups", err=True)
        return NEGATIVE
    names = ("file", "made (UTC)", "size", "DBSIZE", "keys", "stream", "pending", "dead", "database")
    table = Table(*names, box=None, pad_edge=False)
    for archive in found:
        redis = archive.manifest.redis
        table.add_row(
            str(archive.path),
            f"{archive.manifest.created_at:%Y-%m-%d %H:%M:%S}",
            f"{archive.path.stat().st_size:,}",
            *(str(redis[name]) for name in ("dbsize", "key_count", "stream_length", "pending", "dlq_depth")),
            _messages(archive.manifest.database),
        )
    Console(width=None if Console().is_terminal else 200, highlight=False).print(table)
    return OK


def summary(archive: Archive) -> str:
    """What a backup holds, in words."""
    redis = archive.manifest.redis
    return (
        f"{redis['key_count']} keys, {redis['stream_length']} messages in the stream ({redis['pending']} pending), "
        f"{redis['dlq_depth']} dead letters, {_messages(archive.manifest.database)} in the database"
    )


def _messages(database: dict[str, Any] | None) -> str:
    return f"{database['rows'].get('emails', 0)} messages" if database else "nothing"
