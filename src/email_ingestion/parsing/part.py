"""One MIME part as both parsers hand it over: described by its own header fields, its content decoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final

from email_ingestion.parsing import parameters
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.headers import one_line

IDENTITY: Final = frozenset({"", "7bit", "8bit", "binary"})
UUENCODE: Final = frozenset({"x-uuencode", "uuencode", "uue", "x-uue"})
MESSAGES: Final = frozenset({"message/rfc822", "message/global"})
_ENCODINGS: Final = IDENTITY | UUENCODE | {"base64", "quoted-printable"}

_USUAL: Final = 200  # characters; what longer fields say is not kept

_TYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}")
_TOKEN: Final = re.compile(r"[a-z0-9-]*")
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
_LONGEST_ENDING: Final = 10
_LONGEST_NAME: Final = 200  # characters; file systems take 255 bytes


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
        """Whether it is a container by its type."""
        return self.content_type.startswith("multipart/")

    @property
    def is_message(self) -> bool:
        """Whether it is a whole message, which stays closed here."""
        return self.content_type in MESSAGES


def describe(fields: Mapping[str, str], defects: Defects, default_type: str = "text/plain") -> Part:
    """A part without its content, from its fields by lower-case name."""
    get = fields.get
    values = (
        get("content-type", default_type),
        get("content-disposition", ""),
        get("content-transfer-encoding", ""),
        get("content-id", ""),
    )
    blank, found = (_known if sum(map(len, values)) <= _USUAL else _blank)(*values)
    defects.add(found)
    return blank()


def _blank(content_type: str, disposition: str, encoding: str, content_id: str) -> tuple[Callable[[], Part], Defects]:
    """What makes such parts, and what is wrong with their fields."""
    found = Defects()
    kind, of_type = parameters.split(content_type, found)
    if not is_type(kind):
        found.note(Defect.MIME_TYPE)
        kind = "text/plain"  # RFC 2045, section 5.2
    shown, of_disposition = parameters.split(disposition, found)
    return partial(
        Part,
        kind,
        of_type,
        _encoding(encoding, found),
        shown,
        clean_filename(of_disposition.get("filename") or of_type.get("name") or ""),
        one_line(content_id, found).strip("<> ") or None,
    ), found


# Most parts have no name and no boundary of their own: "text/plain; charset=utf-8", "quoted-printable".
_known: Final = lru_cache(maxsize=512)(_blank)


def is_type(content_type: str) -> bool:
    """Whether it is type/subtype, lower case."""
    return _TYPE.fullmatch(content_type) is not None


def clean_filename(name: str) -> str | None:
    """The name without directories and characters that file systems refuse; its ending survives the shortening."""
    if not name:
        return None
    name = _FORBIDDEN.sub("_", name.replace("\\", "/").rpartition("/")[2]).strip(". ")
    if len(name) > _LONGEST_NAME:
        stem, dot, ending = name.rpartition(".")
        ending = dot + ending if stem and len(ending) <= _LONGEST_ENDING else ""
        name = name[: _LONGEST_NAME - len(ending)] + ending
    return name or None


def _encoding(value: str, defects: Defects) -> str:
    match = _TOKEN.match(value.strip().lower())
    encoding = match[0] if match else ""
    if encoding not in _ENCODINGS:
        defects.note(Defect.TRANSFER_UNKNOWN)
    return encoding
