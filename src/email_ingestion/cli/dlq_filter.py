"""Which dead letters a command is about: the options all `dlq` commands share, and what they mean together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, get_args

import typer

from email_ingestion.cli.common import open_redis, parse_duration, parse_entry_ids
from email_ingestion.cli.progress import progress
from email_ingestion.settings import Settings
from email_ingestion.stream import Graveyard
from email_ingestion.stream.dead_letters import UNKNOWN, DeadLetter, Reason, Wanted

REASONS = (*get_args(Reason), UNKNOWN)

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Letters by id.", show_default=False)]
ReasonOption = Annotated[str | None, typer.Option("--reason", help=f"Only those that died of {', '.join(REASONS)}.")]
ErrorTypeOption = Annotated[str | None, typer.Option("--error-type", help="Only those with this class of error.")]
FingerprintOption = Annotated[str | None, typer.Option("--fingerprint", help="Only those alike; `dlq stats` names it.")]
AccountOption = Annotated[str | None, typer.Option("--account", help="Only this account's, by its configured name.")]
AgeOption = Annotated[str | None, typer.Option("--older-than", metavar="AGE", help="Only those dead for 30m, 12h, 7d.")]
FirstOption = Annotated[int | None, typer.Option("--first", min=1, help="Of these only so many, the oldest.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every letter that is there now.")]


@dataclass(frozen=True, slots=True)
class Choice:
    """The letters a command is about: by id, by condition, or all, and of these perhaps only the first."""

    ids: tuple[str, ...]
    wanted: Wanted
    older_than: timedelta | None
    everything: bool
    first: int | None

    def as_dict(self) -> dict[str, Any]:
        """What was asked for, as the audit log and an export's first line tell it."""
        said = {name: value for name, value in asdict(self.wanted).items() if value is not None}
        said |= {"older_than_seconds": self.older_than.total_seconds()} if self.older_than else {}
        said |= {"ids": list(self.ids)} if self.ids else {}
        return (said or {"all": True}) | ({"first": self.first} if self.first else {})

    def letters(self, graveyard: Graveyard) -> Iterator[DeadLetter]:
        """The letters it means that are here now, in the order of their ids."""
        return islice(self._all(graveyard), self.first)

    def _all(self, graveyard: Graveyard) -> Iterator[DeadLetter]:
        before = datetime.now(UTC) - self.older_than if self.older_than else None
        found = graveyard.find(self.ids) if self.ids else graveyard.letters(before)
        with progress("reading", len(self.ids) or graveyard.depth()) as advance:
            for letter in found:
                advance(1)
                if self.wanted.fits(letter):
                    yield letter


def choose(
    *,
    ids: Sequence[str] | None = None,
    reason: str | None,
    error_type: str | None,
    fingerprint: str | None,
    account: str | None,
    older_than: str | None,
    everything: bool = False,
    first: int | None = None,
    must: bool = False,
) -> Choice:
    """What the options say; with `must` they must say something, for forgetting them is not asking for all."""
    if reason is not None and reason not in REASONS:
        raise typer.BadParameter(f"--reason is one of {', '.join(REASONS)}")
    wanted = Wanted(reason, error_type, fingerprint, account)
    choice = Choice(parse_entry_ids(ids or [], "a dead letter"), wanted, _age(older_than), everything, first)
    narrowed = bool(choice.ids or older_than or wanted != Wanted())
    if everything and narrowed:
        raise typer.BadParameter("--all goes with no id and no condition")
    if ids and older_than:
        raise typer.BadParameter("--older-than goes with conditions, not with ids")
    if must and not everything and not narrowed:
        raise typer.BadParameter("name letters by id or by a condition, or say --all")
    return choice


def _age(text: str | None) -> timedelta | None:
    return None if text is None else parse_duration(text, "--older-than")


def open_graveyard() -> tuple[Settings, Graveyard]:
    """The settings and the dead letters of their Redis."""
    settings, link = open_redis("dlq")
    return settings, Graveyard(link)
