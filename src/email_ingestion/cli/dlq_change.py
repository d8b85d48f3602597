"""`dlq export`, `replay` and `purge`: what moves dead letters, written into the audit log.

Replay and purge take the letters that match when they begin, not those that are buried meanwhile. A command that broke
off is simply given again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from email_ingestion.cli.common import audited
from email_ingestion.cli.dlq_filter import (
    AccountOption,
    AgeOption,
    AllOption,
    Choice,
    ErrorTypeOption,
    FingerprintOption,
    FirstOption,
    Ids,
    ReasonOption,
    choose,
    open_graveyard,
)
from email_ingestion.cli.dlq_output import answer, kinds_as_json, show_kinds
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, report, say
from email_ingestion.cli.progress import progress
from email_ingestion.errors import OperationFailed, RedisConnectionError, SinkUnavailable
from email_ingestion.settings import Settings
from email_ingestion.stream import Graveyard
from email_ingestion.stream.dead_letters import DeadLetter, Kind, kinds
from email_ingestion.stream.letter_file import Exported, read_letters, write_letters

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A new file; default in BACKUP_DIR.")]


def export(
    *,
    ids: Ids = None,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    fingerprint: FingerprintOption = None,
    account: AccountOption = None,
    older_than: AgeOption = None,
    everything: AllOption = False,
    first: FirstOption = None,
    output: Output = None,
    as_json: Json = False,
) -> int:
    """Write dead letters with their messages to a file (JSON lines, mode 0600) and leave them where they are.

    Examples:
      email-ingestion dlq export --all
      email-ingestion dlq export --fingerprint 1f0c9a6be2d4 --output letters.jsonl
    """
    choice = choose(
        ids=ids,
        reason=reason,
        error_type=error_type,
        fingerprint=fingerprint,
        account=account,
        older_than=older_than,
        everything=everything,
        first=first,
        must=True,
    )
    settings, graveyard = open_graveyard()
    chosen, _ = _chosen(graveyard, choice)
    if not chosen:
        return answer(chosen)
    path = output or _default_output(settings)
    exported = _export(graveyard, chosen, path, choice)
    report(
        {"exported": len(exported.letters), "file": str(path), "sha256": exported.sha256},
        f"exported {_letters(len(exported.letters))} to {path}",
        as_json=as_json,
    )
    return OK


def replay(
    *,
    ids: Ids = None,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    fingerprint: FingerprintOption = None,
    account: AccountOption = None,
    older_than: AgeOption = None,
    everything: AllOption = False,
    first: FirstOption = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Put dead letters back into the stream, each once however often this is run. Exit code 1 when there was none.

    Examples:
      email-ingestion dlq replay --fingerprint 1f0c9a6be2d4 --dry-run
      email-ingestion dlq replay --fingerprint 1f0c9a6be2d4 --first 1
      email-ingestion dlq replay 1767225600000-0 1767225600001-0
      email-ingestion dlq replay --all
    """
    choice = choose(
        ids=ids,
        reason=reason,
        error_type=error_type,
        fingerprint=fingerprint,
        account=account,
        older_than=older_than,
        everything=everything,
        first=first,
        must=True,
    )
    settings, graveyard = open_graveyard()
    chosen, alike = _chosen(graveyard, choice)
    if not chosen:
        return answer(chosen)
    if dry_run:
        return _rehearse("put back", chosen, alike, as_json=as_json)
    with audited(settings.log_dir, "dlq replay", {"filter": choice.as_dict(), "matched": len(chosen)}) as outcome:
        moved = _replay(graveyard, chosen, outcome)
    gone = f"; {len(chosen) - moved} were replayed or purged by somebody else meanwhile" if moved < len(chosen) else ""
    report(
        {"dry_run": False, "matched": len(chosen), "replayed": moved},
        f"put {_letters(moved)} back into the stream{gone}",
        as_json=as_json,
    )
    return OK if moved else NEGATIVE


def purge(
    *,
    ids: Ids = None,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    fingerprint: FingerprintOption = None,
    account: AccountOption = None,
    older_than: AgeOption = None,
    everything: AllOption = False,
    first: FirstOption = None,
    output: Output = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> int:
    """Export dead letters to a file, then delete exactly those from Redis. Asks first; exit code 1 when there is none.

    The database remembers that their messages were given up, so that no audit brings them back.

    Examples:
      email-ingestion dlq purge --fingerprint 1f0c9a6be2d4 --dry-run
      email-ingestion dlq purge --older-than 30d --yes
    """
    choice = choose(
        ids=ids,
        reason=reason,
        error_type=error_type,
        fingerprint=fingerprint,
        account=account,
        older_than=older_than,
        everything=everything,
        first=first,
        must=True,
    )
    settings, graveyard = open_graveyard()
    chosen, alike = _chosen(graveyard, choice)
    if not chosen:
        return answer(chosen)
    if dry_run:
        return _rehearse("export and delete", chosen, alike, as_json=as_json)
    path = output or _default_output(settings)
    if not yes and not _confirmed(f"Export {_letters(len(chosen))} to {path} and delete them from Redis?"):
        say("nothing was deleted")
        return NEGATIVE
    details = {"filter": choice.as_dict(), "matched": len(chosen), "file": str(path)}
    with audited(settings.log_dir, "dlq purge", details) as outcome, _ledger(settings) as ledger:
        exported = _export(graveyard, chosen, path, choice)
        outcome |= {"exported": len(exported.letters), "sha256": exported.sha256}
        deleted = _remove(graveyard, ledger, exported, path, outcome)
    report(
        {"dry_run": False, "matched": len(chosen), **outcome, "file": str(path)},
        f"deleted {_letters(deleted)}; they are in {path}",
        as_json=as_json,
    )
    return OK if deleted else NEGATIVE


def _chosen(graveyard: Graveyard, choice: Choice) -> tuple[list[str], list[Kind]]:
    """The ids of the letters that are meant, and what they died of; not the letters, of which there may be many."""
    ids: list[str] = []

    def noted() -> Iterator[DeadLetter]:
        for letter in choice.letters(graveyard):
            ids.append(letter.id)
            yield letter

    alike = kinds(noted())
    if choice.ids and len(ids) < len(choice.ids):
        say(f"not among the dead letters, or not matching: {', '.join(sorted(set(choice.ids) - set(ids)))}")
    return ids, alike


def _replay(graveyard: Graveyard, ids: Sequence[str], outcome: dict[str, Any]) -> int:
    outcome["replayed"] = 0
    try:
        with progress("putting back", len(ids)) as advance:
            for moved in graveyard.replay(ids):
                outcome["replayed"] += moved
                advance(moved)
    except RedisConnectionError as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; {outcome['replayed']} of {_letters(len(ids))} were put back, the others stay: "
            "run the same command again when Redis takes mail"
        ) from error
    return int(outcome["replayed"])


def _export(graveyard: Graveyard, ids: Sequence[str], path: Path, choice: Choice) -> Exported:
    origin = {"exported_at": datetime.now(UTC).isoformat(), "filter": choice.as_dict()}
    with progress("exporting", len(ids)) as advance:
        write_letters(path, graveyard.entries(ids), origin, lambda: advance(1))
    return read_letters(path)


@contextmanager
def _ledger(settings: Settings) -> Iterator[Ledger | None]:
    """Where it is noted that messages were given up; None where no database has them."""
    if "database" not in settings.sinks:
        yield None
        return
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - slow to load, and only a purge needs it

    try:
        with closing(open_ledger(settings.database_url)) as ledger:
            ledger.ping()
            yield ledger
    except SinkUnavailable as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; it must note what is purged: try again when it is up"
        ) from error


def _remove(
    graveyard: Graveyard, ledger: Ledger | None, exported: Exported, path: Path, outcome: dict[str, Any]
) -> int:
    """Delete first and note it then: cut off in between, a message comes back instead of being lost."""
    outcome["deleted"] = 0
    try:
        with progress("deleting", len(exported.letters)) as advance:
            for deleted in graveyard.remove(exported.letters):
                if ledger:
                    ledger.note_purged(filter(None, map(exported.letters.get, deleted)))
                outcome["deleted"] += len(deleted)
                advance(len(deleted))
    except RedisConnectionError as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; {outcome['deleted']} of {_letters(len(exported.letters))} were deleted, all "
            f"are in {path}: run the same command again"
        ) from error
    return int(outcome["deleted"])


def _default_output(settings: Settings) -> Path:
    return settings.backup_dir / f"dlq-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl"


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise OperationFailed("nobody is there to confirm and nothing was deleted: say --yes, or look with --dry-run")
    return typer.confirm(question, err=True)


def _rehearse(what: str, ids: Sequence[str], alike: Sequence[Kind], *, as_json: bool) -> int:
    if as_json:
        typer.echo(json.dumps({"dry_run": True, "matched": len(ids), "kinds": kinds_as_json(alike)}, indent=2))
    else:
        show_kinds(alike, as_json=False)
        say(f"would {what} {_letters(len(ids))}; nothing was changed")
    return OK


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"
