"""The first messages in some order that have words, looked at part by part, and no further than they are wanted.

An SQLite ledger's full-text index is asked by ranges of messages, where they lie close together: to ask it about one
after the other takes a tenth of a millisecond for each word, as long as to list what some hundred in a row have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, literal_column, select, text

from email_ingestion.ledger.search import Term, sqlite_match
from email_ingestion.ledger.tables import emails

LOOKED_AT_ONCE = 250  # messages
_GAP = 500  # numbers between two messages, above which they are in two ranges

_PROBED_AT_ONCE = 100  # messages far apart
_DOC: ColumnElement[int] = literal_column(
    "(SELECT doc FROM email_docs WHERE email_docs.email_id = emails.email_id)"
).label("doc")
_OWN = text("SELECT rowid FROM email_words WHERE email_words MATCH :words AND rowid BETWEEN :low AND :high")
_NAMES = text(  # the lowest 20 bits are the attachment's position (fts_schema.py)
    "SELECT rowid >> 20 FROM attachment_words WHERE attachment_words MATCH :words"
    " AND rowid BETWEEN :low << 20 AND (:high << 20) + 1048575"
)


def first_with_words(connection: Connection, query: Select[Any], terms: Sequence[Term], limit: int) -> list[str]:
    """Return the first messages of `query`, which selects identities in some order, that have all wanted `terms`."""
    numbered = query.add_columns(_DOC)
    found: list[str] = []
    with connection.execute(numbered, execution_options={"yield_per": LOOKED_AT_ONCE}) as rows:
        for some in rows.partitions():
            fitting = set(_with_all(connection, terms, [row.doc for row in some if row.doc]))
            found += [row.email_id for row in some if row.doc in fitting]
            if len(found) >= limit:
                break
    return found[:limit]


def first_that_fit(connection: Connection, query: Select[Any], probe: Sequence[Any], limit: int) -> list[str]:
    """Return the same by looking at each message by itself, for messages that are far apart; `probe` are conditions."""
    found: list[str] = []
    with connection.execute(query, execution_options={"yield_per": _PROBED_AT_ONCE}) as rows:
        for some in rows.scalars().partitions():
            these = select(emails.c.email_id).where(emails.c.email_id.in_(some), *probe)
            fitting = set(connection.execute(these).scalars())
            found += [each for each in some if each in fitting]
            if len(found) >= limit:
                break
    return found[:limit]


def _with_all(connection: Connection, terms: Sequence[Term], docs: Sequence[int]) -> set[int]:
    left = set(docs)
    for term in terms:
        words, having = sqlite_match(term), set[int]()
        for low, high in _ranges(sorted(left)):
            for query in (_OWN, _NAMES):
                having |= set(connection.execute(query, {"words": words, "low": low, "high": high}).scalars())
        left = left - having if term.excluded else left & having
    return left


def _ranges(docs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ranges in which these numbers (ascending) lie close together."""
    start = 0
    for place in range(1, len(docs) + 1):
        if place == len(docs) or docs[place] - docs[place - 1] > _GAP:
            yield docs[start], docs[place - 1]
            start = place
