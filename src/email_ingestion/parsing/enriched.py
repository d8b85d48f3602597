"""Turn text/enriched (RFC 1896) and the text/richtext before it (RFC 1341) into plain text."""

from __future__ import annotations

import re
from typing import Final

from email_ingestion.parsing import limits

_TAG: Final = re.compile(r"<(/?)([a-zA-Z0-9-]{1,60})>|(<<)")
_NEWLINES: Final = re.compile(r"\n+")


def to_text(enriched: str) -> str:
    """Remove the commands; one line break is a space, of several one less is kept, and none within <nofill>."""
    enriched, rest = enriched[: limits.ENRICHED_CHARS], enriched[limits.ENRICHED_CHARS :]
    pieces: list[str] = []
    position = hidden = unfilled = 0
    for match in _TAG.finditer(enriched):
        _add(pieces, enriched[position : match.start()], hidden=hidden, unfilled=unfilled)
        position = match.end()
        if match[3]:
            pieces.append("<")
            continue
        name, change = match[2].lower(), -1 if match[1] else 1
        if name in {"param", "comment"}:
            hidden = max(0, hidden + change)
        elif name in {"nofill", "verbatim"}:
            unfilled = max(0, unfilled + change)
        elif name in {"nl", "np", "paragraph"}:
            pieces.append("\n")
        elif name == "lt":
            pieces.append("<")
    _add(pieces, enriched[position:], hidden=hidden, unfilled=unfilled)
    return "".join(pieces) + rest


def _add(pieces: list[str], text: str, *, hidden: int, unfilled: int) -> None:
    if not hidden:
        pieces.append(text if unfilled else _NEWLINES.sub(_fill, text))


def _fill(newlines: re.Match[str]) -> str:
    return "\n" * (len(newlines[0]) - 1) or " "
