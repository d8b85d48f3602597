"""Shows the steps of a backup or a restore as a bar, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from email_ingestion.app.bars import bar
from email_ingestion.backup.create import Steps


@contextmanager
def steps() -> Iterator[Steps]:
    """Yields what to tell about the progress."""
    with bar() as shown:
        task = shown.add_task("", total=None)

        def at(done: int, total: int | None) -> None:
            shown.update(task, completed=done, total=total)  # None leaves the total as it is

        yield Steps(begin=lambda name, total: shown.reset(task, description=name, total=total), at=at)
