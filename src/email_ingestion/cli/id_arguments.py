"""Arguments that name a message or an entry: whole, or by any beginning that means one only, as git does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

import typer

from email_ingestion.cli.exit_codes import NEGATIVE
from email_ingestion.cli.output import printable, say
from email_ingestion.identity import MIN_PART, matches_identity

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.stream.pending import PendingEntries

_SHOWN = 10  # candidates of an ambiguous beginning
_ENTRY_ID = re.compile(r"(?:[0-9]{1,2}:)?[0-9]{1,19}-[0-9]{1,19}")
_ENTRY_ID_PART = re.compile(r"(?:[0-9]{1,2}:)?[0-9]{1,19}(?:-[0-9]{0,19})?")


def pick_identity(part: str, candidates: Callable[[], Iterable[str]]) -> str | None:
    """Return the identity of `candidates` that `part` means; None when it means none.

    Raises BadParameter when it is too short, or lists what it may mean and raises it when that is several.
    """
    known = set(candidates())
    if part in known:
        return part
    _refuse_short(part)
    return _only(part, sorted(each for each in known if matches_identity(part, each)), "messages")


def pick_delivered(ledger: Ledger, part: str) -> str | None:
    """Return the identity of a delivered message; like `pick_identity`."""
    if ledger.known_ids([part]):
        return part
    _refuse_short(part)
    return _only(part, ledger.mail_search.matching_ids(part), "messages")


def pick_pending(stuck: PendingEntries, ledger: Ledger | None, part: str) -> str | None:
    """Return the identity of a message that a worker or, by the ledger, a sink has; like `pick_identity`."""
    started = ledger.outbox.started() if ledger else []
    ids = [each.email_id for each in started]
    return pick_identity(part, lambda: chain(ids, (each.email_id for each in stuck.entries())))


def pick_entry_ids(texts: Sequence[str], kind: str, candidates: Callable[[], Iterable[str]]) -> tuple[str, ...]:
    """Return ids of Redis Stream entries, sorted, each once; a beginning is looked for among `candidates`.

    `kind` says what the ids are of. Raises BadParameter for a text that is no id or means several, and Exit with the
    negative answer for a beginning that means none, before anything is done to the others.
    """
    for text in texts:
        if not _ENTRY_ID_PART.fullmatch(text):
            raise typer.BadParameter(f"{text!r} is no id of {kind}: they look like 1767225600000-0")
    parts = {text for text in texts if not _ENTRY_ID.fullmatch(text)}
    for part in parts:
        _refuse_short(part)
    known = sorted(set(candidates()), key=_entry_order) if parts else []
    picked = {_pick_entry_id(text, kind, known) if text in parts else text for text in texts}
    return tuple(sorted(picked, key=_entry_order))


def _pick_entry_id(part: str, kind: str, known: Sequence[str]) -> str:
    found = _only(part, [each for each in known if each.startswith(part) or _local(each).startswith(part)], "entries")
    if found is None:
        say(f"there is no id of {kind} that begins with {part}")
        raise typer.Exit(NEGATIVE)
    return found


def _only(part: str, found: Sequence[str], things: str) -> str | None:
    if len(found) <= 1:
        return found[0] if found else None
    for each in islice(found, _SHOWN):
        say(f"  {each}")
    if len(found) > _SHOWN:
        say(f"  and {len(found) - _SHOWN:,} more")
    raise typer.BadParameter(f"{printable(part)} may mean {len(found):,} {things}, listed above: give more of the one")


def _refuse_short(part: str) -> None:
    if len(part) < MIN_PART:
        raise typer.BadParameter(f"{printable(part)!r} is too short: give {MIN_PART} characters of an id or more")


def _local(entry_id: str) -> str:
    """Return an id without its partition."""
    return entry_id.rpartition(":")[2]


def _entry_order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, _local(entry_id).split("-")))
