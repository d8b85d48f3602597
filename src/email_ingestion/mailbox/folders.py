"""Which mailbox a setting means; by its attribute, never by its name, for Gmail names it in the user's language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from email_ingestion.errors import ConfigurationError
from email_ingestion.mailbox.message_summary import to_text

ALL = b"\\All"


def mailbox_for(wanted: str, folders: Sequence[tuple[Any, Any, Any]], *, gmail: bool) -> str:
    """Its name among `folders` as LIST gives them; raises ConfigurationError when there is no such mailbox."""
    if wanted.startswith("\\"):
        return _with_attribute(folders, wanted)
    if wanted != "auto":
        names = [str(name) for _, _, name in folders]
        if wanted not in names:
            raise ConfigurationError(f"IMAP_MAILBOX {wanted!r} does not exist; there are: {', '.join(names[:20])}")
        return wanted
    if not gmail:
        return "INBOX"
    for flags, _, name in folders:
        if ALL in flags:
            return str(name)
    raise ConfigurationError(
        "the mailbox of all mail is hidden: tick 'Show in IMAP' for All Mail in Gmail's settings (Labels), "
        "or set IMAP_MAILBOX=INBOX"
    )


def _with_attribute(folders: Sequence[tuple[Any, Any, Any]], wanted: str) -> str:
    for flags, _, name in folders:
        if wanted.casefold() in {to_text(flag).casefold() for flag in flags}:
            return str(name)
    raise ConfigurationError(f"IMAP_MAILBOX {wanted}: no mailbox has this attribute, or it is hidden from IMAP")
