"""Where mail goes: the protocol of a sink, what it gets, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Protocol, cast

from email_ingestion.email import Email
from email_ingestion.errors import ConfigurationError

if TYPE_CHECKING:
    from email_ingestion.settings import Settings

GROUP = "email_ingestion.sinks"  # entry points of this group are callables `open_sink(settings) -> Sink`


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message for a sink. Its idempotency key is `email.email_id`."""

    email: Email
    raw: bytes
    raw_ref: str | None = None  # set when the raw bytes already lie in the blob store


class Sink(Protocol):
    """Takes messages, each at least once; what they cause must happen once."""

    name: str

    def deliver(self, batch: Sequence[Parcel]) -> set[str]:
        """Take all of `batch` or nothing that a repetition would double; returns the identities it had already.

        Raises SinkUnavailable when no message is to blame, PermanentError when one never will go through,
        TransientError when it may later; the caller then settles the batch one by one.
        """

    def ping(self) -> None:
        """Return when a delivery would work now; raises SinkUnavailable otherwise."""

    def close(self) -> None:
        """Give back what it holds."""


def load_sink(name: str, settings: Settings) -> Sink:
    """Open the sink that an installed package offers under `name`.

    Raises ConfigurationError for an unknown name or a package that cannot be imported, and whatever opening it raises.
    """
    opener = _find(name)
    try:
        open_sink = opener.load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"SINKS: {name!r} ({opener.value}) cannot be loaded: {error}") from error
    return cast("Sink", open_sink(settings))


def _find(name: str) -> EntryPoint:
    offered = {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}
    if name in offered:
        return offered[name]
    near = get_close_matches(name, offered, n=3) or sorted(offered)
    valid = " or ".join(map(repr, near)) or "none is installed: pip install -e ."
    raise ConfigurationError(f"SINKS names {name!r}, which is no sink; valid: {valid}")
