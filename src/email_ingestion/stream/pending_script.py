"""A script that Redis runs while the caller does something else: sent now, its answer read later."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from redis import exceptions

from email_ingestion.stream.connection import RedisLink, Script
from email_ingestion.stream.keys import Keys

# After these errors nothing was done; the client knows where to do it.
_ELSEWHERE = (
    exceptions.AskError,  # and MovedError
    exceptions.ClusterDownError,
    exceptions.NoScriptError,
    exceptions.TryAgainError,
)


class PendingScript:
    """A call that is sent when it is created, unless many are under way; only for a script that may be repeated."""

    def __init__(
        self, link: RedisLink, script: Script, partition: Keys, keys: Sequence[str], args: Sequence[Any]
    ) -> None:
        self._link = link
        self._call_script = partial(script, keys, args)
        self._pool: Any = None
        self._connection: Any = None  # that will have the answer
        self._error: Exception | None = None
        self._has_slot = link.partitions_verified and link.pending_slots.acquire(blocking=False)
        if self._has_slot:
            try:
                self._pool = link.node_for(partition).connection_pool
                self._connection = self._pool.get_connection()
                self._connection.send_command("EVALSHA", script.hash, len(keys), *keys, *args)
            except (exceptions.RedisError, exceptions.RedisClusterException) as error:
                self._error = error

    def answer(self) -> Any:
        """Return the script's result; call it once. Raises like `RedisLink.call`."""
        try:
            return self._link.call(self._finish)
        finally:
            self._return_connection(unread=True)

    def _finish(self) -> Any:
        try:
            if self._error:
                raise self._error
            if self._connection:
                return self._read()
        except _ELSEWHERE:
            pass
        except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.RedisClusterException):
            if not self._link.clustered:  # the client of a Cluster looks for another node
                raise
        return self._call_script()

    def _read(self) -> Any:
        try:
            return self._connection.read_response()
        finally:  # a connection that broke is closed by now
            self._return_connection(unread=False)

    def _return_connection(self, *, unread: bool) -> None:
        if self._connection:
            if unread:  # the next user of the connection would take the answer for its own
                self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None
        if self._has_slot:
            self._link.pending_slots.release()
            self._has_slot = False
