"""How far a command is: a bar on stderr when that is a terminal, nothing otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn

from email_ingestion.app.bars import bar


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what to call with the number of things done meanwhile."""
    with bar() as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.advance(task, done)


def watched(
    what: str, steps: Iterable[None], place: Callable[[], tuple[int, int | None]], unit: ProgressColumn | None = None
) -> None:
    """Go through all of `steps`; `place` tells after each how far that is, and of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), unit or MofNCompleteColumn(), TimeRemainingColumn())
    with bar(*columns) as shown:
        task = shown.add_task(what, total=None)
        for _ in steps:
            completed, total = place()
            shown.update(task, completed=completed, total=total)
