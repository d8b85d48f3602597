"""Column types that both databases store without loss; migrations use them too."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

_SQLITE_MAX = 2**63 - 1


class Json(TypeDecorator[Any]):
    """JSONB on PostgreSQL, whose dialect (2 MB) is loaded only there; JSON on SQLite."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Use JSONB on PostgreSQL."""
        if dialect.name != "postgresql":
            return dialect.type_descriptor(JSON())
        from sqlalchemy.dialects.postgresql import JSONB  # noqa: PLC0415 - see above

        return dialect.type_descriptor(JSONB())


class _NoAffinity(UserDefinedType[int]):
    """A column without a declared type: SQLite keeps every value as it came (datatype3.html, section 3.1)."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return ""


class Unsigned64(TypeDecorator[int]):
    """X-GM-MSGID and X-GM-THRID: unsigned 64 bit, where both databases count in signed ones.

    NUMERIC(20) on PostgreSQL. On SQLite an integer, and above 2^63-1 the decimal digits as text: an integer
    column would turn those into a float and lose the last digits.
    """

    impl = Numeric(20, 0)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Use a column without affinity on SQLite."""
        return dialect.type_descriptor(_NoAffinity() if dialect.name == "sqlite" else Numeric(20, 0))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | str | None:
        """Bind an integer where it fits."""
        return str(value) if value is not None and value > _SQLITE_MAX and dialect.name == "sqlite" else value

    def process_result_value(self, value: int | str | Decimal | None, dialect: Dialect) -> int | None:
        """Return an integer in any case."""
        del dialect
        return None if value is None else int(value)


class Moment(TypeDecorator[datetime]):
    """An instant in UTC: TIMESTAMPTZ on PostgreSQL, ISO 8601 with offset on SQLite, which sorts as text."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Use text on SQLite."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        """Convert to UTC; records carry aware datetimes."""
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc.isoformat() if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | str | None, dialect: Dialect) -> datetime | None:
        """Return it aware, in UTC."""
        del dialect
        return datetime.fromisoformat(value) if isinstance(value, str) else value
