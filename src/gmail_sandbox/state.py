"""The sandbox's storage: one SQLite database, in a file or in memory, that survives kill -9.

Writes are collected and committed together at the end of `writing()`, so a message and its UIDs appear
together or not at all. WAL with synchronous=NORMAL loses nothing when the process is killed; only a power
cut could take the last moments.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gmail_sandbox.mailbox import Mailbox
from gmail_sandbox.message import Message, MessageLocation, interned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (
    msgid INTEGER PRIMARY KEY, thrid INTEGER NOT NULL, internaldate INTEGER NOT NULL, size INTEGER NOT NULL,
    flags TEXT NOT NULL, labels TEXT NOT NULL, location TEXT NOT NULL, message_id TEXT NOT NULL,
    modseq INTEGER NOT NULL, recipe INTEGER);
CREATE TABLE IF NOT EXISTS bodies (msgid INTEGER PRIMARY KEY, raw BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS mailboxes (
    key TEXT PRIMARY KEY, uidvalidity INTEGER NOT NULL, uidnext INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uids (
    key TEXT NOT NULL, uid INTEGER NOT NULL, msgid INTEGER NOT NULL, PRIMARY KEY (key, uid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
    token TEXT PRIMARY KEY, kind TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID;
"""

_PUT_MESSAGE = "INSERT OR REPLACE INTO messages VALUES (?,?,?,?,?,?,?,?,?,?)"
_PUT_MAILBOX = "INSERT OR REPLACE INTO mailboxes VALUES (?,?,?)"
_PUT_UID = "INSERT OR REPLACE INTO uids VALUES (?,?,?)"
_DROP_UID = "DELETE FROM uids WHERE key = ? AND uid = ?"


class State:
    """Reads and writes rows; `account` gives them their meaning."""

    def __init__(self, path: Path | None = None) -> None:
        """Open or create the database; without a path it lives in memory."""
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self.before_commit: Callable[[], None] = lambda: None
        self._depth = 0
        self._messages: dict[int, Message] = {}
        self._mailboxes: dict[str, Mailbox] = {}
        self._new_uids: list[tuple[str, int, int]] = []

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Commit everything done inside as one; may be nested."""
        if self._depth:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
            self.before_commit()
            self._flush()
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        finally:
            self._depth = 0
            self._messages.clear()
            self._mailboxes.clear()
            self._new_uids.clear()
        self._db.execute("COMMIT")

    def _flush(self) -> None:
        self._db.executemany(_PUT_MESSAGE, map(_row, self._messages.values()))
        self._flush_uids()
        self._db.executemany(_PUT_MAILBOX, ((m.key, m.uidvalidity, m.uidnext) for m in self._mailboxes.values()))

    def _flush_uids(self) -> None:
        self._db.executemany(_PUT_UID, self._new_uids)
        self._new_uids.clear()

    def set_meta(self, name: str, value: object) -> None:
        """Save a JSON value under a name."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (name, json.dumps(value)))

    def meta(self, name: str, default: object = None) -> object:
        """Return a saved value."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        value: object = json.loads(row[0]) if row else default
        return value

    def put_message(self, message: Message, raw: bytes | None = None) -> None:
        """Save a message; `raw` only when it is new and not generated."""
        self._messages[message.msgid] = message
        if raw is not None:
            self._db.execute("INSERT OR REPLACE INTO bodies VALUES (?,?)", (message.msgid, raw))

    def drop_message(self, msgid: int) -> None:
        """Forget a message for good."""
        self._messages.pop(msgid, None)
        self._db.execute("DELETE FROM messages WHERE msgid = ?", (msgid,))
        self._db.execute("DELETE FROM bodies WHERE msgid = ?", (msgid,))

    def put_uid(self, mailbox: Mailbox, uid: int, msgid: int) -> None:
        """Save a UID together with the mailbox's UIDNEXT."""
        self._new_uids.append((mailbox.key, uid, msgid))
        self._mailboxes[mailbox.key] = mailbox

    def drop_uid(self, mailbox: Mailbox, uid: int) -> None:
        """Forget a UID; UIDNEXT stays, so it is never given again."""
        self._flush_uids()
        self._db.execute(_DROP_UID, (mailbox.key, uid))

    def put_mailbox(self, mailbox: Mailbox) -> None:
        """Save UIDVALIDITY, UIDNEXT and all UIDs of a new or renumbered mailbox."""
        self.drop_mailbox(mailbox.key)
        self._mailboxes[mailbox.key] = mailbox
        self._new_uids += ((mailbox.key, *entry) for entry in zip(mailbox.uids, mailbox.msgids, strict=True))

    def drop_mailbox(self, key: str) -> None:
        """Forget a mailbox."""
        self._flush_uids()
        self._mailboxes.pop(key, None)
        self._db.execute("DELETE FROM mailboxes WHERE key = ?", (key,))
        self._db.execute("DELETE FROM uids WHERE key = ?", (key,))

    def raw(self, msgid: int) -> bytes:
        """Return the stored bytes of a message; KeyError when there are none."""
        row = self._db.execute("SELECT raw FROM bodies WHERE msgid = ?", (msgid,)).fetchone()
        if row is None:
            raise KeyError(msgid)
        return bytes(row[0])

    def messages(self) -> Iterator[Message]:
        """Return every message, oldest identity first."""
        for row in self._db.execute("SELECT * FROM messages ORDER BY msgid"):
            yield _message(row)

    def mailboxes(self) -> Iterator[Mailbox]:
        """Return every mailbox with its UIDs."""
        for key, uidvalidity, uidnext in self._db.execute("SELECT * FROM mailboxes").fetchall():
            mailbox = Mailbox(key, uidvalidity, uidnext)
            for uid, msgid in self._db.execute("SELECT uid, msgid FROM uids WHERE key = ? ORDER BY uid", (key,)):
                mailbox.restore(uid, msgid)
            yield mailbox

    def put_token(self, token: str, kind: str, facts: dict[str, object]) -> None:
        """Save a token that must outlive a restart."""
        self._db.execute("INSERT OR REPLACE INTO tokens VALUES (?,?,?)", (token, kind, json.dumps(facts)))

    def drop_token(self, token: str) -> None:
        """Forget a token."""
        self._db.execute("DELETE FROM tokens WHERE token = ?", (token,))

    def tokens(self, kind: str) -> Iterator[tuple[str, dict[str, object]]]:
        """Return every token of a kind."""
        for token, facts in self._db.execute("SELECT token, facts FROM tokens WHERE kind = ?", (kind,)):
            yield token, json.loads(facts)


def _row(message: Message) -> tuple[object, ...]:
    return (
        message.msgid,
        message.thrid,
        message.internaldate,
        message.size,
        json.dumps(sorted(message.flags)),
        json.dumps(sorted(message.labels)),
        message.location.value,
        message.message_id,
        message.modseq,
        message.recipe,
    )


def _message(row: tuple[int, int, int, int, str, str, str, str, int, int | None]) -> Message:
    flags, labels = (interned(frozenset(json.loads(text))) for text in row[4:6])
    return Message(*row[:4], flags, labels, MessageLocation(row[6]), *row[7:])
