"""Read reports of failed delivery written for people only: those of Exim, qmail, Postfix, Exchange and old Gmail."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from email_ingestion.parsing import limits
from email_ingestion.records import Bounce, RecipientStatus

Values = Mapping[str, list[str]]

_MAX_CHARS: Final = 20_000  # of the text that are read
_ADDRESS: Final = r"[^\s<>()\"',;:@]{1,200}@[^\s<>()\"',;:@]{1,200}"
_SENDERS: Final = re.compile(
    r"mailer[-_]?daemon|postmaster|mail delivery (?:sub)?system|microsoftexchange|mail[-_]daemon", re.IGNORECASE
)
# How a report of each server begins its list of recipients, and how an entry of the list looks.
_EXIM: Final = re.compile(
    r"could not be delivered to one or more of its\s+recipients|following address(?:\(es\)|es)? failed|"
    r"has not yet been delivered to (?:one or more|all)|delay reason|(?:address|recipient)s? to which the message "
    r"has\s+not yet been delivered",
    re.IGNORECASE,
)
_GMAIL: Final = re.compile(
    r"Delivery to the following recipients? (?:has been delayed|failed permanently|has failed)|"
    r"Your message wasn't delivered to|"
    r"(?:following recipient\(?s?\)? could ?not be reached|did not reach (?:some or all of )?the "
    r"(?:intended|following) recipient|Delivery has failed to these recipients|"
    r"Delivery to the following recipients? (?:failed|has been delayed))",
    re.IGNORECASE,
)
_BRACKETED: Final = re.compile(
    r"This is the (?:qmail-send|Postfix|Sendmail|mail system|mail delivery) ?(?:program)?|"
    r"I(?:'m afraid I wasn't able| was unable) to deliver your message|mail system at host|"
    r"could not be delivered to one or more recipients|I'm sorry to have to inform you",
    re.IGNORECASE,
)
_BRACKET_ENTRY: Final = re.compile(rf"^[ \t]*<({_ADDRESS})>(?:[ \t]*\([^)\n]*\))?:[ \t]*(.*)$", re.MULTILINE)
_LINE_ENTRY: Final = re.compile(
    rf"^[ \t]*<?({_ADDRESS})>?(?:[ \t]*<mailto:[^>\n]*>)?(?:[ \t]*:|[ \t]+on [^\n]*)?[ \t]*$", re.MULTILINE
)
_FAILED_TO: Final = re.compile(
    rf"(?:wasn't delivered to|could not be delivered to|did not reach)[ \t]+<?({_ADDRESS})>?"
)
_ENHANCED: Final = re.compile(r"(?<![\w.])[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![\w.]*[0-9])")  # no part of an IP address
_BASIC: Final = re.compile(r"\b([45])[0-9]{2}[ -]")
_DELAYED: Final = re.compile(
    r"not yet been delivered|has been delayed|delivery.{0,20}delayed|THIS IS A WARNING", re.IGNORECASE
)
_ORIGINAL: Final = re.compile(
    r"^[- ]*(?:This is a copy of (?:the|your) message|Below this line is a copy|Original message|"
    r"Undelivered message|The header of the original message|Message header follows|Returned message)",
    re.IGNORECASE | re.MULTILINE,
)


def parse_bounce(values: Values, text: str) -> Bounce | None:
    """Return what the text of a report says; None when the message is no report."""
    if "x-failed-recipients" not in values and not _is_from_server(values):
        return None
    recipients = failed_recipients(values, text)
    return Bounce(None, tuple(recipients)) if recipients else None


def failed_recipients(values: Values, text: str) -> list[RecipientStatus]:
    """Return the recipients that the text lists, or else those of X-Failed-Recipients."""
    text = text[:_MAX_CHARS]
    original = _ORIGINAL.search(text)
    text = text[: original.start()] if original else text
    action = "delayed" if _DELAYED.search(text) else "failed"
    found = {address.lower(): (address, after) for address, after in _list_entries(text)}
    for value in values.get("x-failed-recipients", ()):
        for address in re.findall(_ADDRESS, value[: limits.REPORTED_CHARS])[: limits.REPORTED]:
            found.setdefault(address.lower(), (address, _after(text, address)))
    return [_status(address, after, action) for address, after in list(found.values())[: limits.REPORTED]]


def _list_entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield each recipient and the text about it."""
    for begins, entry in ((_BRACKETED, _BRACKET_ENTRY), (_EXIM, _LINE_ENTRY), (_GMAIL, _LINE_ENTRY)):
        if beginning := begins.search(text):
            entries = list(islice(entry.finditer(text, beginning.start()), limits.REPORTED))
            ends = [*(one.start() for one in entries[1:]), len(text)][: len(entries)]
            for one, end in zip(entries, ends, strict=True):
                yield one[1], text[one.end(1) : end]
            if entries:
                return
    if named := _FAILED_TO.search(text):
        yield named[1], text[named.end() :]


def _after(text: str, address: str) -> str:
    position = text.find(address)
    return text[position + len(address) :] if position >= 0 else ""


def _status(address: str, after: str, action: str) -> RecipientStatus:
    enhanced, basic = _ENHANCED.search(after), _BASIC.search(after)
    status = enhanced[0] if enhanced else f"{basic[1]}.0.0" if basic else "4.0.0" if action == "delayed" else "5.0.0"
    lines = [line.strip(" \t>:") for line in after.split("\n")]
    diagnostic = " ".join(filter(None, lines))[:500]
    return RecipientStatus(recipient=address, action=action, status=status, diagnostic=diagnostic or None)


def _is_from_server(values: Values) -> bool:
    return any(_SENDERS.search(value) for value in values.get("from", ())) or "<>" in values.get("return-path", ())
