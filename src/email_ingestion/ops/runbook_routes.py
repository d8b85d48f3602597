"""The runbooks as pages of the ops port, for who follows the link of an alert.

They are made from the Markdown that comes with the product. Links to pages outside the runbooks become plain text.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from itertools import zip_longest
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from email_ingestion.shipped_files import shipped_root

PATH = "/runbooks"
FOLDER = Path("docs/runbooks")
_COMMENT = re.compile(r"^[ \t]*<!--.*?-->[ \t]*\n?", re.DOTALL | re.MULTILINE)
_ANCHOR = re.compile(r'[ \t]*<a id="([\w-]+)"></a>[ \t]*')
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{background:#f4f4f4;padding:.6em;"
    "overflow:auto}td,th{text-align:left;vertical-align:top;border:1px solid #ccc;padding:.2em .6em}"
    "table{border-collapse:collapse}"
)


def add_runbooks(app: FastAPI) -> None:
    """Add `/runbooks`, the list of the pages, and `/runbooks/NAME`; both synchronous: rendering must delay nobody."""

    def contents() -> Response:
        links = "".join(f"<li><a href='{PATH}/{escape(name)}'>{escape(name)}</a></li>" for name in runbook_names())
        return HTMLResponse(_page("Runbooks", f"<h1>Runbooks</h1><ul>{links}</ul>"))

    def page(name: str) -> Response:
        if name not in runbook_names():
            return HTMLResponse(
                _page("Runbooks", f"<p>There is no such runbook: <a href='{PATH}'>all of them</a>"), 404
            )
        return HTMLResponse(runbook_page(name))

    for path, endpoint in ((PATH, contents), (PATH + "/{name:path}", page)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)


@cache
def runbook_names() -> tuple[str, ...]:
    """Return the names of all pages: `incident_response`, `it/incident_response`."""
    folder = shipped_root() / FOLDER
    return tuple(sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.md")))


@cache
def runbook_page(name: str) -> str:
    """Return a page as a whole HTML document."""
    return _page(name, runbook_body(name), runbook_language(name))


@cache
def runbook_body(name: str) -> str:
    """Return the content of a page as HTML; every heading has the anchor that GitHub gives it.

    HTML in the Markdown is shown as it is written; the anchors above headings are made here.
    """
    from markdown_it import MarkdownIt  # noqa: PLC0415 - only for who opens a page
    from markdown_it.token import Token  # noqa: PLC0415

    text, anchors = _cut_anchors(_COMMENT.sub("", (shipped_root() / FOLDER / f"{name}.md").read_text(encoding="utf-8")))
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens: list[Token] = []
    following = markdown.parse(text)
    for opening, inline in zip_longest(following, following[1:]):
        if opening.type == "heading_open" and opening.map:
            place = anchors.get(opening.map[0])
            if place:
                tokens.append(Token("html_block", "", 0, content=f'<a id="{escape(place)}"></a>\n'))
            opening.attrSet("id", anchor(inline.content))
        tokens.append(opening)
        children = opening.children or []
        outside = False
        for child in children:
            if child.type == "link_open":
                target, mark, place = str(child.attrGet("href")).partition("#")
                outside = target.startswith("../") and not _is_ours(name, target)
                child.attrSet("href", target.removesuffix(".md") + mark + place)
            if outside and child.type in {"link_open", "link_close"}:
                outside = child.type == "link_open"
                child.type, child.tag, child.nesting, child.content = "text", "", 0, ""
    body = str(markdown.renderer.render(tokens, markdown.options, {}))
    return body.replace("<th></th>", "<td></td>")  # Markdown knows no table without a head; an empty one heads nothing


def runbook_language(name: str) -> str:
    """Return the language of a page."""
    return "it" if name.startswith("it/") else "en"


def _cut_anchors(text: str) -> tuple[str, dict[int, str]]:
    """Return the text without the lines that are an anchor, and the anchor of the line that follows each of them."""
    lines: list[str] = []
    anchors: dict[int, str] = {}
    pending = ""
    for line in text.split("\n"):
        if found := _ANCHOR.fullmatch(line):
            pending = found[1]
        else:
            if pending and line.strip():
                anchors[len(lines)] = pending
                pending = ""
            lines.append(line)
    return "\n".join(lines), anchors


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _is_ours(name: str, target: str) -> bool:
    folder = shipped_root() / FOLDER
    there = (folder / name).parent / target
    return there.resolve().is_relative_to(folder.resolve())


def _page(title: str, body: str, language: str = "en") -> str:
    return (
        f"<!DOCTYPE html><html lang='{language}'><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{STYLE}</style>{body}</html>\n"
    )
