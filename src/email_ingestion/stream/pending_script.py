"""A script that Redis runs while we do something else: sent now, its answer had later."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from redis import exceptions

from email_ingestion.stream.connection import RedisLink, Script
from email_ingestion.stream.keys import Keys

# What is answered so was not done; the client knows where to do it.
_ELSEWHERE = (
    exceptions.AskError,  # and MovedError
    exceptions.ClusterDownError,
    exceptions.NoScriptError,
    exceptions.TryAgainError,
)


class PendingScript:
    """Sent when it is made, unless many are. Only for a script that may be repeated, as after any lost answer."""

    def __init__(
        self, link: RedisLink, script: Script, partition: Keys, keys: Sequence[str], args: Sequence[Any]
    ) -> None:
        self._link = link
        self._whole = partial(script, keys, args)
        self._pool: Any = None
        self._connection: Any = None  # in which the answer will be
        self._error: Exception | None = None
        self._holding = link.partitions_verified and link.pending_slots.acquire(blocking=False)
        if self._holding:
            try:
                self._pool = link.node_for(partition).connection_pool
                self._connection = self._pool.get_connection()
                self._connection.send_command("EVALSHA", script.hash, len(keys), *keys, *args)
            except (exceptions.RedisError, exceptions.RedisClusterException) as error:
                self._error = error

    def answer(self) -> Any:
        """What the script returns, to be asked for once; raises like `RedisLink.call`."""
        try:
            return self._link.call(self._finish)
        finally:
            self._give_back(unread=True)

    def _finish(self) -> Any:
        try:
            if self._error:
                raise self._error
            if self._connection:
                return self._read()
        except _ELSEWHERE:
            pass
        except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.RedisClusterException):
            if not self._link.clustered:  # whose client looks for another node
                raise
        return self._whole()

    def _read(self) -> Any:
        try:
            return self._connection.read_response()
        finally:  # a connection that broke is closed by now
            self._give_back(unread=False)

    def _give_back(self, *, unread: bool) -> None:
        if self._connection:
            if unread:  # the next who had it would take the answer for theirs
                self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None
        if self._holding:
            self._link.pending_slots.release()
            self._holding = False
