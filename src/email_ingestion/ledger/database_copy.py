"""Copy a ledger into another database, row by row, while the first one is in use.

A pass compares every row with the one that the other database has, and inserts, changes or removes what differs. So a
copy that was killed goes on where it was, a later pass brings over what changed meanwhile, and a pass without a
difference is the proof that both are the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, Table, and_, delete, func, null, or_, select, tuple_, update

from email_ingestion.errors import OperationFailed, PermanentError
from email_ingestion.identity import tombstone
from email_ingestion.ledger.change_feed import ChangeFeed
from email_ingestion.ledger.copy import TABLES
from email_ingestion.ledger.engine import Database, open_engine
from email_ingestion.ledger.rows import insert_of
from email_ingestion.ledger.store import open_ledger
from email_ingestion.ledger.tables import contents, emails, erased, metadata
from email_ingestion.ledger.types import Json

COPIED = (*TABLES, "change_feed", "changes", "change_readers", "held_changes")
ROWS = 200  # of one transaction
LARGE_ROWS = 20  # of stored contents, each of which may have a quarter of a megabyte
SECONDS = 600.0  # for a transaction: the other database may be far away

Key = tuple[Any, ...]
Row = Mapping[str, Any]
# Postponed: the message that it belongs to came after its table had been copied; the next pass takes both.
# Refused: the other database takes no such value, as PostgreSQL no text with a zero byte.
Change = Literal["inserted", "changed", "removed", "postponed", "refused"]
MAX_NAMED = 20  # refused rows that are named


@dataclass
class CopySummary:
    """What a pass found; it grows while the pass goes on."""

    rows: Counter[str] = field(default_factory=Counter)  # compared, by table
    changes: Counter[Change] = field(default_factory=Counter)  # of rows of the other database
    refused: list[str] = field(default_factory=list)  # the first refused rows, and why

    @property
    def same(self) -> bool:
        """Whether nothing differed."""
        return not self.changes


class DatabaseCopy:
    """Copies the ledger at one URL to another.

    Methods raise ConfigurationError, SinkUnavailable and OperationFailed; each row is whole on either side.
    """

    def __init__(self, source_url: str, target_url: str) -> None:
        """Open both; the tables of the other database are made."""
        for url in (source_url, target_url):
            open_ledger(url).close()
        self._engines = [open_engine(source_url), open_engine(target_url)]
        self._source, self._target = (Database(engine) for engine in self._engines)
        if str(self._engines[0].url) == str(self._engines[1].url):
            raise OperationFailed("that is the database which is in use: name another one")
        self._insert = insert_of(self._engines[1])

    def close(self) -> None:
        """Close the connections."""
        for engine in self._engines:
            engine.dispose()

    def count(self) -> int:
        """Return the number of rows there are to compare."""
        with self._source.connect() as connection:
            return sum(
                connection.execute(select(func.count()).select_from(metadata.tables[name])).scalar_one()
                for name in COPIED
            )

    def refuse_other_mail(self) -> None:
        """Raise OperationFailed when the other database holds mail that this one never had: it is another ledger."""
        for keys in self._keys(self._target, emails):
            wanted = [key[0] for key in keys]
            with self._source.connect() as connection:
                known = set(
                    connection.execute(select(emails.c.email_id).where(emails.c.email_id.in_(wanted))).scalars()
                )
            foreign = [each for each in wanted if each not in known]
            if foreign and (left := self._without_erased(foreign)):
                raise OperationFailed(
                    f"{self._target.name} holds mail that {self._source.name} lacks, such as {left[0]}: "
                    "it is the ledger of another installation, or newer; name an empty database"
                )

    def run(self, advance: Callable[[int], object]) -> CopySummary:
        """Do one pass; `advance` is called with the number of rows done since its last call."""
        summary = CopySummary()
        ChangeFeed(self._source).number_all()  # what has no number yet is not copied
        for name in COPIED:
            table = metadata.tables[name]
            for rows in self._rows(table):
                summary.changes += self._bring_over(table, rows, summary.refused)
                summary.rows[name] += len(rows)
                advance(len(rows))
        for name in reversed(COPIED):  # rows that refer to others first
            summary.changes += self._remove_gone(metadata.tables[name])
        return summary

    def _without_erased(self, email_ids: Sequence[str]) -> list[str]:
        """Leave out what was erased here after an earlier pass had brought it over."""
        by_tombstone = {tombstone(email_id): email_id for email_id in email_ids}
        with self._source.connect() as connection:
            query = select(erased.c.tombstone).where(erased.c.tombstone.in_(by_tombstone))
            known = set(connection.execute(query).scalars())
        return [email_id for mark, email_id in by_tombstone.items() if mark not in known]

    def _bring_over(self, table: Table, rows: Sequence[Row], refused: list[str]) -> Counter[Change]:
        """Make `rows` those of the other database, all but those that it refuses; they are found by halving."""
        try:
            return self._write(table, rows)
        except PermanentError as error:
            if len(rows) > 1:
                middle = len(rows) // 2
                parts = (rows[:middle], rows[middle:])
                return sum((self._bring_over(table, part, refused) for part in parts), Counter[Change]())
            if len(refused) < MAX_NAMED:
                key = " ".join(ascii(each).strip("'") for each in _key_of(table)(rows[0]))
                refused.append(f"{table.name} {key}: {error}")
            return Counter({"refused": 1})

    def _write(self, table: Table, rows: Sequence[Row]) -> Counter[Change]:
        """Insert those of `rows` that the other database lacks, and change those that differ there."""
        key_of = _key_of(table)
        theirs = self._find(self._target, table, list(map(key_of, rows)))
        lacking = [row for row in rows if key_of(row) not in theirs]
        missing = self._with_message(table, lacking)
        differing = [row for row in rows if theirs.get(key_of(row), row) != row]
        if missing or differing:
            with self._target.begin(SECONDS) as connection:
                for group in _alike(table, missing):
                    connection.execute(self._insert(table).on_conflict_do_nothing(), group)
                for row in differing:
                    change = update(table).where(_is(table, key_of(row)))
                    connection.execute(change.values({name: _stored(table, name, row[name]) for name in row}))
        changes: Counter[Change] = Counter()
        changes["inserted"] += len(missing)
        changes["changed"] += len(differing)
        changes["postponed"] += len(lacking) - len(missing)
        return +changes

    def _with_message(self, table: Table, rows: Sequence[Row]) -> list[Row]:
        """Return those rows whose message the other database has, where the table refers to messages."""
        if not table.foreign_keys or not rows:
            return list(rows)
        wanted = {row["email_id"] for row in rows}
        with self._target.connect() as connection:
            there = set(connection.execute(select(emails.c.email_id).where(emails.c.email_id.in_(wanted))).scalars())
        return [row for row in rows if row["email_id"] in there]

    def _remove_gone(self, table: Table) -> Counter[Change]:
        """Remove what is not in the source any more: deliveries taken back, messages erased."""
        changes: Counter[Change] = Counter()
        for keys in self._keys(self._target, table):
            gone = set(keys) - self._find(self._source, table, keys).keys()
            if gone:
                with self._target.begin(SECONDS) as connection:
                    connection.execute(delete(table).where(or_(*(_is(table, key) for key in sorted(gone)))))
                changes["removed"] += len(gone)
        return changes

    def _rows(self, table: Table) -> Iterator[list[Row]]:
        """Yield all rows of the source, in the order of their keys."""
        for keys in self._keys(self._source, table):
            yield list(self._find(self._source, table, keys).values())

    def _keys(self, database: Database, table: Table) -> Iterator[list[Key]]:
        columns = list(table.primary_key.columns)
        limit = LARGE_ROWS if table is contents else ROWS
        after: Key | None = None
        while True:
            query = select(*columns).order_by(*columns).limit(limit)
            with database.connect() as connection:
                found = connection.execute(query if after is None else query.where(_is_behind(columns, after))).all()
            if not found:
                return
            keys = [tuple(row) for row in found]
            after = keys[-1]
            yield keys

    def _find(self, database: Database, table: Table, keys: Sequence[Key]) -> dict[Key, Row]:
        """Return the rows with these keys, by key: the two databases sort texts differently, so order means nothing."""
        columns = list(table.primary_key.columns)
        wanted = columns[0].in_([key[0] for key in keys]) if len(columns) == 1 else tuple_(*columns).in_(keys)
        with database.connect() as connection:
            found = connection.execute(select(table).where(wanted)).mappings().all()
        return {tuple(row[column.name] for column in columns): dict(row) for row in found}


def _key_of(table: Table) -> Callable[[Row], Key]:
    names = [column.name for column in table.primary_key.columns]
    return lambda row: tuple(row[name] for name in names)


def _is(table: Table, key: Key) -> ColumnElement[bool]:
    return and_(*(column == value for column, value in zip(table.primary_key.columns, key, strict=True)))


def _is_behind(columns: Sequence[ColumnElement[Any]], key: Key) -> ColumnElement[bool]:
    """Match rows behind `key` in the order of the columns, as the database itself sorts them."""
    return or_(
        *(
            and_(*(columns[n] == key[n] for n in range(position)), columns[position] > key[position])
            for position in range(len(columns))
        )
    )


def _alike(table: Table, rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Group rows by the JSON columns that are NULL in them: given as None, they would become the JSON value null."""
    groups: defaultdict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        given = {name: value for name, value in row.items() if value is not None or not _is_json(table, name)}
        groups[tuple(given)].append(given)
    yield from groups.values()


def _stored(table: Table, name: str, value: Any) -> Any:
    return null() if value is None and _is_json(table, name) else value


def _is_json(table: Table, name: str) -> bool:
    return isinstance(table.columns[name].type, Json)
