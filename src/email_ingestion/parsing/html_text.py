"""Turn HTML into readable text: a tokenizer after the HTML standard (section 13.2.5), and a layout of lines.

There is no tree, so nothing takes more than linear time or depends on depth: a stack of open elements tells what is
hidden, preformatted or in a list. Nothing behind `</html>` is left out, and what a second document says follows the
first. Where the standard would swallow the rest of the text (a quote or a `<style>` that never closes), it is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from typing import Final

_TOKEN: Final = re.compile(
    r"(?P<text>[^<]++)"
    r"|<!--(?:>|->|(?P<comment>.*?)(?:--!?>|\Z))"
    r"|<(?P<close>/?)(?P<name>[a-zA-Z][^\s/>\x00]*+)"
    r"(?P<attributes>(?:[^>\"'=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+')?|[\"'])*+)>"
    r"|<[!?/][^>]*+>",
    re.DOTALL,
)
_SIMPLE_TAG: Final = re.compile(r"<(?P<close>/?)(?P<name>[a-zA-Z][^\s/>\x00]*+)(?P<attributes>[^>]*+)>")
_STYLE: Final = re.compile(r"\bstyle\s*+=\s*+(\"[^\"]*+|'[^']*+|[^\s>]*+)", re.IGNORECASE)
_HIDDEN: Final = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\b(?:start|value)\s*+=\s*+[\"']?\s*+(-?[0-9]{1,9})(?![0-9])", re.IGNORECASE)
_SPACES: Final = re.compile(r"[ \t\r\n\f]+")
_BLANK_LINES: Final = re.compile(r"\n{3,}")

_SKIPPED: Final = frozenset({"script", "style", "title", "template", "iframe", "noembed", "datalist"})  # with content
_VOID: Final = frozenset(
    [
        "area",
        "base",
        "basefont",
        "bgsound",
        "br",
        "col",
        "embed",
        "frame",
        "hr",
        "img",
        "input",
        "keygen",
        "link",
        "meta",
        "param",
        "source",
        "track",
        "wbr",
    ]
)
_PARAGRAPHS: Final = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "figure", "pre", "listing"})
_BLOCKS: Final = _PARAGRAPHS | frozenset(
    [
        "address",
        "article",
        "aside",
        "body",
        "button",
        "caption",
        "center",
        "dd",
        "details",
        "dialog",
        "dir",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "footer",
        "form",
        "frameset",
        "header",
        "hgroup",
        "hr",
        "html",
        "legend",
        "li",
        "main",
        "marquee",
        "menu",
        "nav",
        "noframes",
        "ol",
        "optgroup",
        "option",
        "output",
        "plaintext",
        "search",
        "section",
        "select",
        "summary",
        "table",
        "tbody",
        "textarea",
        "tfoot",
        "thead",
        "tr",
        "ul",
        "xmp",
    ]
)
_LISTS: Final = frozenset({"ul", "ol", "menu", "dir"})
_PREFORMATTED: Final = frozenset({"pre", "listing", "xmp", "plaintext", "textarea"})
_CELLS: Final = frozenset({"td", "th"})
_SCOPES: Final = _CELLS | {"table", "caption", "html", "button", "object", "applet", "marquee"}
# What the start of one element ends, and what it cannot end across (section 13.2.6.4.7).
_ENDS: Final = {
    "li": (frozenset({"li"}), _SCOPES | _LISTS),
    "dt": (frozenset({"dt", "dd"}), _SCOPES | {"dl"}),
    "dd": (frozenset({"dt", "dd"}), _SCOPES | {"dl"}),
    "option": (frozenset({"option"}), _SCOPES | {"select"}),
    "optgroup": (frozenset({"option", "optgroup"}), _SCOPES | {"select"}),
    "tr": (frozenset({"tr"}), frozenset({"table", "html"})),
    "td": (_CELLS, frozenset({"tr", "table", "html"})),
    "th": (_CELLS, frozenset({"tr", "table", "html"})),
    "tbody": (frozenset({"tbody", "thead", "tfoot"}), frozenset({"table", "html"})),
    "thead": (frozenset({"tbody", "thead", "tfoot"}), frozenset({"table", "html"})),
    "tfoot": (frozenset({"tbody", "thead", "tfoot"}), frozenset({"table", "html"})),
}
_PARAGRAPH: Final = (frozenset({"p"}), _SCOPES)
_ACROSS_TABLE: Final = frozenset({"table"})
_WALK: Final = 200  # open elements that are looked through for the one to end
_INDENTS: Final = 6  # levels of a list that are indented


def to_text(html: str) -> str:
    """Return the visible text with the line breaks of the layout; link targets and images are left out."""
    reader = _Reader(html)
    reader.read()
    lines = (line.rstrip(" \t\r\f") for line in reader.layout.text().split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


class _Layout:
    """Collects text as lines: blocks begin new ones, and white space collapses outside preformatted text."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._breaks = 0  # line breaks that the next text needs before it
        self._rows = 0  # of them, those of <br>, which add up
        self._space = False
        self._prefix = ""  # of a list item

    def text(self) -> str:
        return "".join(self._pieces)

    def begin_block(self, breaks: int) -> None:
        self._breaks = max(self._breaks, breaks)
        self._space = False

    def begin_row(self) -> None:
        self._rows += 1
        self._space = False

    def begin_item(self, prefix: str) -> None:
        self.begin_block(1)
        self._prefix = prefix

    def add_space(self) -> None:
        self._space = True

    def add(self, text: str) -> None:
        """Add text whose white space collapses."""
        text = _SPACES.sub(" ", text)
        if text == " ":
            self._space = True
            return
        if text:
            self._begin(" " if text[0] == " " else "")
            self._pieces.append(text.strip(" "))
            self._space = text[-1] == " "

    def add_preformatted(self, text: str) -> None:
        if text:
            self._begin("")
            self._pieces.append(text)

    def _begin(self, space: str) -> None:
        breaks = max(self._breaks, self._rows)
        at_start = bool(breaks) or not self._pieces
        if breaks and self._pieces:
            self._pieces.append("\n" * breaks)
        if self._prefix:
            self._pieces.append(self._prefix)
        elif not at_start and (space or self._space):
            self._pieces.append(" ")
        self._breaks = self._rows = 0
        self._space = False
        self._prefix = ""


@dataclass(slots=True)
class _Element:
    name: str
    hidden: bool = False
    number: int = 0  # of the last item of an <ol>


class _Reader:
    """Reads one document."""

    def __init__(self, html: str) -> None:
        self.layout = _Layout()
        self._html = html
        self._open: list[_Element] = []
        self._count: dict[str, int] = {}  # of open elements by name
        self._hidden = 0
        self._preformatted = 0
        self._token = _TOKEN
        self._unclosed: set[str] = set()  # elements whose end tag does not come any more

    def read(self) -> None:
        html, position, end = self._html, 0, len(self._html)
        last_tag_end = html.rfind(">")
        while position < end:
            match = self._token.match(html, position)
            if match is None and html.startswith("<", position) and position < last_tag_end:
                # A quote that does not close: from here on, every tag ends at the next ">"
                match = _SIMPLE_TAG.match(html, position)
            if match is None:
                stop = html.find("<", position + 1)
                stop = end if stop < 0 or position >= last_tag_end else stop
                self._add_text(html[position:stop])
                position = stop
                continue
            position = match.end()
            if match.lastgroup == "text":
                self._add_text(match["text"])
            elif match.lastgroup == "attributes":
                name = match["name"].lower()
                if match["close"]:
                    self._end(name)
                else:
                    position = self._start(name, match["attributes"], position)

    def _add_text(self, text: str) -> None:
        if self._hidden:
            return
        if "&" in text:
            text = unescape(text)
        if self._preformatted:
            self.layout.add_preformatted(text)
        else:
            self.layout.add(text)

    def _start(self, name: str, attributes: str, position: int) -> int:
        """Handle a start tag; return the offset to go on from."""
        if name in _SKIPPED:
            return self._skip(name, position)
        if name in _ENDS:
            self._end_within(*_ENDS[name])
        elif name in _BLOCKS:
            self._end_within(*_PARAGRAPH)
        if not self._hidden:
            self._lay_out(name, attributes)
        if name in _VOID:
            return position
        hidden = bool(attributes) and _is_hidden(attributes)
        self._open.append(_Element(name, hidden))
        self._count[name] = self._count.get(name, 0) + 1
        self._hidden += hidden
        if name in _PREFORMATTED:
            self._preformatted += 1
            position += self._html.startswith("\n", position)
        if name == "ol" and (number := _NUMBER.search(attributes)):
            self._open[-1].number = int(number[1]) - 1
        return position

    def _skip(self, name: str, position: int) -> int:
        """Return the offset behind the end tag of an element that is not shown; without one, its content is shown."""
        if name in self._unclosed:
            return position
        end = re.compile(rf"</{name}[^>]*>", re.IGNORECASE).search(self._html, position)
        if end is None:
            self._unclosed.add(name)
            return position
        return end.end()

    def _lay_out(self, name: str, attributes: str) -> None:
        if name == "br":
            self.layout.begin_row()
        elif name in _CELLS:
            self.layout.add_space()
        elif name == "li":
            self.layout.begin_item(self._item_prefix(attributes))
        elif name in _BLOCKS:
            self.layout.begin_block(2 if name in _PARAGRAPHS else 1)
        elif name == "q":
            self.layout.add('"')

    def _item_prefix(self, attributes: str) -> str:
        depth = min(sum(self._count.get(one, 0) for one in _LISTS), _INDENTS) or 1
        parent = next((one for one in reversed(self._open[-_WALK:]) if one.name in _LISTS), None)
        if parent is None or parent.name != "ol":
            return "  " * depth + "* "
        value = _NUMBER.search(attributes)
        parent.number = int(value[1]) if value else parent.number + 1
        return "  " * depth + f"{parent.number}. "

    def _end(self, name: str) -> None:
        """Handle an end tag: it ends its element and what is open in it; without one, only the line breaks remain."""
        if self._count.get(name):
            self._end_within(frozenset({name}), _SCOPES - {name} if name not in _BLOCKS else _ACROSS_TABLE - {name})
        elif name in _BLOCKS and not self._hidden:
            self.layout.begin_block(2 if name in _PARAGRAPHS else 1)
        elif name == "br" and not self._hidden:
            self.layout.begin_row()

    def _end_within(self, names: frozenset[str], stops: frozenset[str]) -> None:
        """End the innermost of the named elements, unless one of `stops` is open in it."""
        if not any(self._count.get(name) for name in names):
            return
        for index in range(len(self._open) - 1, max(len(self._open) - _WALK, 0) - 1, -1):
            name = self._open[index].name
            if name in names:
                while len(self._open) > index:
                    self._pop()
                return
            if name in stops:
                return

    def _pop(self) -> None:
        element = self._open.pop()
        self._count[element.name] -= 1
        self._hidden -= element.hidden
        if element.name in _PREFORMATTED:
            self._preformatted -= 1
        if self._hidden or element.hidden:
            return
        if element.name in _BLOCKS:
            self.layout.begin_block(2 if element.name in _PARAGRAPHS else 1)
        elif element.name == "q":
            self.layout.add('"')


def _is_hidden(attributes: str) -> bool:
    style = _STYLE.search(attributes)
    return style is not None and _HIDDEN.search(unescape(style[1]) if "&" in style[1] else style[1]) is not None
