"""A look at the ledger from outside: nothing is made, migrated or changed."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

from sqlalchemy import Engine, make_url

from email_ingestion.ledger.engine import check_server, open_engine, place
from email_ingestion.ledger.failures import while_opening
from email_ingestion.ledger.migrate import pending_revision
from email_ingestion.ledger.store import Ledger

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def look_at(url: str) -> str:
    """What there is, in words.

    Raises ConfigurationError when a setting or a permission is wrong or the schema is newer than this code,
    SinkUnavailable when the database takes nothing now.
    """
    engine = open_engine(url)
    try:
        file = _file(engine)
        if file and not file.exists():
            return f"{file} is not there yet: the worker makes it"
        check_server(engine)
        with while_opening(place(engine)):
            behind = pending_revision(engine)
        ledger = Ledger(engine)
        ledger.ping()
        if behind:
            return f"{place(engine)} takes writes; the next start brings its schema to {behind}"
        return f"{place(engine)} takes writes and holds {ledger.count():,} messages"
    finally:
        engine.dispose()


def ledger_mark(url: str) -> str | None:
    """Something that is equal for processes that use the same database, and tells nothing of it; None for no file yet.

    A file is known by its device and inode on this boot of the machine: containers see it under different paths.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return _hashed(parsed.host, parsed.port, parsed.database, parsed.query)
    try:
        status = os.stat(parsed.database or "")
        machine = BOOT_ID.read_text() if BOOT_ID.exists() else socket.gethostname()
    except OSError:
        return None
    return _hashed(machine, status.st_dev, status.st_ino)


def _hashed(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _file(engine: Engine) -> Path | None:
    return Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
