"""Progress bars on standard error when that is a terminal; nothing is shown otherwise."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from email_ingestion.events import Event, HistoryWalked


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Make a progress display to be used as a context manager; it disappears at the end."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class HistoryProgress:
    """An observer that shows how far the older mail of every account has been read in a single pass."""

    def __init__(self) -> None:
        self._progress = progress_bar(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        if isinstance(event, HistoryWalked):
            if event.account not in self._tasks:
                self._tasks[event.account] = self._progress.add_task(event.account, total=1.0)
            self._progress.update(self._tasks[event.account], completed=event.done)
