"""Parse an operator's search words into conditions for each database; no input makes an invalid query."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sqlalchemy import ColumnElement, TextClause, false, text

from email_ingestion.ledger.search_filter import SearchFilter

_MAX_TERMS = 64  # far above what a person types, far below what a query parser refuses

_TERM = re.compile(r'(?P<minus>-?)(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"*]+))(?P<star>\*?)')
_COMBINING = re.compile("[\u0300-\u036f]+")
_TO_SPACES = str.maketrans(string.punctuation, " " * len(string.punctuation))


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


def mail_conditions(dialect: str, words: str, only: SearchFilter) -> list[ColumnElement[bool] | TextClause]:
    """Make the conditions on `emails` of words and a filter; without both every message fulfils them.

    Words without a letter, and words of which all are excluded without a filter, find nothing.
    """
    if not words.strip():
        return list(only.conditions(dialect))
    terms = parse(words)
    if not terms or (only.is_empty and all(term.excluded for term in terms)):
        return [false()]
    condition = sqlite_condition if dialect == "sqlite" else postgresql_condition
    return [condition(terms), *only.conditions(dialect)]


def sqlite_condition(terms: Sequence[Term]) -> TextClause:
    """Make a condition on `emails` for FTS5: every wanted term is in the message or in an attachment's name."""
    docs = " INTERSECT ".join(_docs(n) for n, term in enumerate(terms) if not term.excluded) or _ALL_DOCS
    docs += "".join(f" EXCEPT {_docs(n)}" for n, term in enumerate(terms) if term.excluded)
    return text(
        f"emails.email_id IN (SELECT email_docs.email_id FROM email_docs WHERE email_docs.doc IN ({docs}))"  # noqa: S608 - our own names
    ).bindparams(**{f"term{n}": sqlite_match(term) for n, term in enumerate(terms)})


_ALL_DOCS = "SELECT doc FROM email_docs"


def _docs(number: int) -> str:
    return (
        f"SELECT doc FROM (SELECT rowid AS doc FROM email_words WHERE email_words MATCH :term{number}"  # noqa: S608 - our own names
        f" UNION SELECT rowid >> 20 FROM attachment_words WHERE attachment_words MATCH :term{number})"
    )


def sqlite_probe(terms: Sequence[Term]) -> TextClause:
    """Make the same condition for looking at one message after the other, where most have the words.

    `sqlite_condition` finds all messages first, which takes long for words that a million have.
    """
    found = [
        f"{'NOT ' if term.excluded else ''}(EXISTS (SELECT 1 FROM email_words"  # noqa: S608 - our own names
        f" WHERE email_words MATCH :probe{n} AND email_words.rowid = docs.doc)"
        f" OR EXISTS (SELECT 1 FROM attachment_words WHERE attachment_words MATCH :probe{n}"
        " AND attachment_words.rowid BETWEEN docs.doc << 20 AND (docs.doc << 20) + 1048575))"
        for n, term in enumerate(terms)
    ]
    return text(
        f"EXISTS (SELECT 1 FROM email_docs AS docs WHERE docs.email_id = emails.email_id AND {' AND '.join(found)})"  # noqa: S608
    ).bindparams(**{f"probe{n}": sqlite_match(term) for n, term in enumerate(terms)})


def sqlite_count(terms: Sequence[Term], limit: int) -> TextClause:
    """Make a query that counts, up to `limit`, the messages whose own text has all wanted `terms`."""
    wanted = " AND ".join(sqlite_match(term) for term in terms if not term.excluded)
    return text(
        "SELECT count(*) FROM (SELECT 1 FROM email_words WHERE email_words MATCH :wanted LIMIT :most)"
    ).bindparams(wanted=wanted, most=limit)


def sqlite_match(term: Term) -> str:
    """Return a term as FTS5 wants it."""
    return f'"{term.words}"' + (" *" if term.prefix else "")  # `words` holds no quote


def postgresql_condition(terms: Sequence[Term]) -> TextClause:
    """Make a condition on `emails` that the full-text indices of messages and of attachments' names answer.

    Of few terms in one question to the index for each choice of those that are in names of attachments: the index finds
    what is common to several words at once, where a join of all that has one and all that has the other takes long.
    """
    numbered = list(enumerate(terms))
    wanted = [each for each in numbered if not each[1].excluded]
    if not 0 < len(wanted) <= _MAX_TOGETHER:
        return _of_each_term(terms)
    excluded = [each for each in numbered if each[1].excluded]
    found = " UNION ALL ".join(
        _with_names(names, [each for each in wanted if each not in names], excluded)
        for size in range(len(wanted) + 1)
        for names in combinations(wanted, size)
    )
    # Materialized: else the planner may compute the words of message after message, in the order of their dates.
    sql = f"emails.email_id IN (WITH found AS MATERIALIZED ({found}) SELECT email_id FROM found)"  # noqa: S608 - our own names
    return _bound(sql, terms)


_Numbered = tuple[int, Term]
_MAX_TOGETHER = 3


def _with_names(names: Sequence[_Numbered], own: Sequence[_Numbered], excluded: Sequence[_Numbered]) -> str:
    """Return the SQL of the messages that have some terms in names of attachments, and others in their own text."""
    where = [
        "mail.email_id IN (SELECT part.email_id FROM attachments AS part"  # noqa: S608 - our own names
        f" WHERE {_NAME_WORDS} @@ {_tsquery(*each)})"
        for each in names
    ]
    where += [f"{_MAIL_WORDS} @@ {_tsquery(*each)}" for each in own]
    for each in excluded:  # together with a wanted one, for the index finds nothing by what is not there
        without = f"{_MAIL_WORDS} @@ ({_tsquery(*own[0])} && !!{_tsquery(*each)})" if own else ""
        where.append(without or f"NOT {_MAIL_WORDS} @@ {_tsquery(*each)}")
    where += [
        "NOT EXISTS (SELECT 1 FROM attachments AS part"  # noqa: S608 - our own names
        f" WHERE part.email_id = mail.email_id AND {_NAME_WORDS} @@ {_tsquery(*each)})"
        for each in excluded
    ]
    return f"SELECT mail.email_id FROM emails AS mail WHERE {' AND '.join(where)}"  # noqa: S608 - our own names


def _of_each_term(terms: Sequence[Term]) -> TextClause:
    parts = [
        f"emails.email_id {'NOT ' if term.excluded else ''}IN ("  # noqa: S608 - our own names
        "SELECT mail.email_id FROM emails AS mail"
        f" WHERE email_words(mail.subject, mail.from_name, mail.from_addr, mail.text) @@ {_tsquery(number, term)}"
        " UNION ALL SELECT part.email_id FROM attachments AS part"
        f" WHERE email_words(part.filename, NULL, NULL, NULL) @@ {_tsquery(number, term)})"
        for number, term in enumerate(terms)
    ]
    return _bound(" AND ".join(parts), terms)


def postgresql_probe(terms: Sequence[Term]) -> TextClause:
    """Make the same condition for looking at one message after the other, as `sqlite_probe`."""
    parts = [
        f"{'NOT ' if term.excluded else ''}({_EMAIL_WORDS} @@ {_tsquery(number, term)}"  # noqa: S608 - our own names
        " OR EXISTS (SELECT 1 FROM attachments AS part WHERE part.email_id = emails.email_id"
        f" AND email_words(part.filename, NULL, NULL, NULL) @@ {_tsquery(number, term)}))"
        for number, term in enumerate(terms)
    ]
    return _bound(" AND ".join(parts), terms)


def postgresql_estimate(terms: Sequence[Term]) -> TextClause:
    """Make a query for the plan that finds the messages with all wanted `terms`: it says about how many there are."""
    wanted = [term for term in terms if not term.excluded]
    where = " AND ".join(f"{_EMAIL_WORDS} @@ {_tsquery(number, term)}" for number, term in enumerate(wanted))
    return _bound(f"EXPLAIN (FORMAT JSON) SELECT 1 FROM emails WHERE {where}", wanted)  # noqa: S608 - our own names


_EMAIL_WORDS = "email_words(emails.subject, emails.from_name, emails.from_addr, emails.text)"
_MAIL_WORDS = _EMAIL_WORDS.replace("emails.", "mail.")
_NAME_WORDS = "email_words(part.filename, NULL, NULL, NULL)"


def postgresql_count(terms: Sequence[Term], limit: int) -> TextClause:
    """Make a query that counts, up to `limit`, the messages whose own text has all wanted `terms`.

    Where none is excluded it counts some of them, and none that has them not, with `gin_fuzzy_search_limit`.
    """
    numbered = list(enumerate(terms))
    wanted = [each for each in numbered if not each[1].excluded]
    found = _with_names((), wanted, [each for each in numbered if each[1].excluded])
    return _bound(f"SELECT count(*) FROM ({found} LIMIT :most) AS found", terms).bindparams(most=limit)  # noqa: S608 - our own names


def _bound(sql: str, terms: Sequence[Term]) -> TextClause:
    return text(sql).bindparams(**{f"term{number}": _fold(term.words) for number, term in enumerate(terms)})


def _tsquery(number: int, term: Term) -> str:
    tsquery = f"phraseto_tsquery('pg_catalog.simple', :term{number})"
    if term.prefix:  # a tsquery shows itself as text with every word quoted, the last one at the end
        return f"(nullif(CAST({tsquery} AS text), '') || ':*')\\:\\:tsquery"
    return tsquery


def _fold(words: str) -> str:
    """Fold words like the SQL function email_words (fts_schema.py) folds the messages."""
    bare = _COMBINING.sub("", unicodedata.normalize("NFD", words))
    return bare.translate(_TO_SPACES)
