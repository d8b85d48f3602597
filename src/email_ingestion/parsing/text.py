"""Turn a decoded text part into readable text: unwrap format=flowed, lay out HTML."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from inscriptis.css_profiles import CSS_PROFILES  # type: ignore[import-untyped]
from inscriptis.html_engine import Inscriptis  # type: ignore[import-untyped]
from inscriptis.html_properties import Display  # type: ignore[import-untyped]
from inscriptis.model.config import ParserConfig  # type: ignore[import-untyped]
from inscriptis.model.html_document_state import HtmlDocumentState  # type: ignore[import-untyped]
from inscriptis.model.html_element import HtmlElement  # type: ignore[import-untyped]
from inscriptis.model.tag import CustomHtmlTagHandlerMapping  # type: ignore[import-untyped]
from lxml import etree  # type: ignore[import-untyped]
from lxml.html import HtmlElement as Element  # type: ignore[import-untyped]
from lxml.html import HTMLParser, document_fromstring

from email_ingestion.parsing import limits
from email_ingestion.parsing.defects import Defect, Defects

_HIDDEN: Final = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_BLANK_LINES: Final = re.compile(r"\n{3,}")
_INVISIBLE_TAGS: Final = ("script", "style", "title", "template")


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


class HtmlReader:
    """Convert the HTML parts of one message to text; all of them share one budget of characters and tags."""

    def __init__(self, defects: Defects) -> None:
        self._defects = defects
        self._chars = limits.HTML_CHARS
        self._tags = limits.HTML_TAGS

    def to_text(self, html: str) -> str:
        """Return the visible text with the line breaks of the layout; link targets and images are left out."""
        tree = _parse_html(self._within_budget(html))
        if tree is None:
            return ""
        try:
            laid_out = Inscriptis(tree, _CONFIG).get_text()
        except Exception:  # noqa: BLE001 - it raises ValueError, IndexError, RecursionError, … on hostile HTML
            self._defects.note(Defect.HTML_UNREADABLE)
            laid_out = "\n".join(tree.itertext())
        lines = (line.rstrip() for line in laid_out.split("\n"))
        return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")

    def _within_budget(self, html: str) -> str:
        kept = html[: max(self._chars, 0)]
        if kept.count("<") > self._tags:
            kept = "<".join(kept.split("<", self._tags + 1)[: self._tags + 1])
        if len(kept) < len(html):
            self._defects.note(Defect.HTML_TRUNCATED)
        self._chars -= len(kept)
        self._tags -= kept.count("<")
        return kept


def _parse_html(html: str) -> Element | None:
    if not html.strip():
        return None
    encoded = _NOT_XML.sub("\ufffd", html).encode("utf-8")
    try:
        # bytes and an explicit encoding: of text, lxml refuses one that declares its own encoding
        tree = document_fromstring(encoded, parser=HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True))
    except (etree.LxmlError, ValueError, AssertionError):  # "Document is empty", as for a comment alone
        return None
    etree.strip_elements(tree, *_INVISIBLE_TAGS, with_tail=False)
    return tree


def _hide(style: str, element: HtmlElement) -> None:
    if _HIDDEN.search(style):
        element.display = Display.none


def _skip_layout(_state: HtmlDocumentState, _attributes: dict[str, str] | None = None) -> None:
    """Replace inscriptis' table layout with nothing."""


def _write_space(state: HtmlDocumentState, _attributes: dict[str, str]) -> None:
    state.tags[-1].write(" ")


def _make_config() -> ParserConfig:
    """Render a table row as one line and begin each cell with a space: tables in mail are layout.

    Aligned columns would also allow a bomb: every cell is padded to the widest of its column. Of the CSS styles only
    "display: none" is honoured, because margins are written out as that many empty lines.
    """
    css = CSS_PROFILES["strict"] | {name: HtmlElement(display=Display.block) for name in ("table", "tr", "caption")}
    start: dict[str, Callable[..., None]] = {
        "table": _skip_layout,
        "tr": _skip_layout,
        "td": _write_space,
        "th": _write_space,
    }
    end: dict[str, Callable[..., None]] = dict.fromkeys(("table", "td", "th"), _skip_layout)
    config = ParserConfig(css=css, custom_html_tag_handler_mapping=CustomHtmlTagHandlerMapping(start, end))
    config.attribute_handler.attribute_mapping = {"style": _hide}
    return config


_CONFIG: Final = _make_config()
