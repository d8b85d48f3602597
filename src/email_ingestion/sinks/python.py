"""The sink that calls a Python function with each record: `SINKS=python:my_module:handle`."""

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
    """Import the function, also from the working directory, which is searched last. Raises ConfigurationError."""
    del settings
    module, _, function = target.partition(":")
    if not module or not function:
        raise ConfigurationError("SINKS: python needs a module and a function, such as python:my_module:handle")
    return PythonSink(_import_function(module, function))


def _import_function(module: str, name: str) -> Callable[[Email], object]:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(import_module(module), name, None)
    except Exception as error:  # a foreign module may raise anything when it is imported
        raise ConfigurationError(f"SINKS: the module {module!r} cannot be imported: {error!r}") from error
    if not callable(function):
        raise ConfigurationError(f"SINKS: the module {module!r} has no function {name!r}")
    return function  # type: ignore[no-any-return]


class PythonSink:
    """Calls the function. It may raise `email_ingestion.Retry` or `Reject`; another error counts as a failure."""

    name = "python"
    parallel = 1  # one message at a time: the function may not be thread-safe

    def __init__(self, handle: Callable[[Email], object]) -> None:
        self._handle = handle

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Call the function with the record of each message."""
        for message in batch:
            self._handle(message.email)

    def ping(self) -> None:
        """Do nothing: only a call shows whether the function works."""
