"""Delivered mail page by page, newest first: each page begins behind the last message of the page before.

So a page costs the same however far back it lies, and mail that arrives meanwhile shifts nothing.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, func, or_, select, text

from email_ingestion.ledger.engine import Database, QueryTooSlow
from email_ingestion.ledger.model import StoredFacts
from email_ingestion.ledger.outbox import ENVELOPE_COLUMNS, envelope_of
from email_ingestion.ledger.rows import chunks
from email_ingestion.ledger.search import (
    Term,
    mail_conditions,
    parse,
    postgresql_count,
    postgresql_estimate,
    postgresql_probe,
    sqlite_condition,
    sqlite_count,
    sqlite_probe,
)
from email_ingestion.ledger.search_filter import SearchFilter, add_fold
from email_ingestion.ledger.sender_index import find_senders, of_senders
from email_ingestion.ledger.tables import emails
from email_ingestion.ledger.types import Moment
from email_ingestion.ledger.word_ranges import first_that_fit, first_with_words

COUNTED = 1000  # messages are counted exactly up to this
_NO_CURSOR = "this is no cursor of a page"
_MANY = 2000  # messages that have a word which is common
_MUCH = 20_000  # messages of an account
_LOOKED_AT = 5000  # messages, one after the other, for a page of common words
_READ_ANEW = 1000  # the same where each is read for it: PostgreSQL's index cannot be asked about one message
_COMMON_SHARE = 0.05  # of all messages that have a word which is common on PostgreSQL: some 400 are read for a page
_COUNTED_AT_ONCE = 100  # messages that a count fetches, and knows of when its time is over
_FIND_SOME = 30_000  # messages that PostgreSQL's index gives of many more, to see that they are more than are counted
_FACTS = (*ENVELOPE_COLUMNS, emails.c.raw_ref, emails.c.tags, emails.c.priority, emails.c.defects)


@dataclass(frozen=True, slots=True)
class PagePlace:
    """The last message of a page; the next page begins behind it."""

    internaldate: datetime
    email_id: str

    @property
    def cursor(self) -> str:
        """The place as a text that travels in a URL."""
        plain = json.dumps([self.internaldate.isoformat(), self.email_id], separators=(",", ":"))
        return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")

    @classmethod
    def from_cursor(cls, text: str) -> PagePlace:
        """Return the place again. Raises ValueError for a text that no `cursor` is."""
        try:
            moment, email_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            place = cls(datetime.fromisoformat(moment).astimezone(UTC), str(email_id))
            place.email_id.encode()  # JSON may hold half a character
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(_NO_CURSOR) from error
        if place.cursor != text:
            raise ValueError(_NO_CURSOR)
        return place


@dataclass(frozen=True, slots=True)
class PageEntry:
    """A message of a page, with what parsing its raw bytes does not give; `defects` are those of its record."""

    facts: StoredFacts
    defects: tuple[str, ...]

    @property
    def email_id(self) -> str:
        """Its identity."""
        return self.facts.envelope.email_id

    @property
    def place(self) -> PagePlace:
        """Where a page ends that ends with it."""
        return PagePlace(self.facts.envelope.internaldate, self.email_id)


@dataclass(frozen=True, slots=True)
class MailCount:
    """How many messages there are; more than `number` where it is not exact: they were counted no further."""

    number: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, and what of it leads to few messages."""

    words: str
    only: SearchFilter
    terms: Sequence[Term]
    rare: Sequence[Term]
    rest: Sequence[Term]
    senders: Sequence[str] | None  # None: the filter names none or too many, or something else leads to few messages

    @classmethod
    def of(cls, connection: Connection, words: str, only: SearchFilter) -> _Question:
        terms = parse(words)
        rare, rest = _by_rarity(connection, terms)
        means_nothing = bool(words.strip()) and not terms
        senders = None
        if only.sender is not None and not rare and not means_nothing:
            senders = find_senders(connection, only.sender)
        return cls(words, only, terms, rare, rest, senders)

    @property
    def has_exclusions(self) -> bool:
        return any(term.excluded for term in self.terms)

    def may_be_counted_alone(self, connection: Connection) -> bool:
        """Return whether there are probably more messages with the words than are counted, whatever attachments say."""
        if not self.only.is_empty or not self.rest or self.rare:
            return False
        if connection.dialect.name == "sqlite":
            return not self.has_exclusions
        return _is_common(connection, self.terms)

    def walks(self, connection: Connection) -> bool:
        """Return whether the page is probably found by looking at the newest messages one after the other."""
        if self.senders is not None:
            return _have_much(connection, self.senders, self.terms)
        return bool(self.rest) and not self.rare and _is_common(connection, self.terms)


class MailPages:
    """Pages of delivered mail. Threads may share it; every method raises SinkUnavailable when the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self,
        words: str = "",
        only: SearchFilter | None = None,
        limit: int = 20,
        after: PagePlace | None = None,
        *,
        seconds: float | None = None,
    ) -> list[PageEntry]:
        """Return the messages of `ids`, in this order. Raises QueryTooSlow as it does."""
        return self.entries(self.ids(words, only, limit, after, seconds=seconds))

    def ids(
        self,
        words: str = "",
        only: SearchFilter | None = None,
        limit: int = 20,
        after: PagePlace | None = None,
        *,
        seconds: float | None = None,
    ) -> list[str]:
        """Return the identities of the newest messages behind `after` that `only` lets pass and that have all `words`.

        Raises QueryTooSlow when looking for them takes longer than `seconds`.
        """
        with self._database.connect(seconds) as connection:
            add_fold(connection)
            _go_by_indices(connection)
            asked = _Question.of(connection, words, only or SearchFilter())
            ids = self._newest(connection, asked, limit, after) if asked.walks(connection) else None
            if ids is None and asked.senders and asked.terms and _is_common(connection, asked.terms):
                ids = self._of_senders(connection, asked, limit, after)
            if ids is None:
                query = _page_of([*self._where(connection, asked), *_behind(after)], limit)
                ids = list(connection.execute(query).scalars())
            return ids

    def _newest(
        self, connection: Connection, asked: _Question, limit: int, after: PagePlace | None
    ) -> list[str] | None:
        """Look at the newest messages one after the other; None where the page is not among them."""
        behind = _behind(after)
        before = SearchFilter(before=asked.only.before).conditions(connection.dialect.name)
        dates = select(emails.c.internaldate).where(*behind, *before).order_by(emails.c.internaldate.desc())
        on_sqlite = connection.dialect.name == "sqlite"
        looked_at = _LOOKED_AT if on_sqlite else _READ_ANEW
        floor = connection.execute(dates.limit(1).offset(looked_at)).scalar_one_or_none()
        conditions = [*_filter_conditions(connection, asked.only), *behind]
        if floor is not None:
            conditions.append(emails.c.internaldate >= bindparam("floor", floor, Moment))
        if on_sqlite:
            found = first_with_words(connection, _page_of(conditions, None), asked.terms, limit)
        else:
            query = _page_of([*conditions, *_probe(connection, asked.terms)], limit)
            found = list(connection.execute(query).scalars())
        return found if floor is None or len(found) == limit else None

    def _of_senders(self, connection: Connection, asked: _Question, limit: int, after: PagePlace | None) -> list[str]:
        """Look for the words in mail of the senders only, the newest first, and no further than the page goes."""
        theirs = of_senders(connection.dialect.name, asked.senders or ())
        conditions = [theirs, *_filter_conditions(connection, asked.only), *_behind(after)]
        return first_that_fit(connection, _page_of(conditions, None), _probe(connection, asked.terms), limit)

    def _where(self, connection: Connection, asked: _Question) -> list[Any]:
        """Return the conditions; common words are looked for where a rare one is, or where the filter lets pass."""
        words, only, rare, rest = asked.words, asked.only, asked.rare, asked.rest
        on_sqlite = connection.dialect.name == "sqlite"
        if asked.senders is not None:
            theirs = of_senders(connection.dialect.name, asked.senders)
            if asked.terms and not on_sqlite and not _is_common(connection, asked.terms):
                return [theirs, *mail_conditions(connection.dialect.name, words, only)]
            return [theirs, *_filter_conditions(connection, only), *_probe(connection, asked.terms)]
        if not on_sqlite or (words.strip() and not rare and len(rest) != 1):
            return mail_conditions(connection.dialect.name, words, only)
        filtered = _filter_conditions(connection, only)
        if rare:
            return [sqlite_condition(rare), *_probe(connection, rest), *filtered]
        if rest and only.is_empty:
            return mail_conditions(connection.dialect.name, words, only)
        return [*filtered, *_probe(connection, rest)]

    def entries(self, email_ids: Sequence[str]) -> list[PageEntry]:
        """Return the messages of these identities in this order, without those that are not here."""
        found: dict[str, PageEntry] = {}
        with self._database.connect() as connection:
            for chunk in chunks(email_ids):
                for row in connection.execute(select(*_FACTS).where(emails.c.email_id.in_(chunk))):
                    facts = StoredFacts(envelope_of(row), row.raw_ref, tuple(row.tags or ()), row.priority)
                    entry = PageEntry(facts, tuple(row.defects))
                    found[entry.email_id] = entry
        return [found[each] for each in email_ids if each in found]

    def count(
        self, words: str = "", only: SearchFilter | None = None, maximum: int = COUNTED, *, seconds: float | None = None
    ) -> MailCount:
        """Count what all pages have together, up to `maximum`, and no longer than `seconds`."""
        number = 0
        end = None if seconds is None else time.monotonic() + seconds
        try:
            with self._database.connect(seconds) as connection:
                add_fold(connection)
                _go_by_indices(connection)
                asked = _Question.of(connection, words, only or SearchFilter())
                if asked.may_be_counted_alone(connection) and _count_alone(connection, asked, maximum + 1) > maximum:
                    return MailCount(maximum, is_exact=False)
                where = self._where(connection, asked)
                query = select(emails.c.email_id).where(*where).limit(maximum + 1)
                with connection.execute(query, execution_options={"yield_per": _COUNTED_AT_ONCE}) as found:
                    for _ in found:
                        if end is not None and time.monotonic() > end:
                            return MailCount(number, is_exact=False)
                        number += 1
        except QueryTooSlow:
            return MailCount(number, is_exact=False)
        return MailCount(min(number, maximum), is_exact=number <= maximum)

    def counts(self, since: datetime, account: str | None = None) -> dict[str, tuple[int, int]]:
        """Return by account how many messages there are, and how many of them arrived `since` then."""
        everything = select(emails.c.account, func.count()).group_by(emails.c.account)
        recent = everything.where(emails.c.internaldate >= bindparam("since", since, Moment))
        mine = [] if account is None else [emails.c.account == account]
        with self._database.connect() as connection:
            new = {row[0]: row[1] for row in connection.execute(recent.where(*mine))}
            return {name: (count, new.get(name, 0)) for name, count in connection.execute(everything.where(*mine))}


def _filter_conditions(connection: Connection, only: SearchFilter) -> list[Any]:
    """Return the conditions of a filter; of an account with much mail SQLite shall not sort all of it by date."""
    if only.account is None or connection.dialect.name != "sqlite":
        return list(only.conditions(connection.dialect.name))
    mine = emails.c.account == only.account
    some = select(emails.c.account).where(mine).limit(_MUCH).subquery()
    if connection.execute(select(func.count()).select_from(some)).scalar_one() < _MUCH:
        return list(only.conditions(connection.dialect.name))
    without_index = text("+emails.account = :of_account").bindparams(of_account=only.account)
    return [*replace(only, account=None).conditions(connection.dialect.name), without_index]


def _go_by_indices(connection: Connection) -> None:
    """Keep PostgreSQL from computing the words of message after message, which it takes for cheap."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")


def _count_alone(connection: Connection, asked: _Question, limit: int) -> int:
    """Count, up to `limit`, messages whose own text has all terms; of many PostgreSQL finds some, for all take long."""
    if connection.dialect.name == "sqlite":
        counted: int = connection.execute(sqlite_count(asked.terms, limit)).scalar_one()
        return counted
    # What is left out by chance must not count as what a message has not.
    settings = {"enable_indexscan": "off", "gin_fuzzy_search_limit": 0 if asked.has_exclusions else _FIND_SOME}
    for name, value in settings.items():
        connection.exec_driver_sql(f"SET LOCAL {name} = {value}")
    counted = connection.execute(postgresql_count(asked.terms, limit)).scalar_one()
    for name in settings:
        connection.exec_driver_sql(f"SET LOCAL {name} TO DEFAULT")
    return counted


def _have_much(connection: Connection, senders: Sequence[str], terms: Sequence[Term]) -> bool:
    """Return whether so much mail is of these senders that the newest is found by looking.

    PostgreSQL sees that by its statistics, but for common words, which it would look for in each of the messages.
    """
    dialect = connection.dialect.name
    if dialect != "sqlite" and not _is_common(connection, terms):
        return False
    some = select(emails.c.account).where(of_senders(dialect, senders)).limit(_LOOKED_AT).subquery()
    counted: int = connection.execute(select(func.count()).select_from(some)).scalar_one()
    return counted >= _LOOKED_AT


def _probe(connection: Connection, terms: Sequence[Term]) -> list[Any]:
    if not terms:
        return []
    return [sqlite_probe(terms) if connection.dialect.name == "sqlite" else postgresql_probe(terms)]


def _by_rarity(connection: Connection, terms: Sequence[Term]) -> tuple[list[Term], list[Term]]:
    """Return the wanted terms that few messages have, and all others; PostgreSQL knows that by itself."""
    wanted = [term for term in terms if not term.excluded]
    if not wanted:
        return [], []
    if connection.dialect.name != "sqlite":
        return [], list(terms)
    rare = [term for term in wanted if connection.execute(sqlite_count([term], _MANY)).scalar_one() < _MANY]
    return rare, [term for term in terms if term not in rare]


def _is_common(connection: Connection, terms: Sequence[Term]) -> bool:
    """Return whether so many messages have all wanted terms that the newest of them are found by looking.

    On SQLite `_by_rarity` has counted them; PostgreSQL says what its statistics let expect.
    """
    if connection.dialect.name == "sqlite":
        return True
    if all(term.excluded for term in terms):
        return False
    total = connection.exec_driver_sql("SELECT reltuples FROM pg_class WHERE oid = 'emails'::regclass").scalar_one()
    (plan,) = connection.execute(postgresql_estimate(terms)).scalar_one()
    return bool(plan["Plan"]["Plan Rows"] >= max(_MANY, _COMMON_SHARE * total))


def _page_of(conditions: Sequence[Any], limit: int | None) -> Select[Any]:
    return (
        select(emails.c.email_id)
        .where(*conditions)
        .order_by(emails.c.internaldate.desc(), emails.c.email_id)
        .limit(limit)
    )


def _behind(place: PagePlace | None) -> list[ColumnElement[bool]]:
    if place is None:
        return []
    date = bindparam("page_date", place.internaldate, Moment)
    # The first condition alone would do; an index answers the second.
    later = or_(emails.c.internaldate < date, and_(emails.c.internaldate == date, emails.c.email_id > place.email_id))
    return [later, emails.c.internaldate <= date]
