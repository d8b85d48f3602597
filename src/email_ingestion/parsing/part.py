"""One MIME part: described by its own header fields, its content transfer-decoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final

from email_ingestion.parsing import parameters, transfer
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.headers import one_line, without_comments

MESSAGES: Final = frozenset({"message/rfc822", "message/global"})
_SPELLINGS: Final = {
    "quotedprintable": "quoted-printable",
    "qp": "quoted-printable",
    "base-64": "base64",
    "7-bit": "7bit",
    "7bits": "7bit",
    "8-bit": "8bit",
    "8bits": "8bit",
}

_CACHED_CHARS: Final = 200  # characters; what longer fields say is not kept

_TYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}")
_TOKEN: Final = re.compile(r"[a-z0-9-]*")
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
_MAX_EXTENSION: Final = 10
_MAX_FILENAME: Final = 200  # characters; file systems take 255 bytes


@dataclass(slots=True)
class Part:
    """A leaf has content, a multipart has children."""

    content_type: str  # lower case, always type/subtype
    parameters: Mapping[str, str]  # of the Content-Type
    encoding: str  # Content-Transfer-Encoding, lower case, without comments
    disposition: str  # lower case, empty when there is none
    filename: str | None
    content_id: str | None
    content: bytes = b""
    children: list[Part] = field(default_factory=list)

    @property
    def is_multipart(self) -> bool:
        """Whether its type is multipart/*."""
        return self.content_type.startswith("multipart/")

    @property
    def is_message(self) -> bool:
        """Whether it is a nested message, whose parts are not in this tree."""
        return self.content_type in MESSAGES


def describe(fields: Mapping[str, str], defects: Defects, default_type: str = "text/plain") -> Part:
    """Make a part without content from its fields by lower-case name."""
    get = fields.get
    values = (
        get("content-type", default_type),
        get("content-disposition", ""),
        get("content-transfer-encoding", ""),
        get("content-id", ""),
    )
    make_part, own_defects = (_cached_part_factory if sum(map(len, values)) <= _CACHED_CHARS else _part_factory)(
        *values
    )
    defects.add(own_defects)
    return make_part()


def _part_factory(
    content_type: str, disposition: str, encoding: str, content_id: str
) -> tuple[Callable[[], Part], Defects]:
    """Return a function that makes parts with these fields, and the defects of the fields."""
    own_defects = Defects()
    media_type, type_parameters = parameters.parse(content_type, own_defects)
    if not is_media_type(media_type):
        own_defects.note(Defect.MIME_TYPE)
        media_type = "text/plain"  # RFC 2045, section 5.2
    disposition_type, disposition_parameters = parameters.parse(disposition, own_defects)
    return partial(
        Part,
        media_type,
        type_parameters,
        _parse_encoding(encoding, own_defects),
        disposition_type,
        clean_filename(disposition_parameters.get("filename") or type_parameters.get("name") or ""),
        one_line(content_id, own_defects).strip("<> ") or None,
    ), own_defects


# Most parts have no name and no boundary of their own: "text/plain; charset=utf-8", "quoted-printable".
_cached_part_factory: Final = lru_cache(maxsize=512)(_part_factory)


def is_media_type(content_type: str) -> bool:
    """Tell whether it is a lower-case type/subtype."""
    return _TYPE.fullmatch(content_type) is not None


def clean_filename(name: str) -> str | None:
    """Remove directories and characters that file systems refuse; shorten a long name before its extension."""
    if not name:
        return None
    name = _FORBIDDEN.sub("_", name.replace("\\", "/").rpartition("/")[2]).strip(". ")
    if len(name) > _MAX_FILENAME:
        stem, dot, extension = name.rpartition(".")
        extension = dot + extension if stem and len(extension) <= _MAX_EXTENSION else ""
        name = name[: _MAX_FILENAME - len(extension)] + extension
    return name or None


def _parse_encoding(value: str, defects: Defects) -> str:
    plain = without_comments(value).strip(" \t\"'<>,").lower().replace("_", "-")
    match = _TOKEN.match(plain)
    encoding = match[0] if match else ""
    encoding = _SPELLINGS.get(encoding, encoding)
    if encoding not in transfer.ENCODINGS:
        defects.note(Defect.TRANSFER_UNKNOWN)
    return encoding
