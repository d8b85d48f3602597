"""Progress bars on stderr for long commands; nothing is shown where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn

from email_ingestion.ops.progress import progress_bar

if TYPE_CHECKING:
    from email_ingestion.backup.create import BackupProgress


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar; yield a function to be called with the number of things done since its last call."""
    with progress_bar() as shown:
        task = shown.add_task(title, total=total)
        yield lambda done: shown.advance(task, done)


def run_with_progress(
    title: str,
    steps: Iterable[None],
    position: Callable[[], tuple[int, int | None]],
    unit: ProgressColumn | None = None,
) -> None:
    """Run all `steps`; after every step `position` returns how far it is and the total, if that is known."""
    columns = (TextColumn("{task.description}"), BarColumn(), unit or MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as shown:
        task = shown.add_task(title, total=None)
        for _ in steps:
            completed, total = position()
            shown.update(task, completed=completed, total=total)


@contextmanager
def step_progress() -> Iterator[BackupProgress]:
    """Show one bar for the steps of a backup or a restore, one after the other; yield its callbacks."""
    from email_ingestion.backup.create import BackupProgress  # noqa: PLC0415 - other commands need no SQLAlchemy

    with progress_bar() as shown:
        task = shown.add_task("", total=None)

        def update(done: int, total: int | None) -> None:
            shown.update(task, completed=done, total=total)  # None leaves the total as it is

        yield BackupProgress(
            start_step=lambda name, total: shown.reset(task, description=name, total=total), update=update
        )
