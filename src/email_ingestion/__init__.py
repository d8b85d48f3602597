"""Pull every message of a mailbox into your own systems, exactly once in effect.

The names in `__all__` are the public API, for sinks of your own: docs/api.md. Everything else is private.
"""

from __future__ import annotations

import os
import sys

# On a disk that fills up meanwhile Python (before 3.13.1) leaves half a .pyc file, over which every later start ends.
LEAST_ROOM = 16 * 1024 * 1024  # bytes
if hasattr(os, "statvfs"):  # not on Windows
    try:
        _disk = os.statvfs(__file__)
        sys.dont_write_bytecode = sys.dont_write_bytecode or _disk.f_bavail * _disk.f_frsize < LEAST_ROOM
    except OSError:
        pass  # nor is there a file to write

TYPE_CHECKING = False  # as typing has it, whose import takes longer than everything here
if TYPE_CHECKING:
    from email_ingestion.errors import ConfigurationError, Reject, Retry, SinkThrottled, SinkUnavailable
    from email_ingestion.parsing import parse
    from email_ingestion.records import (
        AbuseReport,
        Address,
        Attachment,
        AuthenticationResults,
        Bounce,
        Calendar,
        Email,
        Envelope,
        MailingList,
        NestedMessage,
        RecipientStatus,
        SinkMessage,
    )
    from email_ingestion.sinks import Sink

__version__ = "0.2.0"

__all__ = [
    "AbuseReport",
    "Address",
    "Attachment",
    "AuthenticationResults",
    "Bounce",
    "Calendar",
    "ConfigurationError",
    "Email",
    "Envelope",
    "MailingList",
    "NestedMessage",
    "RecipientStatus",
    "Reject",
    "Retry",
    "Sink",
    "SinkMessage",
    "SinkThrottled",
    "SinkUnavailable",
    "__version__",
    "parse",
]

_HOMES = {
    **dict.fromkeys(("ConfigurationError", "Reject", "Retry", "SinkThrottled", "SinkUnavailable"), "errors"),
    "Sink": "sinks",
    "parse": "parsing",
}

if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used: a command that needs none of them starts without them."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - as above

        found = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'records')}"), name)
        globals()[name] = found
        return found
