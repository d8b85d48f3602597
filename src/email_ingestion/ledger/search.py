"""Parse an operator's search words into conditions for each database; no input makes an invalid query."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import TextClause, text

_MAX_TERMS = 64  # far above what a person types, far below what a query parser refuses
_SNIPPET = 160  # characters

_TERM = re.compile(r'(?P<minus>-?)(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"*]+))(?P<star>\*?)')
_COMBINING = re.compile("[\u0300-\u036f]+")
_TO_SPACES = str.maketrans(string.punctuation, " " * len(string.punctuation))


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found."""

    email_id: str
    date: datetime  # INTERNALDATE, aware, UTC
    sender: str
    subject: str
    snippet: str  # where the text has the first of the words, in one line


@dataclass(frozen=True, slots=True)
class Term:
    """A word or a phrase."""

    words: str
    prefix: bool  # the last word may go on
    excluded: bool


def parse(query: str) -> list[Term]:
    """Return the terms of `query`: `word`, `"a phrase"`, `prefix*`, and `-word` to exclude a word."""
    printable = query.encode("utf-8", "replace").decode().replace("\0", " ")
    found = (
        Term(match["phrase"] or match["word"] or "", bool(match["star"]), bool(match["minus"]))
        for match in _TERM.finditer(printable)
    )
    return [term for term in found if any(map(str.isalnum, term.words))][:_MAX_TERMS]


def sqlite_condition(terms: Sequence[Term]) -> TextClause:
    """Make a condition on `emails` for FTS5; at least one term must be wanted."""
    wanted = " AND ".join(_fts5(term) for term in terms if not term.excluded)
    excluded = " OR ".join(_fts5(term) for term in terms if term.excluded)
    return text(
        "emails.email_id IN (SELECT email_docs.email_id FROM email_words JOIN email_docs"
        " ON email_docs.doc = email_words.rowid WHERE email_words MATCH :match)"
    ).bindparams(match=f"({wanted}) NOT ({excluded})" if excluded else wanted)


def _fts5(term: Term) -> str:
    return f'"{term.words}"' + (" *" if term.prefix else "")  # `words` holds no quote


def postgresql_condition(terms: Sequence[Term]) -> TextClause:
    """Make a condition on `emails` that its full-text index answers."""
    tsquery = " && ".join(_tsquery(number, term) for number, term in enumerate(terms))
    return text(
        f"email_words(emails.subject, emails.from_name, emails.from_addr, emails.text) @@ ({tsquery})"
    ).bindparams(**{f"term{number}": _fold(term.words) for number, term in enumerate(terms)})


def _tsquery(number: int, term: Term) -> str:
    tsquery = f"phraseto_tsquery('pg_catalog.simple', :term{number})"
    if term.prefix:  # a tsquery shows itself as text with every word quoted, the last one at the end
        tsquery = f"(nullif(CAST({tsquery} AS text), '') || ':*')\\:\\:tsquery"
    return f"(!! {tsquery})" if term.excluded else tsquery


def _fold(words: str) -> str:
    """Fold words like the SQL function email_words (fts_schema.py) folds the messages."""
    bare = _COMBINING.sub("", unicodedata.normalize("NFD", words))
    return bare.translate(_TO_SPACES)


def snippet(body: str, terms: Sequence[Term]) -> str:
    """Return the text around the first wanted term that occurs literally in `body`, else the beginning of `body`."""
    lower = body.lower()
    found = [lower.find(term.words.lower()) for term in terms if not term.excluded]
    start = max(0, min((at for at in found if at >= 0), default=0) - _SNIPPET // 3)
    line = " ".join(body[start : start + _SNIPPET].split())
    return ("… " if start else "") + line + (" …" if start + _SNIPPET < len(body) else "")
