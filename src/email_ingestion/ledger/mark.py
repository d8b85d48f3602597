"""How far the database has come, to find out later that it went back: a failover that lost commits, an old backup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection

# A table that was dropped and made anew has another number, while the log goes on. Of a server in recovery the position
# is what it has replayed; its timeline is in the name of a WAL file only where it writes one.
_POSTGRESQL = """
SELECT concat_ws(' ', (pg_control_system()).system_identifier, to_regclass('emails')::oid),
  CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,
  pg_wal_lsn_diff(
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, '0/0'
  )::bigint
"""
_SQLITE = "SELECT application_id, (SELECT coalesce(max(rowid), 0) FROM emails) FROM pragma_application_id"


@dataclass(frozen=True, slots=True)
class LedgerMark:
    """The position of a database in its own history."""

    system: str  # which it is: PostgreSQL's system identifier and the table's number, or SQLite's application id
    timeline: str  # of PostgreSQL; another one begins with each failover
    position: int  # grows with every commit: bytes of WAL, or SQLite's last row id

    def is_ahead_of(self, now: LedgerMark) -> bool:
        """Whether a database that was here, and is at `now`, may have lost what it had."""
        if self.system != now.system or now.position < self.position:
            return True
        return bool(self.timeline and now.timeline and self.timeline != now.timeline)


def read_mark(connection: Connection) -> LedgerMark:
    """Return the mark of the database. Raises SQLAlchemy's errors, also where a managed server does not tell it."""
    if connection.dialect.name == "sqlite":
        application_id, last_row = connection.exec_driver_sql(_SQLITE).one()
        # Those made by releases before 0.2 have none.
        return LedgerMark(f"sqlite {application_id}" if application_id else "sqlite", "", int(last_row))
    system, timeline, position = connection.exec_driver_sql(_POSTGRESQL).one()
    return LedgerMark(system, timeline, int(position))
