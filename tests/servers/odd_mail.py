"""The mailboxes and messages of the scripted IMAP server (`odd_imap`), as they stand on the wire."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_ITEM = re.compile(rb"BODY(?:\.PEEK)?\[([^\]]*)\](?:<(\d+)\.(\d+)>)?|[A-Z0-9.-]+", re.IGNORECASE)

Text = str | bytes
Wire = Text | None | Callable[[int | None, int | None], bytes | None]
Reply = Callable[[Any, Any], None]  # gets the `Conversation` and the `Command`


def literal(data: bytes) -> bytes:
    return b"{%d}\r\n%b" % (len(data), data)


def to_bytes(text: Text) -> bytes:
    return text.encode() if isinstance(text, str) else text


@dataclass
class Mail:
    """A message as the server shows it; what the fields say goes onto the wire unchecked."""

    raw: bytes
    uid: int = 0  # 0: the next one
    internaldate: str | None = '"02-Jan-2026 03:04:05 +0000"'
    size: int | str | None = -1  # -1: the true one
    flags: str | None = r"(\Seen)"
    items: dict[str, Wire] = field(default_factory=dict)
    instead: Sequence[Reply] = ()  # when its body is asked for
    hidden: bool = False

    def response(self, number: int, asked: bytes, *, uid: bool) -> bytes:
        """The FETCH response to these items."""
        found = [self._item(match) for match in _ITEM.finditer(asked)]
        if uid and not re.search(rb"\bUID\b", asked):
            found.insert(0, b"UID %d" % self.uid)
        return b"* %d FETCH (%b)\r\n" % (number, b" ".join(item for item in found if item is not None))

    def _item(self, match: re.Match[bytes]) -> bytes | None:
        if match[1] is not None:
            return self._body(match)
        name = match[0].decode().upper()
        values: dict[str, Wire] = {
            "UID": str(self.uid),
            "FLAGS": self.flags,
            "INTERNALDATE": self.internaldate,
            "RFC822.SIZE": str(len(self.raw)) if self.size == -1 else None if self.size is None else str(self.size),
        }
        value = (values | self.items).get(name)
        return (
            value(None, None) if callable(value) else None if value is None else to_bytes(f"{name} ") + to_bytes(value)
        )

    def _body(self, match: re.Match[bytes]) -> bytes | None:
        offset, size = (int(match[2]), int(match[3])) if match[2] else (None, None)
        section = match[1].decode()
        name = f"BODY[{section}]"
        if name in self.items:
            value = self.items[name]
            if callable(value) or value is None:
                return value(offset, size) if callable(value) else None
            data = to_bytes(value)
        else:
            whole = self.raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if section else self.raw
            data = literal(whole if offset is None or size is None else whole[offset : offset + size])
        return to_bytes(name) + (b"" if offset is None else b"<%d>" % offset) + b" " + data


@dataclass
class Folder:
    """A mailbox; a field that is None is not told by EXAMINE."""

    mail: list[Mail] = field(default_factory=list)
    attributes: str = r"\HasNoChildren"
    uidvalidity: int | None = 1
    uidnext: int | None = 0  # 0: the true one
    flags: str = r"(\Answered \Flagged \Deleted \Seen \Draft)"

    def add(self, mail: Mail) -> None:
        mail.uid = mail.uid or max((each.uid for each in self.mail), default=0) + 1
        self.mail = sorted([*self.mail, mail], key=lambda each: each.uid)

    def next_uid(self) -> int | None:
        return self.uidnext if self.uidnext != 0 else max((each.uid for each in self.mail), default=0) + 1
