"""Search for a person: the newest messages found with the text around the words, and short texts to name them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, case, func, or_, select

from email_ingestion.identity import MIN_PART, identity_value, matches_identity, shortest_parts
from email_ingestion.ledger.engine import Database
from email_ingestion.ledger.mail_pages import COUNTED, MailPages
from email_ingestion.ledger.rows import chunks
from email_ingestion.ledger.search import Term, parse
from email_ingestion.ledger.search_filter import SearchFilter
from email_ingestion.ledger.tables import attachments, emails

_SNIPPET = 160  # characters
_READ_CHARACTERS = 200_000  # of a text, for its snippet: as many as the full-text index covers


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found."""

    email_id: str
    date: datetime  # INTERNALDATE, aware, UTC
    from_name: str
    from_addr: str
    subject: str
    snippet: str  # where the text has the first of the words, in one line
    attachments: tuple[str, ...] = ()  # their file names

    @property
    def sender(self) -> str:
        """Name and address, as far as there are both."""
        both = self.from_name and self.from_addr
        return f"{self.from_name} <{self.from_addr}>" if both else self.from_name or self.from_addr


class MailSearch:
    """Finds messages. Threads may share it; every method raises SinkUnavailable when the database is down."""

    def __init__(self, database: Database, pages: MailPages) -> None:
        self._database = database
        self._pages = pages

    def hits(self, words: str, limit: int = 20, only: SearchFilter | None = None) -> list[Hit]:
        """Return the newest messages that `only` lets pass and that have all `words` (syntax: `search.parse`).

        Words are looked for in subject, sender, text and file names of attachments; none and no condition find nothing.
        """
        if _asks_nothing(words, only):
            return []
        return self.shown(self._pages.ids(words, only, limit), words)

    def shown(self, email_ids: Sequence[str], words: str) -> list[Hit]:
        """Return messages as they are shown to who searched for `words`, in this order, without those not here."""
        terms = parse(words)
        files = self._filenames(email_ids)
        return [
            Hit(
                *(row.email_id, row.internaldate, row.from_name or "", row.from_addr or "", row.subject),
                _snippet(row.body, terms),
                files[row.email_id],
            )
            for row in self._rows(email_ids)
        ]

    def count(self, words: str, only: SearchFilter | None = None, maximum: int = COUNTED) -> int:
        """Count what `hits` finds without a limit; a count above `maximum` is given as one more than that."""
        if _asks_nothing(words, only):
            return 0
        found = self._pages.count(words, only, maximum)
        return found.number if found.is_exact else maximum + 1

    def _rows(self, email_ids: Sequence[str]) -> list[Row[Any]]:
        """Return what is shown of the messages that are still there, in the same order."""
        columns = (emails.c.email_id, emails.c.internaldate, emails.c.from_name, emails.c.from_addr, emails.c.subject)
        query = select(*columns, func.substr(emails.c.text, 1, _READ_CHARACTERS).label("body"))
        found: dict[str, Row[Any]] = {}
        with self._database.connect() as connection:
            for chunk in chunks(email_ids):
                found |= {row.email_id: row for row in connection.execute(query.where(emails.c.email_id.in_(chunk)))}
        return [found[each] for each in email_ids if each in found]

    def _filenames(self, email_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the file names of the attachments of each message."""
        found: dict[str, list[str]] = {email_id: [] for email_id in email_ids}
        columns = (attachments.c.email_id, attachments.c.filename)
        with self._database.connect() as connection:
            for chunk in chunks(email_ids):
                query = select(*columns).where(attachments.c.email_id.in_(chunk), attachments.c.filename.is_not(None))
                for row in connection.execute(query.order_by(attachments.c.position)):
                    found[row.email_id].append(row.filename)
        return {email_id: tuple(names) for email_id, names in found.items()}

    def matching_ids(self, part: str, limit: int = 1000, account: str | None = None) -> list[str]:
        """Return identities, of `account` only, that `part` may mean (`identity.matches_identity`), at most `limit`."""
        escaped = "".join(f"!{character}" if character in "%_!" else character for character in part)
        patterns = [f"{escaped}%", f"%:{escaped}%"]
        like = or_(*(emails.c.email_id.like(pattern, escape="!") for pattern in patterns))
        query = select(emails.c.email_id).where(like).order_by(emails.c.email_id).limit(limit)
        if account is not None:
            query = query.where(emails.c.account == account)
        with self._database.connect() as connection:
            return [each for each in connection.execute(query).scalars() if matches_identity(part, each)]

    def short_ids(self, email_ids: Sequence[str]) -> dict[str, str]:
        """Return for each identity the shortest text of those `matches_identity` takes that means no other message."""
        position = func.instr if self._database.engine.dialect.name == "sqlite" else func.strpos
        kind = case((position(emails.c.email_id, ":gm:") > 0, ":gm:"), else_=":sha256:")
        start = func.substr(emails.c.email_id, position(emails.c.email_id, kind) + func.length(kind), MIN_PART)
        found: set[str] = set(email_ids)
        with self._database.connect() as connection:
            for chunk in chunks(sorted({identity_value(each)[:MIN_PART] for each in email_ids})):
                found |= set(connection.execute(select(emails.c.email_id).where(start.in_(chunk))).scalars())
        return shortest_parts(email_ids, found)


def _asks_nothing(words: str, only: SearchFilter | None) -> bool:
    return not words.strip() and (only is None or only.is_empty)


def _snippet(body: str, terms: Sequence[Term]) -> str:
    """Return the text around the first wanted term that occurs literally in `body`, else the beginning of `body`."""
    lower = body.lower()
    found = [lower.find(term.words.lower()) for term in terms if not term.excluded]
    start = max(0, min((at for at in found if at >= 0), default=0) - _SNIPPET // 3)
    line = " ".join(body[start : start + _SNIPPET].split())
    return ("… " if start else "") + line + (" …" if start + _SNIPPET < len(body) else "")
