"""Nothing is lost in silence: what the standard library decodes is in the record, or a defect says why not.

Of the text parts every letter, of the attachments every byte; on the corpus, and on the corpus damaged at random, the
same damage every time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from email import message_from_bytes
from email.errors import MissingHeaderBodySeparatorDefect
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_ingestion.parsing import headers, parse
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.records import Email
from tests.unit.parsing.messages import envelope
from tests.unit.parsing.test_any_bytes import PIECES

CORPUS = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parents[2] / "corpus").glob("*.eml"))}
# These say nothing of the body.
OF_FIELDS = {
    *(Defect.DATE_MISSING, Defect.DATE_INVALID, Defect.FROM_MISSING, Defect.ADDRESS_INVALID),
    *(Defect.ADDRESS_TRUNCATED, Defect.ENCODED_WORD_INVALID),
}
BARE_CR = re.compile(rb"\r(?!\n)")
SPACE_COLON = re.compile(rb"^[\w-]+[ \t]+:", re.MULTILINE)
# Files inside the text, and Japanese that the standard library takes for ASCII.
OTHERWISE = re.compile(r"^(?:begin [0-7]{3}|=ybegin )|\x1b", re.MULTILINE)


def leaves(message: Message) -> Iterator[Message]:
    """The parts that are no multiparts; messages inside stay closed, as they do in a record."""
    payload = message.get_payload()
    if isinstance(payload, list) and message.get_content_maintype() == "multipart":
        for child in payload:
            yield from leaves(child)
    elif message.get_content_maintype() not in {"message", "multipart"}:
        yield message


def decoded(part: Message) -> bytes:
    """The content, also where the encoding has a comment or quotes, which the standard library does not look for."""
    if encoding := re.match(r"[\s\"(]*([\w-]*)", str(part["content-transfer-encoding"] or "")):
        del part["content-transfer-encoding"]
        part["content-transfer-encoding"] = encoding[1]
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def decoded_text(part: Message) -> str:
    """The text as far as the standard library decodes it by the declared charset, and "" where it does not."""
    content = decoded(part)
    try:
        return content.decode(part.get_content_charset("ascii"))
    except (LookupError, ValueError):
        return ""


def letters(text: str) -> Counter[str]:
    return Counter(filter(str.isalnum, text))


def lost(raw: bytes) -> list[str]:
    """What of the message is neither in its record nor accounted for by a defect."""
    email = parse(envelope(), raw)
    if set(email.defects) - OF_FIELDS:
        return []
    kept = letters(everything(email))
    contents = {one.content for one in email.attachments}
    message = message_from_bytes(raw)
    separated = not any(isinstance(one, MissingHeaderBodySeparatorDefect) for one in message.defects)
    if not separated or BARE_CR.search(raw, 0, headers.scan(raw, Defects()).body) or SPACE_COLON.search(raw):
        return []  # it has read fields as text
    found: list[str] = []
    for part in leaves(message):
        if part.get_content_type() in {"text/plain", "text/html"}:
            text = decoded_text(part)
            if not OTHERWISE.search(text) and (missing := letters(text) - kept):
                found.append(f"letters of {text[:60]!r}: {dict(missing)}")
        elif part.get_content_maintype() != "text" and decoded(part) not in contents:
            found.append(f"{part.get_content_type()}: {decoded(part)!r}"[:100])
    return found


def everything(email: Email) -> str:
    attached = "".join(
        one.content.decode("utf-8", "replace") + one.content.decode("latin-1") for one in email.attachments
    )
    fields = "".join(name + value for name, value in email.headers)
    return email.text + (email.html or "") + attached + fields


@pytest.mark.parametrize("name", CORPUS)
def test_a_message_of_the_corpus_loses_nothing(name: str) -> None:
    assert lost(CORPUS[name]) == []


INSERTED = st.sampled_from(PIECES) | st.sampled_from(
    [b"\r", b"\n\n", b"--b--\n", b"\n--b\n", b"=\r", b"= \n", b"\xc3\xbc"]
)


@settings(deadline=None, max_examples=600, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(CORPUS)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), INSERTED), min_size=1, max_size=4),
)
def test_a_damaged_message_loses_nothing_in_silence(name: str, damages: list[tuple[float, int, bytes]]) -> None:
    raw = CORPUS[name]
    for place, removed, inserted in damages:
        position = int(place * len(raw))
        raw = raw[:position] + inserted + raw[position + removed :]
    assert lost(raw) == []
