"""The producer's side of the stream: cursors, and appending behind them."""

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
from email_ingestion.stream.connection import RedisLink
from email_ingestion.stream.keys import GROUP
from email_ingestion.stream.pending_script import PendingScript

FIELDS = ["uidvalidity", "uid", "rescan", "history"]
CursorEnd = Literal["uid", "history"]
PackedEntries = list[str | int | bytes]  # of messages, as a script takes them


@dataclass(frozen=True, slots=True)
class StreamBacklog:
    """What lies in the stream, waiting or in flight."""

    depth: int  # messages
    volume: int  # bytes

    def __add__(self, other: StreamBacklog) -> StreamBacklog:
        return StreamBacklog(self.depth + other.depth, self.volume + other.volume)


EMPTY_BACKLOG = StreamBacklog(0, 0)


class Appender:
    """Appends the messages of one account's mailboxes. Each thread needs its own.

    With a `holder` it does so only while the account's lease says that name, see `leases`.
    """

    def __init__(self, link: RedisLink, holder: str = "") -> None:
        self._link = link
        self._holder = holder
        self._append = link.script("append")
        self._restart = link.script("restart_cursor")
        self._note_modseq = link.script("note_modseq")
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._seen = EMPTY_BACKLOG  # at the last look, and what was appended here since
        self._seen_at = -math.inf

    def cursor(self, account: str, mailbox: str) -> Cursor | None:
        """How far the mailbox was read, or None when that is not known (any more)."""
        key = self._link.keys_for(account).cursor(account, mailbox)
        return _cursor(self._link.call(lambda: self._link.client.hmget(key, FIELDS)))

    def restart_cursor(self, account: str, mailbox: str, at: Cursor) -> Cursor:
        """Begin at `at` where there is no cursor, or one of another UIDVALIDITY; returns the one that now holds.

        Raises LeaseLost, RedisConnectionError.
        """
        partition = self._link.keys_for(account)
        keys = [partition.cursor(account, mailbox), partition.stream, partition.lease(account)]
        args: list[str | int] = [at.uidvalidity, at.uid, at.rescan, GROUP, self._holder, at.history]
        return _cursor(self._link.call(lambda: self._restart(keys=keys, args=args))) or at

    def append(
        self,
        account: str,
        mailbox: str,
        since: Cursor,
        upto: int,
        messages: Sequence[RawMessage],
        *,
        end: CursorEnd = "uid",
    ) -> tuple[int, Cursor]:
        """Append `messages` and move an end of the cursor to `upto`, in one step.

        The end `uid` moves up with ascending UIDs above it, `history` down with descending ones below it. Returns how
        many were new and the cursor as it now stands; safe to repeat when the answer was lost. Raises StaleCursor when
        the cursor went back or away meanwhile, LeaseLost, RedisConnectionError.
        """
        return self.append_later(account, mailbox, since, upto, self.pack(messages), end=end)()

    def pack(self, messages: Sequence[RawMessage]) -> PackedEntries:
        """What of `messages` will be in the stream."""
        now = datetime.now(UTC)
        return pack_entries([(each.envelope.uid, encode(each, now, self._compressor)) for each in messages])

    def append_later(
        self, account: str, mailbox: str, since: Cursor, upto: int, entries: PackedEntries, *, end: CursorEnd = "uid"
    ) -> Callable[[], tuple[int, Cursor]]:
        """Begin to append; whoever calls what is returned, once, has what `append` would return or raise."""
        at = since.uid if end == "uid" else since.history
        args = [since.uidvalidity, at, upto, self._holder, end, *entries]
        partition = self._link.keys_for(account)
        keys = [partition.stream, partition.cursor(account, mailbox), partition.volume, partition.lease(account)]
        keys.append(partition.priority)
        sent = PendingScript(self._link, self._append, partition, keys, args)

        def result() -> tuple[int, Cursor]:
            added, now_at, volume = map(int, sent.answer())
            self._seen += StreamBacklog(added, volume)
            return added, replace(since, uid=now_at) if end == "uid" else replace(since, history=now_at)

        return result

    def modseq(self, account: str, mailbox: str) -> int | None:
        """Up to which MODSEQ changes of labels were taken over, or None when that is not known (any more)."""
        key = self._link.keys_for(account).cursor(account, mailbox)
        found = self._link.call(lambda: self._link.client.hget(key, "modseq"))
        return int(found) if found else None

    def note_modseq(self, account: str, mailbox: str, uidvalidity: int, modseq: int) -> None:
        """Remember it; raises as `append` does."""
        partition = self._link.keys_for(account)
        keys = [partition.cursor(account, mailbox), partition.lease(account)]
        args: list[str | int] = [uidvalidity, str(modseq), self._holder]
        self._link.call(lambda: self._note_modseq(keys=keys, args=args))

    def backlog(self, age: float = 0.0) -> StreamBacklog:
        """What lies in all streams; a look `age` seconds ago will do, with what was appended here since."""
        if time.monotonic() - self._seen_at >= age:
            self._seen_at, self._seen = time.monotonic(), self._look()
        return self._seen

    def _look(self) -> StreamBacklog:
        def read() -> StreamBacklog:
            pipe = self._link.client.pipeline(transaction=False)
            for keys in self._link.partitions:
                pipe.xlen(keys.stream)
                pipe.get(keys.volume)
            found = pipe.execute()
            return StreamBacklog(sum(found[::2]), sum(max(0, int(volume or 0)) for volume in found[1::2]))

        return self._link.call(read)


def _cursor(found: Any) -> Cursor | None:
    uidvalidity, uid, rescan, history = found
    if not uidvalidity or not uid:
        return None
    return Cursor(int(uidvalidity), int(uid), int(rescan or 0), int(history or 1))
