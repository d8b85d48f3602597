"""The sink that calls a function of yours with each record: `SINKS=python:my_module:handle`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from email_ingestion.errors import ConfigurationError
from email_ingestion.records import Email, SinkMessage

if TYPE_CHECKING:
    from email_ingestion.settings import Settings


def open_sink(settings: Settings, target: str = "") -> PythonSink:
    """Import the function; modules of the working directory are found too. Raises ConfigurationError."""
    del settings
    module, _, function = target.partition(":")
    if not module or not function:
        raise ConfigurationError("SINKS: python needs a module and a function, such as python:my_module:handle")
    return PythonSink(_found(module, function))


def _found(module: str, function: str) -> Callable[[Email], object]:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(import_module(module), function, None)
    except Exception as error:  # whatever a foreign module does when it is imported
        raise ConfigurationError(f"SINKS: the module {module!r} cannot be imported: {error!r}") from error
    if not callable(found):
        raise ConfigurationError(f"SINKS: the module {module!r} has no function {function!r}")
    return found  # type: ignore[no-any-return]


class PythonSink:
    """See `Sink`. The function raises `email_ingestion.Retry` or `Reject`; another error counts as a failure."""

    name = "python"
    parallel = 1  # one message after the other: nobody said that the function may be called by several threads

    def __init__(self, handle: Callable[[Email], object]) -> None:
        self._handle = handle

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """See `Sink`; called with one message at a time."""
        for parcel in batch:
            self._handle(parcel.email)

    def ping(self) -> None:
        """See `Sink`; a function has no other way to be asked than being called."""
