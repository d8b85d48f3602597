"""`email-ingestion dlq`: list, show, count, export, replay and purge dead letters.

Export, replay, purge and `show --raw` are written into the audit log. Replay and purge take the letters that match
when they begin, not those that arrive meanwhile. A command that was interrupted is simply repeated.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from email_ingestion.blobs import open_blobs
from email_ingestion.cli.common import audit_read, audited, open_redis
from email_ingestion.cli.dlq_filter import DlqSelection, conditions, pick_letter_ids, selection, with_options_of
from email_ingestion.cli.dlq_output import exit_code, groups_as_json, show_groups, show_letter, show_letters
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, report, say
from email_ingestion.cli.progress_bars import progress
from email_ingestion.errors import OperationFailed, PermanentError
from email_ingestion.settings import Settings
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.stream.dead_letters import DeadLetter, FailureGroup, count_letters, group_failures

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A new file; default in BACKUP_DIR.")]

dlq = typer.Typer(help="Look at dead letters, put them back into the stream, export and purge them.")


@dlq.command("list")
@with_options_of(conditions)
def list_letters(
    selected: DlqSelection,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most letters shown.")] = 50,
    as_json: Json = False,
) -> int:
    """List dead letters, oldest first. Exit code 0 when there are some, 1 when there are none.

    Examples:
      email-ingestion dlq list
      email-ingestion dlq list --reason permanent --older-than 7d
      email-ingestion dlq list --json --limit 1000
    """
    _, dead_letters = _open_dlq(selected)
    found = list(islice(selected.letters(dead_letters), limit + 1))
    show_letters(found[:limit], as_json=as_json)
    if len(found) > limit:
        say(f"these are the first {limit}; --limit shows more, `dlq stats` counts all")
    return exit_code(found)


@dlq.command()
def show(
    dead_letter_id: Annotated[
        str,
        typer.Argument(metavar="ID", help="The letter's id, or its beginning.", show_default=False),
    ],
    raw: Annotated[Path | None, typer.Option("--raw", help="Write the message to this new file (RFC 822).")] = None,
    as_json: Json = False,
) -> int:
    """Show all that is known of one dead letter; the message itself only goes to a file, and only when asked.

    Examples:
      email-ingestion dlq show 1767225600000-0
      email-ingestion dlq show 1767225600000-0 --raw letter.eml
    """
    settings, dead_letters = _open_dlq()
    (wanted,) = pick_letter_ids([dead_letter_id], dead_letters)
    dead_letter = next(dead_letters.find([wanted]), None)
    if dead_letter is None:
        say(f"there is no dead letter {wanted}")
        if as_json:
            typer.echo("null")
        return NEGATIVE
    if raw:
        message = _message(settings, dead_letters, dead_letter)
        audit_read(settings.log_dir, "dlq show", 1, [dead_letter.email_id], file=str(raw))
        _write_new(raw, message)
        say(f"the message is in {raw}")
    show_letter(dead_letter, as_json=as_json)
    return OK


@dlq.command()
@with_options_of(conditions)
def stats(
    selected: DlqSelection,
    *,
    as_json: Json = False,
) -> int:
    """Count dead letters by fingerprint: those that died the same death. Exit code 1 when there are none.

    Examples:
      email-ingestion dlq stats
      email-ingestion dlq stats --json --account default
    """
    _, dead_letters = _open_dlq(selected)
    found = group_failures(selected.letters(dead_letters))
    show_groups(found, as_json=as_json)
    return exit_code(found)


@dlq.command()
@with_options_of(selection)
def export(
    selected: DlqSelection,
    *,
    output: Output = None,
    as_json: Json = False,
) -> int:
    """Write dead letters with their messages to a file (JSON lines, mode 0600) and leave them where they are.

    Examples:
      email-ingestion dlq export --all
      email-ingestion dlq export --fingerprint 1f0c9a6be2d4 --output letters.jsonl
    """
    from email_ingestion.app.dead_letter_orders import (  # noqa: PLC0415 - a look needs no mail server
        MOST_NAMED,
        export_letters,
        export_path,
    )

    settings, dead_letters = _open_dlq(selected)
    selected = selected.with_whole_ids(dead_letters)
    ids, _ = _matching_ids(dead_letters, selected)
    if not ids:
        return _none({"exported": 0, "file": None, "sha256": None}, as_json=as_json)
    path = output or export_path(settings)
    audit_read(
        settings.log_dir,
        "dlq export",
        len(ids),
        (),
        letters=ids[:MOST_NAMED],
        filter=selected.as_dict(),
        file=str(path),
    )
    with progress("exporting", len(ids)) as advance:
        exported = export_letters(dead_letters, ids, path, selected.as_dict(), advance)
    report(
        {"exported": len(exported.letters), "file": str(path), "sha256": exported.sha256},
        f"exported {count_letters(len(exported.letters))} to {path}",
        as_json=as_json,
    )
    return OK


@dlq.command()
@with_options_of(selection)
def replay(
    selected: DlqSelection,
    *,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Put dead letters back into the stream, each once however often this is run. Exit code 1 when there was none.

    Where the bytes of one are missing from the blob store or damaged there, they are fetched from the mail server
    first; a letter whose bytes nobody has stays where it is.

    Examples:
      email-ingestion dlq replay --fingerprint 1f0c9a6be2d4 --dry-run
      email-ingestion dlq replay --fingerprint 1f0c9a6be2d4 --first 1
      email-ingestion dlq replay 1767225600000-0 1767225600001-0
      email-ingestion dlq replay --all
    """
    from email_ingestion.app.dead_letter_orders import (  # noqa: PLC0415 - a look needs no mail server
        fetch_lost,
        replay_letters,
    )

    settings, dead_letters = _open_dlq(selected)
    selected = selected.with_whole_ids(dead_letters)
    ids, groups = _matching_ids(dead_letters, selected)
    if not ids:
        return _none({"dry_run": dry_run, "matched": 0, "replayed": 0}, as_json=as_json)
    if dry_run:
        return _preview("put back", ids, groups, as_json=as_json)
    with audited(settings.log_dir, "dlq replay", {"filter": selected.as_dict(), "matched": len(ids)}) as outcome:
        lost = fetch_lost(settings, open_redis("dlq")[1], ids)
        for letter_id, problem in lost.items():
            say(f"{letter_id} stays: its bytes are lost, and {problem}")
        whole = [letter_id for letter_id in ids if letter_id not in lost]
        with progress("putting back", len(whole)) as advance:
            moved = replay_letters(dead_letters, whole, outcome, advance)
        outcome["lost"] = len(lost)
    gone = f"; {len(whole) - moved} were replayed or purged by somebody else meanwhile" if moved < len(whole) else ""
    report(
        {"dry_run": False, "matched": len(ids), "replayed": moved} | ({"lost": sorted(lost)} if lost else {}),
        f"put {count_letters(moved)} back into the stream{gone}",
        as_json=as_json,
    )
    return OK if moved else NEGATIVE


@dlq.command()
@with_options_of(selection)
def purge(
    selected: DlqSelection,
    *,
    output: Output = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> int:
    """Export dead letters to a file, then delete exactly those from Redis. Asks first; exit code 1 when there is none.

    The database remembers that their messages were given up, so that no reconciliation brings them back.

    Examples:
      email-ingestion dlq purge --fingerprint 1f0c9a6be2d4 --dry-run
      email-ingestion dlq purge --older-than 30d --yes
    """
    from email_ingestion.app.dead_letter_orders import (  # noqa: PLC0415 - a look needs no mail server
        MOST_NAMED,
        export_letters,
        export_path,
        purging_ledger,
        remove_letters,
    )

    settings, dead_letters = _open_dlq(selected)
    selected = selected.with_whole_ids(dead_letters)
    ids, groups = _matching_ids(dead_letters, selected)
    if not ids:
        return _none({"dry_run": dry_run, "matched": 0, "deleted": 0, "file": None}, as_json=as_json)
    if dry_run:
        return _preview("export and delete", ids, groups, as_json=as_json)
    path = output or export_path(settings)
    if not yes and not _confirmed(f"Export {count_letters(len(ids))} to {path} and delete them from Redis?"):
        say("nothing was deleted")
        return NEGATIVE
    details = {"filter": selected.as_dict(), "matched": len(ids), "file": str(path)}
    audit_read(settings.log_dir, "dlq purge", len(ids), (), letters=ids[:MOST_NAMED], file=str(path))
    with audited(settings.log_dir, "dlq purge", details) as outcome, purging_ledger(settings) as ledger:
        with progress("exporting", len(ids)) as advance:
            exported = export_letters(dead_letters, ids, path, selected.as_dict(), advance)
        outcome |= {"exported": len(exported.letters), "sha256": exported.sha256}
        with progress("deleting", len(exported.letters)) as advance:
            deleted = remove_letters(dead_letters, ledger, exported, path, outcome, advance=advance)
    report(
        {"dry_run": False, "matched": len(ids), **outcome, "file": str(path)},
        f"deleted {count_letters(deleted)}; they are in {path}",
        as_json=as_json,
    )
    return OK if deleted else NEGATIVE


def _none(record: dict[str, Any], *, as_json: bool) -> int:
    """Report that no letter is selected: JSON has the shape that it has otherwise."""
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    return exit_code([])


def _open_dlq(selected: DlqSelection | None = None) -> tuple[Settings, DeadLetterQueue]:
    settings, link = open_redis("dlq")
    dead_letters = DeadLetterQueue(link)
    if selected:
        selected.refuse_unknown_account(settings, dead_letters)
    return settings, dead_letters


def _message(settings: Settings, dead_letters: DeadLetterQueue, dead_letter: DeadLetter) -> bytes:
    try:
        raw = (
            open_blobs(settings.blob_url).get(dead_letter.raw_ref)
            if dead_letter.raw_ref
            else dead_letters.raw(dead_letter.id)
        )
    except PermanentError as error:
        raise OperationFailed(str(error)) from error
    if raw is None:
        raise OperationFailed(
            f"dead letter {dead_letter.id} holds no message: it was not written by a producer of ours"
        )
    return raw


def _write_new(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except FileExistsError as error:
        raise OperationFailed(f"{path} exists already: name another file") from error
    except OSError as error:
        raise OperationFailed(f"cannot write {path}: {error.strerror}") from error


def _matching_ids(dead_letters: DeadLetterQueue, selected: DlqSelection) -> tuple[list[str], list[FailureGroup]]:
    """Return the ids of the selected letters and their groups; not the letters, which may be many."""
    ids: list[str] = []

    def collect() -> Iterator[DeadLetter]:
        for dead_letter in selected.letters(dead_letters):
            ids.append(dead_letter.id)
            yield dead_letter

    groups = group_failures(collect())
    if selected.ids and len(ids) < len(selected.ids):
        say(f"not among the dead letters, or not matching: {', '.join(sorted(set(selected.ids) - set(ids)))}")
    return ids, groups


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise OperationFailed("nobody is there to confirm and nothing was deleted: say --yes, or look with --dry-run")
    return typer.confirm(question, err=True)


def _preview(action: str, ids: Sequence[str], groups: Sequence[FailureGroup], *, as_json: bool) -> int:
    if as_json:
        typer.echo(json.dumps({"dry_run": True, "matched": len(ids), "kinds": groups_as_json(groups)}, indent=2))
    else:
        show_groups(groups, as_json=False)
        say(f"would {action} {count_letters(len(ids))}; nothing was changed")
    return OK
