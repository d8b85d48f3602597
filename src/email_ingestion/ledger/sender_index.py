"""The index of senders, and how it finds which of them a filter means without looking at every message.

A filter's text may stand anywhere in a name or an address, so no order of an index leads to it. But there are far
fewer senders than messages: the index is walked from one sender to the next, and those that fit are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, false, text

from email_ingestion.ledger.search_filter import like, like_pattern

MAX_SENDERS = 500  # that are looked up; mail of more is found sooner by looking at the newest
_CHARACTERS = 200  # of a name and of an address: a B-tree of PostgreSQL refuses a key above 2,704 bytes

_SENDER = {
    "sqlite": (
        f"substr(coalesce(from_name, ''), 1, {_CHARACTERS}) || ' ' || substr(coalesce(from_addr, ''), 1, {_CHARACTERS})"
    ),
    "postgresql": (
        f"(left(coalesce(from_name, ''), {_CHARACTERS})"
        f" || ' ' || left(coalesce(from_addr, ''), {_CHARACTERS})) COLLATE \"C\""
    ),
}
SENDER_INDEX = "emails_sender"
SENDER_INDEX_STATEMENTS = {
    "sqlite": f"CREATE INDEX {SENDER_INDEX} ON emails ({_SENDER['sqlite']})",
    "postgresql": f"CREATE INDEX {SENDER_INDEX} ON emails (({_SENDER['postgresql']}))",
}


def find_senders(connection: Connection, wanted: str) -> list[str] | None:
    """Return the senders among which all are that have `wanted`; None where they are more than MAX_SENDERS.

    A connection to SQLite must be prepared with `add_fold`. Some may be too many: the filter's condition stands beside
    `of_senders`.
    """
    dialect = connection.dialect.name
    sender = _SENDER[dialect]
    compared = "sender" if dialect == "sqlite" else 'sender COLLATE "default"'  # "C" knows no letters but ASCII
    sql = f"""
        WITH RECURSIVE senders (sender) AS (
          SELECT * FROM (SELECT {sender} FROM emails ORDER BY 1 LIMIT 1) AS first
          UNION ALL
          SELECT (SELECT {sender} FROM emails WHERE {sender} > senders.sender ORDER BY 1 LIMIT 1)
          FROM senders WHERE senders.sender IS NOT NULL
        )
        SELECT sender FROM senders
        WHERE length(sender) >= {_CHARACTERS} OR {like(compared, ":wanted", dialect)} LIMIT {MAX_SENDERS + 1}"""  # noqa: S608 - our own names
    found = connection.execute(text(sql), {"wanted": f"%{like_pattern(wanted)}%"}).scalars()
    senders = [each for each in found if each is not None]
    return senders if len(senders) <= MAX_SENDERS else None


def of_senders(dialect: str, senders: Sequence[str]) -> Any:
    """Make the condition on `emails` that the index answers."""
    if not senders:  # of an empty list PostgreSQL does not know the type
        return false()
    condition = text(f"({_SENDER[dialect]}) IN :senders")
    return condition.bindparams(bindparam("senders", list(senders), expanding=True))
