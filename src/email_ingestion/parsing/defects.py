"""The defects a message can have, as short stable codes."""

from __future__ import annotations

from enum import StrEnum


class Defect(StrEnum):
    """A defect of a message; its value is public: it is stored in records and counted by operators."""

    ADDRESS_INVALID = "address:invalid"  # an address field holds something that is no address; kept as its name
    ADDRESS_TRUNCATED = "address:truncated"  # more recipients than are kept
    CHARSET_MISSING = "charset:missing"  # bytes above 127 and no charset declared; detected
    CHARSET_UNDETECTED = "charset:undetected"  # nothing fitted; read as Latin-1
    CHARSET_UNKNOWN = "charset:unknown"  # a declared charset nobody knows; detected
    CHARSET_WRONG = (
        "charset:wrong"  # the declared charset does not fit the bytes; detected, or U+FFFD where it does not
    )
    DATE_INVALID = "date:invalid"  # a Date nobody can read, or outside the years 1 to 9999
    DATE_MISSING = "date:missing"
    ENCODED_WORD_INVALID = "encoded-word:invalid"  # an RFC 2047 word that is broken; repaired or left as it was
    TEXT_TRUNCATED = "text:truncated"  # more text than is kept
    FROM_MISSING = "from:missing"
    HEADER_8BIT = "header:8bit"  # raw bytes above 127 in a header field (allowed by RFC 6532 only as UTF-8)
    HEADER_INVALID = "header:invalid"  # a line in the header that is no field; skipped
    HEADER_MISSING = "header:missing"  # no header at all: everything is body
    HEADER_SEPARATOR = "header:no-separator"  # the body begins without the empty line
    HEADER_TRUNCATED = "header:truncated"  # more header fields or bytes than are kept
    HTML_TRUNCATED = "html:truncated"  # more HTML than is kept or turned into text
    LINE_BARE_CR = "line:bare-cr"  # lines end in CR alone, or in CR CR LF
    MIME_ALTERNATIVE = "mime:alternative-dropped"  # an alternative that is not kept says something else
    MIME_BOUNDARY = "mime:no-boundary"  # a multipart whose boundary is missing, never occurs, or occurs after its end
    MIME_DEPTH = "mime:too-deep"  # multiparts nested deeper than is followed
    MIME_PARTS = "mime:too-many-parts"  # more parts than are kept
    MIME_TRUNCATED = "mime:truncated"  # too much structure to take apart: the end of the message was not read
    MIME_TYPE = "mime:invalid-type"  # a Content-Type that is no type/subtype; read as text/plain
    MIME_UNCLOSED = "mime:unclosed"  # a multipart without its closing boundary, perhaps cut off on its way
    NUL = "text:nul"  # NUL or lone surrogates in a text, replaced by U+FFFD
    PARSE_FAILED = "parse:failed"  # none of the parsers could read it: the record has the envelope only
    SMIME_UNREADABLE = "smime:unreadable"  # an opaque S/MIME part that is damaged; kept as an attachment
    TNEF_UNREADABLE = "tnef:unreadable"  # a winmail.dat that is none; kept as an attachment
    TRANSFER_INVALID = "transfer:invalid"  # damaged base64, quoted-printable or uuencode; what could be decoded is kept
    TRANSFER_UNKNOWN = "transfer:unknown"  # a Content-Transfer-Encoding nobody knows; left undecoded


class Defects:
    """Collects the defects of one message, each once, in the order they were found."""

    def __init__(self) -> None:
        self._found: dict[Defect, None] = {}

    def note(self, defect: Defect) -> None:
        """Remember that the message has this defect."""
        self._found[defect] = None

    def add(self, others: Defects) -> None:
        """Add the defects of another collection."""
        self._found |= others._found

    def codes(self) -> tuple[str, ...]:
        """Return the codes for the record."""
        return tuple(defect.value for defect in self._found)
