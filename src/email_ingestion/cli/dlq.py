"""`email-ingestion dlq`: the commands about dead letters; here are those that only look."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from email_ingestion.blobs import open_blobs
from email_ingestion.cli.common import parse_entry_ids
from email_ingestion.cli.dlq_change import export, purge, replay
from email_ingestion.cli.dlq_filter import (
    AccountOption,
    AgeOption,
    ErrorTypeOption,
    FingerprintOption,
    ReasonOption,
    choose,
    open_graveyard,
)
from email_ingestion.cli.dlq_output import answer, show_kinds, show_letter, show_letters
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say
from email_ingestion.errors import OperationFailed, PermanentError
from email_ingestion.settings import Settings
from email_ingestion.stream import Graveyard
from email_ingestion.stream.dead_letters import DeadLetter, kinds

dlq = typer.Typer(help="Look at dead letters, put them back into the stream, export and purge them.")


@dlq.command("list")
def list_letters(
    *,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    fingerprint: FingerprintOption = None,
    account: AccountOption = None,
    older_than: AgeOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most letters shown.")] = 50,
    as_json: Json = False,
) -> int:
    """List dead letters, oldest first. Exit code 0 when there are some, 1 when there are none.

    Examples:
      email-ingestion dlq list
      email-ingestion dlq list --reason permanent --older-than 7d
      email-ingestion dlq list --json --limit 1000
    """
    choice = choose(
        reason=reason, error_type=error_type, fingerprint=fingerprint, account=account, older_than=older_than
    )
    _, graveyard = open_graveyard()
    found = list(islice(choice.letters(graveyard), limit + 1))
    show_letters(found[:limit], as_json=as_json)
    if len(found) > limit:
        say(f"these are the first {limit}; --limit shows more, `dlq stats` counts all")
    return answer(found)


@dlq.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The letter's id.", show_default=False)],
    raw: Annotated[Path | None, typer.Option("--raw", help="Write the message to this new file (RFC 822).")] = None,
    as_json: Json = False,
) -> int:
    """Show all that is known of one dead letter; the message itself only goes to a file, and only when asked.

    Examples:
      email-ingestion dlq show 1767225600000-0
      email-ingestion dlq show 1767225600000-0 --raw letter.eml
    """
    (wanted,) = parse_entry_ids([letter_id], "a dead letter")
    settings, graveyard = open_graveyard()
    letter = next(graveyard.find([wanted]), None)
    if letter is None:
        say(f"there is no dead letter {wanted}")
        return NEGATIVE
    if raw:
        _write_new(raw, _message(settings, graveyard, letter))
        say(f"the message is in {raw}")
    show_letter(letter, as_json=as_json)
    return OK


@dlq.command()
def stats(
    *,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    fingerprint: FingerprintOption = None,
    account: AccountOption = None,
    older_than: AgeOption = None,
    as_json: Json = False,
) -> int:
    """Count dead letters by fingerprint: those that died the same death. Exit code 1 when there are none.

    Examples:
      email-ingestion dlq stats
      email-ingestion dlq stats --json --account default
    """
    choice = choose(
        reason=reason, error_type=error_type, fingerprint=fingerprint, account=account, older_than=older_than
    )
    _, graveyard = open_graveyard()
    found = kinds(choice.letters(graveyard))
    show_kinds(found, as_json=as_json)
    return answer(found)


dlq.command()(export)
dlq.command()(replay)
dlq.command()(purge)


def _message(settings: Settings, graveyard: Graveyard, letter: DeadLetter) -> bytes:
    try:
        raw = open_blobs(settings.blob_url).get(letter.raw_ref) if letter.raw_ref else graveyard.raw(letter.id)
    except PermanentError as error:
        raise OperationFailed(str(error)) from error
    if raw is None:
        raise OperationFailed(f"dead letter {letter.id} holds no message: it was not written by a producer of ours")
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
