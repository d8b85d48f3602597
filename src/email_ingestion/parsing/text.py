"""Turn a decoded text part into readable text: unwrap format=flowed, lay out HTML within a budget."""

from __future__ import annotations

import re
from typing import Final

from email_ingestion.parsing import html_text, limits
from email_ingestion.parsing.defects import Defect, Defects

_ENRICHED_TAG: Final = re.compile(r"<(/?)([a-zA-Z0-9-]{1,60})>|(<<)")
_LINE_BREAKS: Final = re.compile(r"\n+")


def normalize(text: str) -> str:
    """Convert all line ends to LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def unflow(text: str, *, delsp: bool) -> str:
    """Undo the soft line breaks of a format=flowed part (RFC 3676, section 4)."""
    lines: list[str] = []
    paragraph: list[str] = []
    depth = 0
    for line in text.split("\n"):
        quotes, content = _split_quotes(line)
        if paragraph and (quotes != depth or content == "-- "):
            lines.append(_join_paragraph(paragraph, depth))
            paragraph = []
        depth = quotes
        if content.endswith(" ") and content != "-- ":
            paragraph.append(content[:-1] if delsp else content)
            continue
        lines.append(_join_paragraph([*paragraph, content], depth))
        paragraph = []
    return "\n".join([*lines, _join_paragraph(paragraph, depth)] if paragraph else lines)


def _split_quotes(line: str) -> tuple[int, str]:
    content = line.lstrip(">")
    return len(line) - len(content), content.removeprefix(" ")  # the space is stuffing (section 4.4)


def _join_paragraph(paragraph: list[str], depth: int) -> str:
    return (">" * depth + " " if depth else "") + "".join(paragraph)


def unenrich(enriched: str) -> str:
    """Make text/enriched (RFC 1896) plain: remove the commands, and turn one line break into a space.

    Of several line breaks one less is kept, within <nofill> all.
    """
    enriched, rest = enriched[: limits.ENRICHED_CHARS], enriched[limits.ENRICHED_CHARS :]
    pieces: list[str] = []
    position = hidden = unfilled = 0
    for match in _ENRICHED_TAG.finditer(enriched):
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
        pieces.append(text if unfilled else _LINE_BREAKS.sub(_fill, text))


def _fill(newlines: re.Match[str]) -> str:
    return "\n" * (len(newlines[0]) - 1) or " "


class HtmlReader:
    """Convert the HTML parts of one message to text; all of them share one budget of characters and tags."""

    def __init__(self, defects: Defects) -> None:
        self._defects = defects
        self._chars = limits.HTML_CHARS
        self._tags = limits.HTML_TAGS

    def to_text(self, html: str) -> str:
        """Return the visible text with the line breaks of the layout; link targets and images are left out."""
        return html_text.to_text(self._within_budget(html))

    def _within_budget(self, html: str) -> str:
        kept = html[: max(self._chars, 0)]
        if kept.count("<") > self._tags:
            kept = "<".join(kept.split("<", self._tags + 1)[: self._tags + 1])
        if len(kept) < len(html):
            self._defects.note(Defect.HTML_TRUNCATED)
        self._chars -= len(kept)
        self._tags -= kept.count("<")
        return kept
