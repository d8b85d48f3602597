"""The selection of dead letters: the options that all `dlq` commands share, and how they combine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from itertools import islice
from typing import Annotated, Any, get_args

import typer

from email_ingestion.cli.common import parse_duration, refuse_unknown_account
from email_ingestion.cli.id_arguments import pick_entry_ids
from email_ingestion.cli.progress_bars import progress
from email_ingestion.settings import Settings
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.stream.dead_letters import UNKNOWN, DeadLetter, DeadLetterFilter, Reason

REASONS = (*get_args(Reason), UNKNOWN)

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]...", help="Letters by id or its beginning.", show_default=False),
]
ReasonOption = Annotated[str | None, typer.Option("--reason", help=f"Only those that died of {', '.join(REASONS)}.")]
ErrorTypeOption = Annotated[str | None, typer.Option("--error-type", help="Only those with this class of error.")]
FingerprintOption = Annotated[str | None, typer.Option("--fingerprint", help="Only those alike; `dlq stats` names it.")]
AccountOption = Annotated[str | None, typer.Option("--account", help="Only this account's, by its configured name.")]
AgeOption = Annotated[str | None, typer.Option("--older-than", metavar="AGE", help="Only those dead for 30m, 12h, 7d.")]
FirstOption = Annotated[int | None, typer.Option("--first", min=1, help="Of these only so many, the oldest.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every letter that is there now.")]


@dataclass(frozen=True, slots=True)
class DlqSelection:
    """The dead letters a command is about: by id, by condition, or all; of these only the `first`, if given."""

    conditions: DeadLetterFilter
    older_than: timedelta | None = None
    ids: tuple[str, ...] = ()  # as they were typed, until `with_whole_ids`
    everything: bool = False
    first: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the selection as the audit log and an export's first line have it."""
        record = {name: value for name, value in asdict(self.conditions).items() if value is not None}
        record |= {"older_than_seconds": self.older_than.total_seconds()} if self.older_than else {}
        record |= {"ids": list(self.ids)} if self.ids else {}
        return (record or {"all": True}) | ({"first": self.first} if self.first else {})

    @property
    def is_narrowed(self) -> bool:
        """Whether ids or conditions leave something out."""
        return bool(self.ids or self.older_than is not None or self.conditions != DeadLetterFilter())

    def with_whole_ids(self, dead_letters: DeadLetterQueue) -> DlqSelection:
        """Return the same selection with the whole ids of the letters it names. Raises like `pick_entry_ids`."""
        return replace(self, ids=pick_letter_ids(self.ids, dead_letters))

    def refuse_unknown_account(self, settings: Settings, dead_letters: DeadLetterQueue) -> None:
        """Raise BadParameter for an account that is not configured and has no letter."""
        account = self.conditions.account
        if account is not None:
            of_account = DeadLetterFilter(account=account)
            refuse_unknown_account(settings, account, lambda: any(map(of_account.matches, dead_letters.letters())))

    def letters(self, dead_letters: DeadLetterQueue) -> Iterator[DeadLetter]:
        """Yield the selected letters that exist now, in the order of their ids."""
        return islice(self._matching(dead_letters), self.first)

    def _matching(self, dead_letters: DeadLetterQueue) -> Iterator[DeadLetter]:
        before = datetime.now(UTC) - self.older_than if self.older_than else None
        found = dead_letters.find(self.ids) if self.ids else dead_letters.letters(before)
        with progress("reading", len(self.ids) or dead_letters.depth()) as advance:
            for dead_letter in found:
                advance(1)
                if self.conditions.matches(dead_letter):
                    yield dead_letter


def pick_letter_ids(ids: Sequence[str], dead_letters: DeadLetterQueue) -> tuple[str, ...]:
    """Return the whole ids of the letters that `ids` name. Raises like `pick_entry_ids`."""
    return pick_entry_ids(ids, "a dead letter", lambda: (each.id for each in dead_letters.letters()))


def conditions(
    *,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    fingerprint: FingerprintOption = None,
    account: AccountOption = None,
    older_than: AgeOption = None,
) -> DlqSelection:
    """Make the selection of a command that only looks: without conditions it means all letters."""
    if reason is not None and reason not in REASONS:
        raise typer.BadParameter(f"--reason is one of {', '.join(REASONS)}")
    age = None if older_than is None else parse_duration(older_than, "--older-than")
    return DlqSelection(DeadLetterFilter(reason, error_type, fingerprint, account), age)


def selection(
    *,
    ids: Ids = None,
    reason: ReasonOption = None,
    error_type: ErrorTypeOption = None,
    fingerprint: FingerprintOption = None,
    account: AccountOption = None,
    older_than: AgeOption = None,
    everything: AllOption = False,
    first: FirstOption = None,
) -> DlqSelection:
    """Make the selection of a command that moves letters: `--all` must be given, for it cannot be meant by silence."""
    narrowed_by = conditions(
        reason=reason, error_type=error_type, fingerprint=fingerprint, account=account, older_than=older_than
    )
    chosen = DlqSelection(
        narrowed_by.conditions,
        narrowed_by.older_than,
        tuple(ids or ()),
        everything=everything,
        first=first,
    )
    if everything and chosen.is_narrowed:
        raise typer.BadParameter("--all goes with no id and no condition")
    if ids and older_than:
        raise typer.BadParameter("--older-than goes with conditions, not with ids")
    if not everything and not chosen.is_narrowed:
        raise typer.BadParameter("name letters by id or by a condition, or say --all")
    return chosen


def with_options_of(parse: Callable[..., DlqSelection]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a command: it takes the options of `parse`, and gets what that returns as its first argument."""
    shared = inspect.signature(parse, eval_str=True).parameters

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def run(**given: Any) -> int:
            return command(parse(**{name: given.pop(name) for name in shared}), **given)

        run.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
        return run

    return decorate
