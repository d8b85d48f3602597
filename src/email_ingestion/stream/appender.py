"""Appends messages to the stream and keeps the cursor of each mailbox: the only way mail gets into Redis.

    append          new mail, or history, together with the cursor, in one script
    append_missing  mail that reconciliation, a backfill or the quarantine brings; no cursor moves

Both may be repeated after a lost answer: a message that is in the stream already is not added again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import zstandard

from email_ingestion.records import Cursor, RawMessage
from email_ingestion.stream.codec import ZSTD_LEVEL, encode, pack_entries
from email_ingestion.stream.keys import GROUP
from email_ingestion.stream.redis_link import PendingScript, RedisLink
from email_ingestion.stream.stored_values import whole_number

CURSOR_FIELDS = ["uidvalidity", "uid", "rescan", "history"]
CursorEnd = Literal["uid", "history"]
PackedEntries = list[str | int | bytes]  # messages as arguments of a script


@dataclass(frozen=True, slots=True)
class StreamBacklog:
    """The messages in the stream, waiting or in flight."""

    depth: int  # messages
    volume: int  # bytes

    def __add__(self, other: StreamBacklog) -> StreamBacklog:
        return StreamBacklog(self.depth + other.depth, self.volume + other.volume)


EMPTY_BACKLOG = StreamBacklog(0, 0)


class Appender:
    """Appends the messages of accounts. Not thread-safe: create one for each thread.

    With an `owner` every write needs the account's lease to name that owner (see `Leases`), else it raises LeaseLost.
    """

    def __init__(self, link: RedisLink, owner: str = "") -> None:
        self._link = link
        self._owner = owner
        self._append = link.script("append")
        self._append_missing = link.script("append_missing")
        self._restart = link.script("restart_cursor")
        self._set_modseq = link.script("set_modseq")
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._backlog = EMPTY_BACKLOG  # as last read, plus the messages appended here since
        self._backlog_read_at = -math.inf

    def cursor(self, account: str, mailbox: str) -> Cursor | None:
        """Return the cursor of a mailbox, or None when there is none (any more)."""
        key = self._link.keys_for(account).cursor(account, mailbox)
        return _cursor(self._link.call(lambda: self._link.client.hmget(key, CURSOR_FIELDS)))

    def restart_cursor(self, account: str, mailbox: str, at: Cursor, wrong: Cursor | None = None) -> Cursor:
        """Set the cursor to `at` where there is none, or one of another UIDVALIDITY; return the one that now holds.

        `wrong` is one of this UIDVALIDITY that the mailbox contradicts: it is replaced unless it was moved meanwhile.
        Raises LeaseLost, RedisConnectionError.
        """
        partition = self._link.keys_for(account)
        keys = [partition.cursor(account, mailbox), partition.stream, partition.lease(account)]
        args: list[str | int] = [at.uidvalidity, at.uid, at.rescan, GROUP, self._owner, at.history]
        args.append(wrong.uid if wrong else "")
        return _cursor(self._link.call(lambda: self._restart(keys=keys, args=args))) or at

    def append(
        self,
        account: str,
        mailbox: str,
        cursor: Cursor,
        last_uid: int,
        messages: Sequence[RawMessage],
        *,
        end: CursorEnd = "uid",
    ) -> tuple[int, Cursor]:
        """Append `messages` and move one end of the cursor to `last_uid`, in one step.

        The end `uid` moves up with ascending UIDs above it, `history` down with descending ones below it. Returns how
        many messages were new and the cursor as it now stands. Raises StaleCursor when the cursor went back or was
        deleted meanwhile, LeaseLost, RedisConnectionError.
        """
        return self.append_later(account, mailbox, cursor, last_uid, self.pack(messages), end=end)()

    def pack(self, messages: Sequence[RawMessage]) -> PackedEntries:
        """Encode and compress messages for `append_later`."""
        now = datetime.now(UTC)
        return pack_entries([(message.envelope.uid, encode(message, now, self._compressor)) for message in messages])

    def append_later(
        self,
        account: str,
        mailbox: str,
        cursor: Cursor,
        last_uid: int,
        entries: PackedEntries,
        *,
        end: CursorEnd = "uid",
    ) -> Callable[[], tuple[int, Cursor]]:
        """Start an append while the caller does something else; call the returned function once for its result.

        That function returns and raises as `append` does.
        """
        position = cursor.uid if end == "uid" else cursor.history
        args = [cursor.uidvalidity, position, last_uid, self._owner, end, *entries]
        partition = self._link.keys_for(account)
        keys = [partition.stream, partition.cursor(account, mailbox), partition.volume, partition.lease(account)]
        keys.append(partition.priority)
        pending = PendingScript(self._link, self._append, partition, keys, args)

        def result() -> tuple[int, Cursor]:
            added, moved_to, volume = map(int, pending.answer())
            self._backlog += StreamBacklog(added, volume)
            return added, replace(cursor, uid=moved_to) if end == "uid" else replace(cursor, history=moved_to)

        return result

    def append_missing(self, messages: Sequence[RawMessage], last_seen_id: str) -> int:
        """Append those messages of one account that did not enter the stream after `last_seen_id`; return how many.

        The caller has searched the stream up to that entry id itself (`BEGINNING` when it has not). A repetition
        with the same id adds none. Raises LeaseLost and like `RedisLink.call`.
        """
        if not messages:
            return 0
        now = datetime.now(UTC)
        entries = [(message.envelope.email_id, encode(message, now, self._compressor)) for message in messages]
        account = messages[0].envelope.account
        partition = self._link.keys_for(account)
        keys = [partition.stream, partition.volume, partition.priority, partition.lease(account)]
        args = [last_seen_id, self._owner, *pack_entries(entries)]
        return int(self._link.call(lambda: self._append_missing(keys=keys, args=args)))

    def modseq(self, account: str, mailbox: str) -> int | None:
        """Return the MODSEQ up to which label changes were taken over, or None when it is not known (any more)."""
        key = self._link.keys_for(account).cursor(account, mailbox)
        found = self._link.call(lambda: self._link.client.hget(key, "modseq"))
        return whole_number(found)

    def set_modseq(self, account: str, mailbox: str, uidvalidity: int, modseq: int) -> None:
        """Store that MODSEQ beside the cursor; raises as `append` does."""
        partition = self._link.keys_for(account)
        keys = [partition.cursor(account, mailbox), partition.lease(account)]
        args: list[str | int] = [uidvalidity, str(modseq), self._owner]
        self._link.call(lambda: self._set_modseq(keys=keys, args=args))

    def backlog(self, max_age: float = 0.0) -> StreamBacklog:
        """Return the backlog, read at most `max_age` seconds ago, plus the messages appended here since."""
        if time.monotonic() - self._backlog_read_at >= max_age:
            self._backlog_read_at, self._backlog = time.monotonic(), self._read_backlog()
        return self._backlog

    def _read_backlog(self) -> StreamBacklog:
        def read() -> StreamBacklog:
            pipe = self._link.client.pipeline(transaction=False)
            for keys in self._link.partitions:
                pipe.xlen(keys.stream)
                pipe.get(keys.volume)
            found = pipe.execute()
            return StreamBacklog(sum(found[::2]), sum(max(0, whole_number(volume) or 0) for volume in found[1::2]))

        return self._link.call(read)


def _cursor(found: Any) -> Cursor | None:
    uidvalidity, uid, rescan, history = found
    numbers = [whole_number(each) for each in (uidvalidity, uid, rescan or b"0", history or b"1")]
    if any(each is None or each < 0 for each in numbers):  # there is none, or somebody else wrote there
        return None
    return Cursor(*(each or 0 for each in numbers))
