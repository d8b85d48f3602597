"""`python scripts/backup.py` and `scripts/restore.py`: make proven backups, list them, delete old ones, restore one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from email_ingestion.app.erasures import reapply_tombstones
from email_ingestion.backup.archive import Archive, list_archives, read_archive
from email_ingestion.backup.configuration import back_up_configuration
from email_ingestion.backup.create import create_backup, delete_expired, rehearse_restore, working_directory
from email_ingestion.backup.restore import RestoreTarget, find_obstacles, restore
from email_ingestion.cli.common import audited
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, printable, report, show
from email_ingestion.cli.progress_bars import step_progress
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.fleet.redis_server import scratch_redis
from email_ingestion.settings import Settings, load_settings
from email_ingestion.stream import open_link, read_server_info

LEAVE_OUT = "those that the database lacks come back and open what they did; --without-access leaves them out"
VOLATILE = "Redis has no append-only file and may forget all this: set `appendonly yes` before you go on"
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
    config: Annotated[
        bool,
        typer.Option("--config", help="The configuration instead: .env, config/ and runbooks, without secrets."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Back up Redis and the database while they are in use, prove the backup by loading it, delete old ones.

    Settings, tokens and the blob directory are not in it. Exit code 0 when the backup is proven, 2 when there is none.
    With --config the configuration is backed up; its secrets are left out, and named.

    Examples:
      python scripts/backup.py
      python scripts/backup.py --output-dir /mnt/backups --retention-days 90
      python scripts/backup.py --config
      python scripts/backup.py --list
    """
    settings = load_settings()
    directory = output_dir or settings.backup_dir
    if config:
        return _back_up_configuration(directory, as_json=as_json)
    if list_:
        return show_backups(list(list_archives(directory)), as_json=as_json)
    link = open_link(settings.redis_address, "email-ingestion-backup")
    with step_progress() as steps:
        tombstones = TombstoneFile(settings.erasure_dir)
        made = create_backup(link, ledger_url(settings), directory, scratch_redis, steps, tombstones=tombstones)
    deleted = delete_expired(directory, retention_days, made)
    if as_json:
        gone = [str(archive.path) for archive in deleted]
        typer.echo(json.dumps(made.as_dict() | {"verified": True, "deleted": gone}, indent=2))
    else:
        typer.echo(f"{made.path}: {summary(made)}; loaded into a scratch server and equal")
        for archive in deleted:
            typer.echo(f"deleted {archive.path}, older than {retention_days:g} days")
    return OK


def _back_up_configuration(directory: Path, *, as_json: bool) -> int:
    made = back_up_configuration(directory)
    record = {"file": str(made.path), "files": made.files, "left_out": made.left_out}
    left_out = "".join(f"\nleft out: {name}" for name in made.left_out)
    report(record, f"{made.path}: {len(made.files)} files{left_out}", as_json=as_json)
    return OK


def ledger_url(settings: Settings) -> str | None:
    """Return the URL of the database to back up; None when mail does not go there."""
    return settings.database_url if "database" in settings.sinks else None


def show_backups(found: Sequence[Archive], *, as_json: bool) -> int:
    """Print the list; return the exit code."""
    if as_json:
        typer.echo(json.dumps([archive.as_dict() for archive in found], indent=2))
    if not found:
        typer.echo("there are no backups", err=True)
        return NEGATIVE
    if as_json:
        return OK
    names = ("file", "made (UTC)", "size", "DBSIZE", "keys", "stream", "pending", "dead", "database")
    rows = []
    for archive in found:
        redis = archive.manifest.redis
        values = (
            archive.path,
            f"{archive.manifest.created_at:%Y-%m-%d %H:%M:%S}",
            archive.path.stat().st_size,
            *(redis[name] for name in ("dbsize", "key_count", "stream_length", "pending", "dlq_depth")),
            _messages(archive.manifest.database),
        )
        rows.append(dict(zip(names, values, strict=True)))
    show(rows, as_json=False)
    return OK


def summary(archive: Archive) -> str:
    """Describe the content of a backup in words."""
    redis = archive.manifest.redis
    return (
        f"{redis['key_count']} keys, {redis['stream_length']} messages in the stream ({redis['pending']} pending), "
        f"{redis['dlq_depth']} dead letters, {_messages(archive.manifest.database)} in the database"
    )


def access_lines(tokens: Mapping[str, str], accounts: Mapping[str, str]) -> Iterator[str]:
    """Say which tokens and accounts a restore brought back: nobody but the operator knows whether they shall live."""
    if tokens:
        named = "; ".join(f"{token_id} ({facts})" for token_id, facts in tokens.items())
        yield (
            f"{len(tokens)} API tokens are valid again, those too that were revoked and left no tombstone: "
            f"{named}: email-ingestion tokens revoke ID"
        )
    if accounts:
        named = ", ".join(f"{printable(name)} ({printable(state)})" for name, state in accounts.items())
        yield (
            f"{len(accounts)} accounts of its day are back with their secrets, those removed since too: {named}: "
            "email-ingestion accounts remove NAME"
        )


def _messages(database: dict[str, Any] | None) -> str:
    return f"{database['rows'].get('emails', 0)} messages" if database else "nothing"


def restore_backup(
    *,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="The backup to restore.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen and change nothing.")] = False,
    rehearse_: Annotated[
        bool, typer.Option("--rehearse", help="Restore into a scratch server, compare, change nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is in Redis, after saving it to a backup of its own.")
    ] = False,
    without_access: Annotated[
        bool,
        typer.Option("--without-access", help="Leave out its API tokens and accounts: it is old, or somebody else's."),
    ] = False,
    list_: ListOption = False,
    as_json: Json = False,
) -> int:
    """Restore Redis from a backup, and bring back the messages that the database lacks; nothing in it is removed.

    What was erased since is erased again before it ends. API tokens and accounts that come back are named. Refuses
    while a producer or worker runs, and a file that is truncated or not ours. Redis changes in one step, after what
    was loaded is proven equal to the manifest. Run `email-ingestion reconcile --repair` afterwards.

    Exit code 0 done, 1 a dry run that would be refused, 2 failed or refused: nothing was replaced then.

    Examples:
      python scripts/restore.py --list
      python scripts/restore.py --file backups/email-ingestion-20260101T000000000000Z.tar --rehearse
      python scripts/restore.py --file backups/email-ingestion-20260101T000000000000Z.tar
      python scripts/restore.py --file theirs.tar --without-access
    """
    settings = load_settings()
    if list_:
        return show_backups(list(list_archives(settings.backup_dir)), as_json=as_json)
    if file is None:
        raise typer.BadParameter("name a backup: --file FILE, or look at them with --list")
    if dry_run + rehearse_ + force > 1:
        raise typer.BadParameter("--dry-run, --rehearse and --force exclude each other")
    archive = read_archive(file)
    if rehearse_:
        return _rehearse(archive, settings, as_json=as_json)
    link = open_link(settings.redis_address, "email-ingestion-restore")
    target = RestoreTarget(
        link,
        ledger_url(settings),
        settings.pid_dir,
        settings.backup_dir,
        TombstoneFile(settings.erasure_dir),
        partial(reapply_tombstones, settings, link),
        without_access=without_access,
    )
    if dry_run:
        return _describe(archive, target, as_json=as_json)
    return _restore(archive, target, settings, force=force, as_json=as_json)


def _rehearse(archive: Archive, settings: Settings, *, as_json: bool) -> int:
    with step_progress() as steps, working_directory(settings.backup_dir) as folder:
        rehearse_restore(archive, scratch_redis, steps, folder)
    report(
        {"rehearsed": True, **archive.as_dict()},
        f"{archive.path} restores: {summary(archive)}; equal to its manifest on a scratch server; nothing was changed",
        as_json=as_json,
    )
    return OK


def _describe(archive: Archive, target: RestoreTarget, *, as_json: bool) -> int:
    found = find_obstacles(archive, target)
    what = f"would restore {summary(archive)}, of {archive.manifest.created_at:%Y-%m-%d %H:%M:%S} UTC"
    rows = archive.manifest.database["rows"] if archive.manifest.database and target.database_url else {}
    access = f"it holds {rows.get('api_tokens', 0)} API tokens and {rows.get('accounts', 0)} accounts"
    access += f", {'which are left out' if target.without_access else LEAVE_OUT}"
    lines = [f"would refuse: {each.reason}" for each in found] or [what, *([access] if rows else [])]
    record = {"dry_run": True, "refused": [each.reason for each in found], **archive.as_dict()}
    report(record, "\n".join(lines), as_json=as_json)
    return NEGATIVE if found else OK


def _restore(archive: Archive, target: RestoreTarget, settings: Settings, *, force: bool, as_json: bool) -> int:
    with (
        audited(settings.log_dir, "restore", {"file": str(archive.path), "force": force}) as outcome,
        step_progress() as steps,
    ):

        def save() -> Path:
            return create_backup(
                target.link, None, settings.backup_dir, scratch_redis, steps, tombstones=target.tombstones
            ).path

        outcome.update(restore(archive, target, steps, save if force else None))
    lines = [f"restored {archive.path}: {summary(archive)}; Redis equals the manifest"]
    if outcome["messages_brought_back"] is not None:
        lines.append(f"{outcome['messages_brought_back']} messages were missing in the database and are back")
    if outcome["erased_again"]:
        lines.append(f"{outcome['erased_again']} of what it held had been erased, and is erased again")
    lines += access_lines(outcome["tokens_brought_back"], outcome["accounts_brought_back"])
    if outcome["saved"]:
        lines.append(f"what was in Redis before is in {outcome['saved']}")
    if any(each.append_only is False for each in read_server_info(target.link)):
        lines.append(VOLATILE)
    lines.append("now: ./scripts/start.sh, then `email-ingestion reconcile --repair`")
    report({**outcome, **archive.as_dict()}, "\n".join(lines), as_json=as_json)
    return OK
