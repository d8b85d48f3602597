"""Out of the tree of parts: the text, the HTML, the attachments; nothing is decoded here but charsets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, NamedTuple

from email_ingestion.parsing import charsets, headers, limits, text, tnef
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.part import Part, clean_filename, is_type
from email_ingestion.records import Attachment

_BODY_TYPES: Final = frozenset({"text/plain", "text/html"})
_TNEF: Final = frozenset({"application/ms-tnef", "application/vnd.ms-tnef"})
_META_CHARSET: Final = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_META_BYTES: Final = 4_096  # where browsers look for it, too


class _Block(NamedTuple):
    """A stretch of the body: plain text, HTML, or both when they are alternatives."""

    plain: str | None
    html: str | None


@dataclass(frozen=True, slots=True)
class Content:
    """What a message contains, apart from its header."""

    text: str
    html: str | None
    attachments: tuple[Attachment, ...]


def read(root: Part, defects: Defects, html: text.HtmlReader | None = None) -> Content:
    """The content of a message; several texts follow each other, a plain alternative is preferred to HTML.

    `html` is given where several messages share one budget.
    """
    return _Reader(defects, html or text.HtmlReader(defects)).content(root)


class _Reader:
    """One message, with the attachments found so far."""

    def __init__(self, defects: Defects, html: text.HtmlReader) -> None:
        self._defects = defects
        self._html = html
        self._attachments: list[Attachment] = []
        self._has_body = False

    def content(self, root: Part) -> Content:
        blocks = self._blocks(root, parent="")
        html = "\n".join(block.html for block in blocks if block.html is not None)
        has_html = any(block.html is not None for block in blocks)
        return Content(
            text=self._kept(self._text(blocks), Defect.TEXT_TRUNCATED),
            html=self._kept(html, Defect.HTML_TRUNCATED) if has_html else None,
            attachments=tuple(_marked_inline(attachment, html) for attachment in self._attachments),
        )

    def _blocks(self, part: Part, parent: str) -> list[_Block]:
        if part.children:
            nested = [self._blocks(child, part.content_type) for child in part.children]
            return (
                _alternative(nested)
                if part.content_type == "multipart/alternative"
                else list(chain.from_iterable(nested))
            )
        if part.is_multipart:
            return []
        if self._is_body(part):
            self._has_body = True
            return [self._block(part)]
        self._attach(part, parent)
        return []

    def _is_body(self, part: Part) -> bool:
        """A text is body unless it says otherwise; a name says so, but some programs name the body itself, too."""
        if part.content_type not in _BODY_TYPES or part.disposition == "attachment":
            return False
        return part.filename is None or not self._has_body

    def _block(self, part: Part) -> _Block:
        if part.content_type == "text/html":
            return _Block(None, self._decoded(part, part.parameters.get("charset") or _meta_charset(part.content)))
        plain = self._decoded(part, part.parameters.get("charset"))
        if part.parameters.get("format", "").lower() == "flowed" and len(plain) <= limits.FLOWED_CHARS:
            plain = text.unflow(plain, delsp=part.parameters.get("delsp", "").lower() == "yes")
        return _Block(plain, None)

    def _decoded(self, part: Part, charset: str | None) -> str:
        most = 4 * limits.TEXT_CHARS
        decoded = charsets.decode(part.content[:most], charset, self._defects)
        return headers.clean(text.normalize(decoded), self._defects)

    def _text(self, blocks: list[_Block]) -> str:
        """Always there: an alternative whose plain side is empty is read from its HTML."""
        texts = [
            block.plain
            if block.html is None or (block.plain and not block.plain.isspace())
            else self._html.text(block.html)
            for block in blocks
        ]
        return "\n".join(filter(None, texts))

    def _kept(self, whole: str, defect: Defect) -> str:
        if len(whole) > limits.TEXT_CHARS:
            self._defects.note(defect)
        return whole[: limits.TEXT_CHARS]

    def _attach(self, part: Part, parent: str) -> None:
        self._add(
            part.filename or (_subject_filename(part.content) if part.is_message else None),
            part.content_type,
            part.content,
            inline=part.disposition == "inline" or (part.disposition != "attachment" and _is_shown(part, parent)),
            content_id=part.content_id,
        )
        if part.content_type in _TNEF:
            self._unwrap(part.content)

    def _add(
        self,
        filename: str | None,
        content_type: str,
        content: bytes,
        *,
        inline: bool = False,
        content_id: str | None = None,
    ) -> None:
        self._attachments.append(
            Attachment(
                position=len(self._attachments) + 1,
                filename=filename,
                content_type=content_type,
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                content=content,
                inline=inline,
                content_id=content_id,
            )
        )

    def _unwrap(self, container: bytes) -> None:
        """Put what Outlook has wrapped up beside its wrapping."""
        try:
            wrapped = tnef.unwrap(container)
        except ValueError:
            self._defects.note(Defect.TNEF_UNREADABLE)
            return
        for one in wrapped:
            name = clean_filename(headers.one_line(one.filename, self._defects))
            content_type = one.content_type if is_type(one.content_type) else "application/octet-stream"
            self._add(name, content_type, one.content)


def _alternative(nested: list[list[_Block]]) -> list[_Block]:
    """The same content several times over: the first plain text, and the last HTML, which is the richest (RFC 2046)."""
    plains = [_joined(block.plain for block in blocks) for blocks in nested]
    htmls = [_joined(block.html for block in blocks) for blocks in nested]
    plain = next((one for one in plains if one is not None), None)
    html = next((one for one in reversed(htmls) if one is not None), None)
    return [_Block(plain, html)] if plain is not None or html is not None else []


def _joined(texts: Iterable[str | None]) -> str | None:
    found = [one for one in texts if one is not None]
    return "\n".join(found) if found else None


def _is_shown(part: Part, parent: str) -> bool:
    """Without a disposition: what has a Content-ID or is an alternative (an invitation) belongs to the body."""
    return part.content_id is not None or parent == "multipart/alternative" or part.content_type == "text/calendar"


def _marked_inline(attachment: Attachment, html: str) -> Attachment:
    """Some programs call a picture an attachment and show it all the same: the HTML names it (RFC 2392)."""
    shown = attachment.content_id and not attachment.inline and f"cid:{attachment.content_id}" in html
    return replace(attachment, inline=True) if shown else attachment


def _meta_charset(content: bytes) -> str | None:
    found = _META_CHARSET.search(content[:_META_BYTES])
    return found[1].decode("ascii", "replace") if found else None


def _subject_filename(message: bytes) -> str:
    """A nested message is named after its subject; what is wrong with its header is not this message's defect."""
    unused = Defects()
    header = headers.scan(message, unused)
    subject = headers.decoded(header.values["subject"][0], header.codec, unused) if "subject" in header.values else ""
    return (clean_filename(subject.replace("/", "_").replace("\\", "_")) or "message") + ".eml"
