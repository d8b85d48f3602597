"""The limits of parsing, so that hostile mail becomes a record too.

A limit shortens the record and notes a defect; the raw message is never changed.
"""

from __future__ import annotations

from typing import Final

HEADER_BYTES: Final = 1_000_000  # of the top header kept; Gmail itself refuses more than about 500 KB
HEADER_FIELDS: Final = 1_000
ENCODED_WORDS: Final = 2_000  # RFC 2047 words decoded in one field
PARAMETERS: Final = 200  # read in one Content-Type or Content-Disposition
PARAMETER_CHARS: Final = 65_536  # and in so much of it
RECIPIENTS: Final = 2_000  # kept in each of To, Cc, Bcc, Reply-To; Gmail sends to at most 2,000
RECIPIENT_CHARS: Final = 250_000  # of such a field that are read, about 1 µs each at worst
MESSAGE_IDS: Final = 1_000  # kept of References
JUNK_LINES: Final = 20  # behind which a header is looked for again, each of JUNK_CHARS at most
JUNK_CHARS: Final = 2_000
LIST_URIS: Final = 20  # kept of each List-… field
LIST_CHARS: Final = 10_000  # of such a field, and of Authentication-Results, that are read

DEPTH: Final = 50  # multiparts within multiparts
PARTS: Final = 1_000  # leaves of the whole message
DELIMITERS: Final = 100_000  # lines of the whole message that begin as a delimiter does
TEXT_CHARS: Final = 5_000_000  # kept in `text`, and as many in `html`
FLOWED_CHARS: Final = 1_000_000  # a longer format=flowed text is left as it is: a log, not prose
HTML_CHARS: Final = 1_000_000  # turned into text when there is no plain part
HTML_TAGS: Final = 90_000  # "<" signs turned into text: each costs about 4 µs
REPORT_BYTES: Final = 262_144  # read of a delivery status or an abuse report
REPORTED: Final = 1_000  # recipients kept of one
REPORTED_CHARS: Final = 65_536  # of a field that are looked through for them, 1 µs each
CALENDAR_BYTES: Final = 262_144  # kept of a calendar part
ENCLOSED_MESSAGES: Final = 20  # opened of the messages inside a message
ENCLOSED_DEPTH: Final = 3  # messages within messages
ENCLOSED_BYTES: Final = 10_000_000  # opened in all
JIS_BYTES: Final = 250_000  # of damaged ISO-2022-JP that are repaired; the rest has U+FFFD for what is damaged
INLINE_FILES: Final = 100  # taken out of one plain text
ENRICHED_CHARS: Final = 1_000_000  # of a text/enriched part that are turned into text
SMIME_BYTES: Final = 50_000_000  # of an opaque S/MIME part that are opened
RTF_BYTES: Final = 2_000_000  # of a decompressed RTF body
TNEF_ATTACHMENTS: Final = 100  # taken out of one winmail.dat
TNEF_PROPERTIES: Final = 1_000  # looked at for one attachment in it
DETECT_BYTES: Final = 8_192  # looked at by the charset detection
DECLARED_BYTES: Final = 262_144  # in which a declared charset is looked for, to read 8-bit header fields by
