"""Shows the steps of something long: a bar on stderr when that is a terminal, nothing otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from email_ingestion.backup.make import Steps


@contextmanager
def steps() -> Iterator[Steps]:
    """Yields what to tell about the progress."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def at(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)  # None leaves the total as it is

        yield Steps(begin=lambda name, total: bar.reset(task, description=name, total=total), at=at)
