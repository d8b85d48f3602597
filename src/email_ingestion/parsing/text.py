"""Text for people out of a text part: format=flowed unfolded, HTML laid out; which part is no business of it."""

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
_UNSEEN: Final = ("script", "style", "title", "template")


def normalize(text: str) -> str:
    """The text with LF line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def unflow(text: str, *, delsp: bool) -> str:
    """The text of a format=flowed part with its soft line breaks undone (RFC 3676, section 4)."""
    lines: list[str] = []
    paragraph: list[str] = []
    depth = 0
    for line in text.split("\n"):
        quotes, content = _quoted(line)
        if paragraph and (quotes != depth or content == "-- "):
            lines.append(_joined(paragraph, depth))
            paragraph = []
        depth = quotes
        if content.endswith(" ") and content != "-- ":
            paragraph.append(content[:-1] if delsp else content)
            continue
        lines.append(_joined([*paragraph, content], depth))
        paragraph = []
    return "\n".join([*lines, _joined(paragraph, depth)] if paragraph else lines)


def _quoted(line: str) -> tuple[int, str]:
    content = line.lstrip(">")
    return len(line) - len(content), content.removeprefix(" ")  # the space is stuffing (section 4.4)


def _joined(paragraph: list[str], depth: int) -> str:
    return (">" * depth + " " if depth else "") + "".join(paragraph)


class HtmlReader:
    """Turns the HTML parts of one message into text, all of them within one budget."""

    def __init__(self, defects: Defects) -> None:
        self._defects = defects
        self._chars = limits.HTML_CHARS
        self._tags = limits.HTML_TAGS

    def text(self, html: str) -> str:
        """What a person would read, with the line breaks of the layout; links and images are left out."""
        tree = _tree(self._within_budget(html))
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


def _tree(html: str) -> Element | None:
    if not html.strip():
        return None
    encoded = _NOT_XML.sub("\ufffd", html).encode("utf-8")
    try:
        # bytes and an explicit encoding: of text, lxml refuses one that declares its own encoding
        tree = document_fromstring(encoded, parser=HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True))
    except (etree.LxmlError, ValueError, AssertionError):  # "Document is empty", as for a comment alone
        return None
    etree.strip_elements(tree, *_UNSEEN, with_tail=False)
    return tree


def _hide(style: str, element: HtmlElement) -> None:
    if _HIDDEN.search(style):
        element.display = Display.none


def _nothing(_state: HtmlDocumentState, _attributes: dict[str, str] | None = None) -> None:
    """Replaces the table layout."""


def _space(state: HtmlDocumentState, _attributes: dict[str, str]) -> None:
    state.tags[-1].write(" ")


def _config() -> ParserConfig:
    """Tables of mail are layout, so a row is a line and a cell begins with a space.

    Aligned columns would also be a bomb: every cell is padded to the widest of its column. Of the styles only
    "display: none" counts, because margins are written out as that many empty lines.
    """
    css = CSS_PROFILES["strict"] | {name: HtmlElement(display=Display.block) for name in ("table", "tr", "caption")}
    start: dict[str, Callable[..., None]] = {"table": _nothing, "tr": _nothing, "td": _space, "th": _space}
    end: dict[str, Callable[..., None]] = dict.fromkeys(("table", "td", "th"), _nothing)
    config = ParserConfig(css=css, custom_html_tag_handler_mapping=CustomHtmlTagHandlerMapping(start, end))
    config.attribute_handler.attribute_mapping = {"style": _hide}
    return config


_CONFIG: Final = _config()
