"""Where mail goes: the protocol of a sink, what it gets, and how one is found by its name.

A name in SINKS is that of a kind, perhaps with what it is to work on: `webhook`, `files:/srv/mail`,
`python:my_module:handle`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import TYPE_CHECKING, Protocol, cast

from email_ingestion.errors import ConfigurationError
from email_ingestion.records import SinkMessage

if TYPE_CHECKING:
    from email_ingestion.settings import Settings

__all__ = ["Sink", "SinkMessage", "load_sink"]

# Entry points of this group are callables `open_sink(settings) -> Sink` that contact nobody; where the name in SINKS
# has a colon, what follows it is their second argument.
GROUP = "email_ingestion.sinks"


class Sink(Protocol):
    """Takes messages, each at least once; what they cause must happen once.

    Two attributes may be left out: `close`, and `parallel`, how many messages it takes at the same time, each alone
    and on a thread of its own. Without it, it takes whole batches, one after the other.
    """

    name: str

    def deliver(self, batch: Sequence[SinkMessage]) -> Collection[str] | None:
        """Take all of `batch` or nothing that a repetition would double; returns the identities it had already.

        Raises SinkUnavailable or SinkThrottled when no message is to blame, PermanentError (Reject) when one never
        will go through, TransientError (Retry) when it may later; the caller then settles the batch one by one.
        """

    def ping(self) -> None:
        """Return when a delivery would work now; raises SinkUnavailable otherwise."""


def load_sink(name: str, settings: Settings) -> Sink:
    """Open the sink that an installed package offers under `name`.

    Raises ConfigurationError for an unknown name or a package that cannot be imported, and whatever opening it raises.
    """
    kind, colon, target = name.partition(":")
    opener = _find(kind)
    try:
        open_sink = opener.load()
    except Exception as error:  # whatever a foreign module does when it is imported
        raise ConfigurationError(f"SINKS: {name!r} ({opener.value}) cannot be loaded: {error!r}") from error
    arguments = (settings, target) if colon else (settings,)
    try:
        signature(open_sink).bind(*arguments)
    except TypeError as error:
        raise ConfigurationError(f"SINKS: {kind!r} takes nothing behind a colon, here {target!r}") from error
    sink = open_sink(*arguments)
    for name_of_it in ("deliver", "ping"):
        if not callable(getattr(sink, name_of_it, None)):
            raise ConfigurationError(f"SINKS: {kind!r} ({opener.value}) is no sink: it has no {name_of_it}")
    return cast("Sink", sink)


def close_sink(sink: Sink) -> None:
    """Have it give back what it holds."""
    close = getattr(sink, "close", None)
    if close:
        close()


def _find(kind: str) -> EntryPoint:
    offered = {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}
    if kind in offered:
        return offered[kind]
    near = get_close_matches(kind, offered, n=3) or sorted(offered)
    valid = " or ".join(map(repr, near)) or "none is installed: pip install -e ."
    raise ConfigurationError(f"SINKS names {kind!r}, which is no sink; valid: {valid}")
