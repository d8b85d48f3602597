"""Choose the text, the HTML and the attachments from the MIME tree, and decode their charsets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from html import unescape
from itertools import chain
from typing import Final, NamedTuple
from urllib.parse import unquote

from email_ingestion.parsing import (
    charsets,
    headers,
    inline_files,
    limits,
    rtf,
    structure,
    text,
    tnef,
    transfer,
)
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.part import Part, clean_filename, is_media_type
from email_ingestion.records import Attachment

_ENRICHED: Final = frozenset({"text/enriched", "text/richtext"})
_BODY_TYPES: Final = frozenset({"text/plain", "text/html"}) | _ENRICHED
_UNKNOWN_TYPE: Final = "application/octet-stream"
_TNEF: Final = frozenset({"application/ms-tnef", "application/vnd.ms-tnef"})
_CID: Final = re.compile(r"""cid:([^"'\s<>)]{1,998})""", re.IGNORECASE)
_META_CHARSET: Final = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_META_BYTES: Final = 4_096  # where browsers look for it, too


class _Block(NamedTuple):
    """One section of the body: plain text, HTML, or both when they are alternatives."""

    plain: str | None
    html: str | None


@dataclass(frozen=True, slots=True)
class MessageContent:
    """The body and the attachments of a message."""

    text: str
    html: str | None
    attachments: tuple[Attachment, ...]
    charsets: Mapping[int, str]  # that attachments declare, by position


def read_content(root: Part, defects: Defects, html: text.HtmlReader | None = None) -> MessageContent:
    """Return the content of a message; several texts are joined, a plain alternative is preferred to HTML.

    Pass `html` where several messages share one budget for HTML.
    """
    return _ContentReader(defects, html or text.HtmlReader(defects)).content(root)


class _ContentReader:
    """Reads one message and collects its attachments."""

    def __init__(self, defects: Defects, html: text.HtmlReader) -> None:
        self._defects = defects
        self._html = html
        self._attachments: list[Attachment] = []
        self._charsets: dict[int, str] = {}
        self._has_body = False
        self._has_text = False
        self._unwrapped = 0

    def content(self, root: Part) -> MessageContent:
        blocks = self._collect_blocks(root, parent="")
        html = "\n".join(block.html for block in blocks if block.html is not None)
        has_html = any(block.html is not None for block in blocks)
        return MessageContent(
            text=self._truncate(self._join_text(blocks), Defect.TEXT_TRUNCATED),
            html=self._truncate(html, Defect.HTML_TRUNCATED) if has_html else None,
            attachments=self._mark_inline(html),
            charsets=self._charsets,
        )

    def _collect_blocks(self, part: Part, parent: str) -> list[_Block]:
        if part.children:
            nested = [self._collect_blocks(child, part.content_type) for child in part.children]
            return (
                self._choose_alternative(nested)
                if part.content_type == "multipart/alternative"
                else list(chain.from_iterable(nested))
            )
        if part.is_multipart:
            return []
        if self._is_body(part):
            self._has_body = True
            block = self._make_block(part)
            self._has_text = self._has_text or bool(block.html or (block.plain and not block.plain.isspace()))
            return [block]
        self._add_part(part, parent)
        if part.content_type in _TNEF:
            return self._open_tnef(part.content)
        if part.content_type in transfer.SMIME or (part.filename or "").lower().endswith(".p7m"):
            return self._open_smime(part.content)
        return []

    def _choose_alternative(self, nested: list[list[_Block]]) -> list[_Block]:
        """Choose the first plain text that is not blank and the last HTML, the richest (RFC 2046, section 5.1.4)."""
        plains = [text for blocks in nested if (text := _join(block.plain for block in blocks)) is not None]
        htmls = [text for blocks in nested if (text := _join(block.html for block in blocks)) is not None]
        plain = next((one for one in plains if not one.isspace()), plains[0] if plains else None)
        html = htmls[-1] if htmls else None
        if len(plains) > 1 or len(htmls) > 1:
            kept = {*(plain or "").split(), *(html or "").split()}
            if any(not kept.issuperset(one.split()) for one in (*plains, *htmls)):
                self._defects.note(Defect.MIME_ALTERNATIVE)
        return [_Block(plain, html)] if plain is not None or html is not None else []

    def _is_body(self, part: Part) -> bool:
        """Tell body text from attachments: a text part with a file name is an attachment, unless it is the first text.

        Some programs give the body itself a file name.
        """
        if part.content_type not in _BODY_TYPES or part.disposition == "attachment":
            return False
        return part.filename is None or not self._has_body

    def _make_block(self, part: Part) -> _Block:
        if part.content_type == "text/html":
            return _Block(None, self._decode(part, *_html_charsets(part)))
        charset = part.parameters.get("charset")
        if not (charset and "16" in charset):
            part.content, files = inline_files.extract(part.content, self._defects)
            for one in files:
                self._add_attachment(self._clean_name(one.filename), _UNKNOWN_TYPE, one.content)
        plain = self._decode(part, charset)
        if part.content_type in _ENRICHED:
            return _Block(text.unenrich(plain), None)
        if part.parameters.get("format", "").lower() == "flowed" and len(plain) <= limits.FLOWED_CHARS:
            plain = text.unflow(plain, delsp=part.parameters.get("delsp", "").lower() == "yes")
        return _Block(plain, None)

    def _decode(self, part: Part, charset: str | None, hint: str | None = None) -> str:
        max_bytes = 4 * limits.TEXT_CHARS
        decoded = charsets.decode(part.content[:max_bytes], charset, self._defects, hint)
        return self._clean(decoded)

    def _join_text(self, blocks: list[_Block]) -> str:
        """Join the texts; where the plain alternative is empty, the HTML is converted."""
        texts = [
            block.plain
            if block.html is None or (block.plain and not block.plain.isspace())
            else self._html.to_text(block.html)
            for block in blocks
        ]
        return "\n".join(filter(None, texts))

    def _mark_inline(self, html: str) -> tuple[Attachment, ...]:
        """Mark those as inline whose Content-ID the HTML refers to (RFC 2392), whatever their disposition says."""
        if not any(one.content_id and not one.inline for one in self._attachments):
            return tuple(self._attachments)
        shown = {unescape(unquote(match[1])) for match in _CID.finditer(html)}
        return tuple(replace(one, inline=one.inline or one.content_id in shown) for one in self._attachments)

    def _truncate(self, whole: str, defect: Defect) -> str:
        if len(whole) > limits.TEXT_CHARS:
            self._defects.note(defect)
        return whole[: limits.TEXT_CHARS]

    def _add_part(self, part: Part, parent: str) -> None:
        self._add_attachment(
            part.filename or (_subject_filename(part.content) if part.is_message else None),
            part.content_type,
            part.content,
            inline=part.disposition == "inline" or (part.disposition != "attachment" and _is_inline(part, parent)),
            content_id=part.content_id,
        )
        if charset := part.parameters.get("charset"):
            self._charsets[len(self._attachments)] = charset

    def _add_attachment(
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

    def _open_tnef(self, container: bytes) -> list[_Block]:
        """Add the attachments inside a winmail.dat after the container itself; its body counts if there is no other."""
        try:
            wrapped = tnef.unwrap(container)
        except ValueError:
            self._defects.note(Defect.TNEF_UNREADABLE)
            return []
        for one in wrapped:
            content_type = one.content_type if is_media_type(one.content_type) else _UNKNOWN_TYPE
            self._add_attachment(self._clean_name(one.filename), content_type, one.content)
        return [] if self._has_text else self._tnef_blocks(tnef.read_body(container))

    def _tnef_blocks(self, body: tnef.TnefBody) -> list[_Block]:
        plain, html = body.plain, body.html
        if not html and body.rtf:
            with suppress(ValueError):
                rich, is_html = rtf.to_text(rtf.decompress(body.rtf))
                html = rich if is_html else ""
                plain = plain or ("" if is_html else rich)
        if isinstance(html, bytes):
            html = charsets.decode(html, _find_meta_charset(html), self._defects)
        if not plain and not html:
            return []
        self._has_text = True
        return [_Block(self._clean(plain), self._clean(html) if html else None)]

    def _open_smime(self, content: bytes) -> list[_Block]:
        """Read the message inside opaque S/MIME, which stays an attachment, too; encrypted data stays closed."""
        if self._unwrapped >= limits.ENCLOSED_MESSAGES:
            return []
        self._unwrapped += 1
        try:
            entity = transfer.unwrap_smime(content)
        except ValueError:
            self._defects.note(Defect.SMIME_UNREADABLE)
            return []
        if entity is None:
            return []
        return self._collect_blocks(structure.read(entity, headers.scan(entity, self._defects), self._defects), "")

    def _clean(self, whole: str) -> str:
        return headers.clean(text.normalize(whole), self._defects)

    def _clean_name(self, filename: str) -> str | None:
        return clean_filename(headers.one_line(filename, self._defects))


def _join(texts: Iterable[str | None]) -> str | None:
    found = [one for one in texts if one is not None]
    return "\n".join(found) if found else None


def _is_inline(part: Part, parent: str) -> bool:
    """Decide without a Content-Disposition: a Content-ID or being an alternative (an invitation) means inline."""
    return part.content_id is not None or parent == "multipart/alternative" or part.content_type == "text/calendar"


def _html_charsets(part: Part) -> tuple[str | None, str | None]:
    """Return the charset that is declared, if only by a meta element, and the meta element's where both are there."""
    declared = part.parameters.get("charset")
    if declared and part.content.isascii():
        return declared, None
    meta = _find_meta_charset(part.content)
    return (declared, meta) if declared else (meta, None)


def _find_meta_charset(content: bytes) -> str | None:
    found = _META_CHARSET.search(content[:_META_BYTES])
    return found[1].decode("ascii", "replace") if found else None


def _subject_filename(message: bytes) -> str:
    """Name a nested message after its subject; defects of its header are not defects of this message."""
    unused = Defects()
    header = headers.scan(message, unused)
    subject = (
        headers.decode_value(header.values["subject"][0], header.codec, unused) if "subject" in header.values else ""
    )
    return (clean_filename(subject.replace("/", "_").replace("\\", "_")) or "message") + ".eml"
