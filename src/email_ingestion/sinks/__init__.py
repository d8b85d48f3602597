"""The `Sink` protocol, and how a sink is loaded by its name in SINKS.

A name is a kind, or a kind and a target: `webhook`, `files:/srv/mail`, `python:my_module:handle`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from email_ingestion.errors import ConfigurationError, EmailIngestionError, SinkUnavailable, is_shortage
from email_ingestion.records import ChangeEvent, SinkMessage

if TYPE_CHECKING:
    from email_ingestion.settings import Settings

__all__ = ["ChangeSink", "Sink", "SinkMessage", "load_sink"]

# Entry points of this group are callables `open_sink(settings) -> Sink`, or `open_sink(settings, target)`: the target
# is the text after the colon of the name in SINKS.
GROUP = "email_ingestion.sinks"


class Sink(Protocol):
    """A destination of mail. It gets each message at least once and must have its effect once.

    Further attributes are optional:

    `close()` is called once, after the last delivery.

    `erase(messages: Sequence[ErasableMessage]) -> int` removes what the destination keeps of messages that are erased,
    and returns of how many it had anything; it may be called in another process than `deliver`.

    `parallel: int` is the number of threads that may call `deliver` at the same time, each with one message. Without
    it, one thread calls `deliver` with whole batches.
    """

    name: str

    def deliver(self, batch: Sequence[SinkMessage]) -> Collection[str] | None:
        """Take the whole batch; when it raises, the messages of the batch come again, also those already taken.

        Return the `email_id`s that the sink had already, or None when it does not know.

        Raises SinkUnavailable when the destination is down, SinkThrottled when it asks for a pause, Reject when it
        will never take a message, Retry when it may take it later. A batch of several messages that fails with
        another error than the first two is delivered again one by one.
        """

    def ping(self) -> None:
        """Check that a delivery would work now, without delivering anything. Raises SinkUnavailable."""


class ChangeSink(Sink, Protocol):
    """A sink that can be told what happens to a message later, at least once and for each message in order."""

    def tell_changes(self, events: Sequence[ChangeEvent]) -> None:
        """Tell all of `events`; where one may be told beside others, because of `parallel`, there is one.

        Raises as `deliver` does.
        """

    def tell_missed(self, start_from: int) -> None:
        """Tell that changes before the number `start_from` were missed. Raises as `deliver` does."""


def load_sink(name: str, settings: Settings) -> Sink:
    """Open the sink that an installed package offers under `name`.

    Raises ConfigurationError for an unknown name and for a package that cannot be imported, SinkUnavailable when this
    machine has nothing to spare for it now, and the errors of its `open_sink`.
    """
    try:
        return _load(name, settings)
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise SinkUnavailable(f"sink {name} cannot be opened now: {error}") from error


def _load(name: str, settings: Settings) -> Sink:
    kind, colon, target = name.partition(":")
    opener = _find_entry_point(kind)
    try:
        open_sink = opener.load()
    except (Exception, SystemExit) as error:  # a foreign module may raise anything when it is imported
        if is_shortage(error):
            raise
        raise ConfigurationError(f"SINKS: {name!r} ({opener.value}) cannot be loaded: {error!r}") from error
    arguments = (settings, target) if colon else (settings,)
    try:
        signature(open_sink).bind(*arguments)
    except TypeError as error:
        raise ConfigurationError(f"SINKS: {kind!r} takes nothing behind a colon, here {target!r}") from error
    sink = open_sink(*arguments)
    for method in ("deliver", "ping"):
        if not callable(getattr(sink, method, None)):
            raise ConfigurationError(f"SINKS: {kind!r} ({opener.value}) is no sink: it has no {method}")
    return cast("Sink", sink)


def close_sink(sink: Sink) -> None:
    """Call the sink's `close`, if it has one."""
    close = getattr(sink, "close", None)
    if close:
        close()


def ping_sink(sink: Sink) -> None:
    """Call the sink's `ping`. Whatever it raises counts as SinkUnavailable: `sys.exit` in it must end no thread."""
    try:
        sink.ping()
    except EmailIngestionError:
        raise
    except (Exception, SystemExit) as error:
        raise SinkUnavailable(f"sink {sink.name}: its ping failed: {type(error).__name__}") from error


def _find_entry_point(kind: str) -> EntryPoint:
    for own in _own_entry_points():
        if own.name == kind:
            return own
    offered = {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}
    if kind in offered:
        return offered[kind]
    with Path(os.devnull).open("rb"):  # without a descriptor to spare all packages seem to be missing
        pass
    near = get_close_matches(kind, offered, n=3) or sorted(offered)
    valid = " or ".join(map(repr, near)) or "none is installed: pip install -e ."
    raise ConfigurationError(f"SINKS names {kind!r}, which is no sink; valid: {valid}")


def _own_entry_points() -> Sequence[EntryPoint]:
    """Return what this package offers: found at once, where a look into all that is installed takes 30 ms."""
    try:
        return tuple(distribution("email-ingestion").entry_points.select(group=GROUP))
    except PackageNotFoundError:
        return ()
