"""Mail that kills: what parses such a message aborts, loops for ever or eats memory, as a bug in a C library would."""

from __future__ import annotations

from pathlib import Path

SITE = """\
import os
import email_ingestion.parsing as parsing

harmless = parsing.parse

def parse(envelope, raw):
    if b"X-Poison: abort" in raw:
        os.abort()
    if b"X-Poison: loop" in raw:
        while True:
            pass
    if b"X-Poison: memory" in raw:
        hoard = []
        while True:
            hoard.append(bytes(64 * 1024 * 1024))
    return harmless(envelope, raw)

parsing.parse = parse
"""

SINK_SITE = """\
import os
import email_ingestion.sinks.database as database

harmless = database.DatabaseSink.deliver

def deliver(self, batch):
    if any(b"X-Poison: sink" in message.raw for message in batch):
        os.abort()
    return harmless(self, batch)

database.DatabaseSink.deliver = deliver
"""


def poisoned_python(folder: Path, site: str = SITE) -> str:
    """A PYTHONPATH under which every Python of ours has the fault."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(site)
    return str(folder)
