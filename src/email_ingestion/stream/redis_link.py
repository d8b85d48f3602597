"""The link of a process to Redis: client, keys, breaker, Lua scripts, and Redis' errors translated into ours."""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import urlsplit

from email_ingestion.modules_left_out import without_modules

# For metrics of redis-py's own, which nobody asks for: 0.1 s of a start where the SDK is installed.
with without_modules("opentelemetry", "opentelemetry.sdk.metrics"):
    import redis
from redis import exceptions
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.certificates import explain_tls_error
from email_ingestion.errors import CircuitBreakerError, ConfigurationError, LeaseLost, RedisConnectionError, StaleCursor
from email_ingestion.settings import RedisAddress
from email_ingestion.stream.clients import CONNECTIONS, LazyCluster, connect, current_master, fails_over
from email_ingestion.stream.foreign_keys import ForeignKey, find_foreign_keys, set_aside
from email_ingestion.stream.keys import Keys, partition_keys, partition_of
from email_ingestion.stream.stored_values import whole_number

T = TypeVar("T")

INCLUDE = re.compile(rb"^-- include (\w+)$", re.MULTILINE)  # in a script: a function of lua/shared

# Errors of a Redis that answers but does not serve, by the word that says what they mean. redis-py cuts it off where it
# has a class for it, and a script may put its own text before it.
MEANINGS: tuple[tuple[str, type[ResponseError] | None], ...] = (
    ("OOM", redis.OutOfMemoryError),
    ("NOPERM", exceptions.NoPermissionError),
    ("READONLY", exceptions.ReadOnlyError),
    ("CLUSTERDOWN", exceptions.ClusterDownError),
    ("MASTERDOWN", exceptions.MasterDownError),
    ("CROSSSLOT", exceptions.ClusterCrossSlotError),
    ("TRYAGAIN", exceptions.TryAgainError),
    ("MOVED", exceptions.MovedError),
    ("ASK", exceptions.AskError),  # a slot moved during the call, past the client's redirection
    ("NOSCRIPT", exceptions.NoScriptError),
    *((word, None) for word in ("BUSY", "LOADING", "MISCONF", "NOAUTH", "NOREPLICAS", "UNBLOCKED")),
    *((word, None) for word in ("WRONGPASS", "WRONGTYPE", "NOGROUP", "EXECABORT", "DENIED")),
)
CONNECTING = re.compile(r"connecting to (\S+):([0-9]{1,5})\. ")  # of redis-py, in the text of an error
# What Redis says instead of NOPERM to a script: from 7.0, and from 7.2.
REFUSED_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
MEANING_WORDS = re.compile(rf"\b({'|'.join(word for word, _ in MEANINGS)})\b")


FOREIGN_SECONDS = 1.0  # between two looks at the types of all keys
FOREIGN_NAMED = 3

# After these errors nothing was done; the client knows where to do it.
NOT_EXECUTED = (
    exceptions.AskError,  # and MovedError
    exceptions.ClusterDownError,
    exceptions.NoScriptError,
    exceptions.TryAgainError,
)


def check_reachable(address: RedisAddress | str) -> None:
    """Return when Redis answers at `address`; raises RedisConnectionError or ConfigurationError."""
    with _translated():
        connect(address, "email-ingestion").ping()


def server_url(address: RedisAddress) -> str:
    """Return the URL of the server that takes writes now; of a Cluster that of a node, which redirects.

    Raises RedisConnectionError when no sentinel names one.
    """
    if address.mode != "sentinel":
        return address.url
    with _translated():
        host, port = current_master(address)
    url = urlsplit(address.url)
    secret, at, _ = url.netloc.rpartition("@")
    return url._replace(netloc=f"{secret}{at}{f'[{host}]' if ':' in host else host}:{port}").geturl()


class Script:
    """A Lua script, sent by its hash, and whole where Redis does not know it: a promoted node may not."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self._client = client
        self._source = _source(name)
        self.hash = sha1(self._source, usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], args: Iterable[Any] = ()) -> Any:
        """Return the script's result; all keys must be of one partition."""
        arguments = (*keys, *args)
        try:
            return self._client.evalsha(self.hash, len(keys), *arguments)
        except NoScriptError:
            return self._client.eval(self._source, len(keys), *arguments)  # type: ignore[arg-type]


@cache
def _source(name: str) -> bytes:
    """Return the text of a script after the functions that it includes: a script on the server can call no other.

    It is read once: a process without a file descriptor to spare goes on with those it has.
    """
    folder = files(__package__) / "lua"
    own = (folder / f"{name}.lua").read_bytes()
    included = [(folder / "shared" / f"{function.decode()}.lua").read_bytes() for function in INCLUDE.findall(own)]
    return b"".join([*included, own])


class RedisLink:
    """A client, the keys, and the breaker through which every call goes.

    `keys` are those of partition 0, which has everything that belongs to no account; `partitions` are the keys of all.
    """

    def __init__(self, client: redis.Redis, keys: Keys, breaker: Breaker, partitions: int = 1) -> None:
        self.client = client
        self.keys = keys
        self.partitions = partition_keys(partitions) if partitions > 1 else (keys,)
        self.breaker = breaker
        # Of PendingScript, which holds one connection while its thread may want another.
        self.pending_slots = threading.BoundedSemaphore(CONNECTIONS // 4)
        self.partitions_verified = False  # the number of partitions, with Redis
        # Why nothing may be done, until `check_commands` finds otherwise: a script that is refused a command in its
        # middle has done what comes before it.
        self.refusal: RedisConnectionError | None = None
        self.commands_checked_at = -math.inf  # monotonic seconds
        self._fix_partitions = self.script("fix_partitions")
        self._check_commands = self.script("check_commands")
        # Of a process, which moves foreign keys out of its way and tells so; a command only names them.
        self.on_set_aside: Callable[[ForeignKey], object] | None = None
        self._set_aside = self.script("set_aside")
        self._looked_for_foreign = -math.inf  # monotonic seconds

    @property
    def fails_over(self) -> bool:
        """Whether another server takes the place of one that is gone."""
        return fails_over(self.client)

    def script(self, name: str) -> Script:
        """Return the script `lua/<name>.lua`."""
        return Script(self.client, name)

    def keys_for(self, account: str) -> Keys:
        """Return the keys of the partition that has an account's mail."""
        return self.partitions[partition_of(account, len(self.partitions))]

    @property
    def clustered(self) -> bool:
        """Whether each partition may be on a server of its own."""
        return isinstance(self.client, LazyCluster)

    def masters(self) -> list[redis.Redis]:
        """Return a client for each server that takes writes; use them inside `call`."""
        return self.client.masters() if isinstance(self.client, LazyCluster) else [self.client]

    def node_for(self, keys: Keys) -> redis.Redis:
        """Return a client for the server of a partition, for commands without a key; use it inside `call`."""
        return self.client.node_for(keys.stream) if isinstance(self.client, LazyCluster) else self.client

    def call(self, operation: Callable[[], T]) -> T:
        """Return the result of `operation`, which uses the client, through the breaker.

        Raises RedisConnectionError when Redis is away or does not serve, CircuitBreakerError while the breaker is open,
        StaleCursor and LeaseLost when a script says so, and ConfigurationError when Redis has mail in another number of
        partitions.
        """

        def guarded() -> T:
            try:
                return self._mending(self._verified(operation))
            except RedisConnectionError as error:
                if isinstance(error.__cause__, ResponseError) and meaning_of(error.__cause__) == "NOPERM":
                    self.commands_checked_at = -math.inf
                raise

        if self.refusal:  # past the breaker: its probe is for `check_commands`
            raise RedisConnectionError(str(self.refusal)) from self.refusal
        return self.breaker.run(guarded)

    def call_unguarded(self, operation: Callable[[], T]) -> T:
        """Return the result of `operation`, past the breaker: not counted, not refused. Raises RedisConnectionError."""
        return self._mending(operation)

    def keep_partitions(self) -> None:
        """Store the number of partitions again where it was lost: the next start would take it for one."""
        mine = len(self.partitions)
        if mine > 1:
            self.call(lambda: self.client.set(self.keys.partitions, mine, nx=True))

    def foreign_keys(self) -> list[ForeignKey]:
        """Return the keys of ours that are of another type than we write there; raises like `call_unguarded`."""
        with _translated():
            return [each for keys in self.partitions for each in find_foreign_keys(self.node_for(keys), keys)]

    def _verified(self, operation: Callable[[], T]) -> Callable[[], T]:
        def verified() -> T:
            self._verify_partitions()
            return operation()

        return verified

    def _mending(self, operation: Callable[[], T]) -> T:
        """Return the result of `operation`, once more where a key of a foreign type was in its way and is not now.

        A script may have been in its middle then: what is appended twice is one message for the ledger.
        """
        try:
            with _translated():
                return operation()
        except RedisConnectionError as error:
            if not isinstance(error.__cause__, ResponseError) or meaning_of(error.__cause__) != "WRONGTYPE":
                raise
            found = self._look_for_foreign()
            if not self._move_aside(found):
                named = "; ".join(map(str, found[:FOREIGN_NAMED])) or "a key is of another type than we write there"
                more = f", and {len(found) - FOREIGN_NAMED} more" if len(found) > FOREIGN_NAMED else ""
                raise RedisConnectionError(
                    f"Redis does not serve: WRONGTYPE {named}{more}: somebody else wrote that; a producer or worker "
                    "moves it aside, `email-ingestion doctor` names all of it"
                ) from error.__cause__
        with _translated():
            return operation()

    def _look_for_foreign(self) -> list[ForeignKey]:
        if self.on_set_aside and time.monotonic() - self._looked_for_foreign < FOREIGN_SECONDS:
            return []
        self._looked_for_foreign = time.monotonic()
        return self.foreign_keys()

    def _move_aside(self, found: Sequence[ForeignKey]) -> int:
        if self.on_set_aside is None:
            return 0
        with _translated():
            moved = [each for each in found if set_aside(self._set_aside, each)]
        for each in moved:
            self.on_set_aside(each)
        return len(moved)

    def check_commands(self) -> None:
        """Find out whether the user may do all that we do; until then `call` refuses everything.

        Raises RedisConnectionError, which names the commands, and CircuitBreakerError while the breaker is open.
        """
        self.commands_checked_at = time.monotonic()

        def check() -> None:
            with _translated():
                for keys in self.partitions:
                    refused, text_of_first = self._check_commands(keys=[keys.name("probe")])
                    if refused:
                        names = ", ".join(text(name) for name in refused)
                        raise RedisConnectionError(
                            f"Redis does not serve: NOPERM its user may not run {names}: {text(text_of_first)}; "
                            "take the ACL line of config/redis.conf for it"
                        )

        try:
            self.breaker.run(check)
        except CircuitBreakerError:
            raise
        except RedisConnectionError as error:
            self.refusal = error if "NOPERM" in str(error) else None
            raise
        self.refusal = None

    def _verify_partitions(self) -> None:
        """Check once that Redis has this number of partitions; the first process fixes it."""
        if self.partitions_verified:
            return
        mine = len(self.partitions)
        stored: Any = self.client.get(self.keys.partitions)
        fixed = whole_number(stored or 1)
        if fixed is None:
            raise ConfigurationError(
                f"{self.keys.partitions} in this Redis is no number, somebody else wrote it: SET it to the number of "
                "partitions that mail was spread over (REDIS_PARTITIONS), or restore a backup"
            )
        if fixed != mine > 1:
            fixed = int(self._fix_partitions(keys=[self.keys.partitions, self.keys.stream, self.keys.dlq], args=[mine]))
        if fixed != mine:
            raise ConfigurationError(
                f"REDIS_PARTITIONS is {mine}, but this Redis holds mail in {fixed}, which cannot be changed: "
                f"set REDIS_PARTITIONS={fixed}, or name an empty Redis and refill it (docs/redis.md)"
            )
        self.partitions_verified = True


def open_link(address: RedisAddress | str, name: str) -> RedisLink:
    """Return a link for a command that ends at its first error: its breaker never opens and reports nothing."""
    breaker = Breaker("redis", BreakerPolicy(fail_max=sys.maxsize), (RedisConnectionError,), lambda _: None)
    partitions = 1 if isinstance(address, str) else address.partitions
    return RedisLink(connect(address, name), Keys(), breaker, partitions)


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
        ready = link.partitions_verified and not link.refusal
        self._has_slot = ready and link.pending_slots.acquire(blocking=False)
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
        except NOT_EXECUTED:
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


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ResponseError as error:
        word = str(error).split(" ", 1)[0]
        if word == "STALECURSOR":
            raise StaleCursor(str(error)) from error
        if word == "FENCED":
            holder = str(error).removeprefix("FENCED").strip().partition(" ")[0] or "nobody"
            raise LeaseLost(f"the account's lease is no longer this process's, {holder} has it") from error
        # Whatever else it is, no message is at fault: the words are ours, and only the server can mind them.
        raise RedisConnectionError(f"Redis does not serve: {describe_refusal(error)}") from error
    except (RedisError, RedisClusterException) as error:
        raise RedisConnectionError(f"Redis does not answer: {_message_of(error)}") from error


def meaning_of(error: Exception) -> str:
    """Return the word that says what an error of Redis means, such as NOPERM, also where a script met it; else ''."""
    for word, kind in MEANINGS:
        if kind and isinstance(error, kind):
            return word
    if "used memory > 'maxmemory'" in str(error):
        return "OOM"
    if any(part in str(error) for part in REFUSED_IN_SCRIPT):
        return "NOPERM"
    found = MEANING_WORDS.search(str(error))
    return found[1] if found else ""


def describe_refusal(error: Exception) -> str:
    """Return the text of an error of Redis, with the word that says what it means."""
    word = meaning_of(error)
    return f"{word} {error}" if word and word not in str(error) else str(error)


def _message_of(error: Exception) -> str:
    """Return Redis' own text, or advice where that is only about the protocol or TLS."""
    if "HELLO must be called" in str(error):
        return "Authentication required: set REDIS_PASSWORD"
    if (place := CONNECTING.search(str(error))) and (tls := explain_tls_error(error, place[1], int(place[2]))):
        return tls
    return str(error) or type(error).__name__


def is_group_missing(error: ResponseError) -> bool:
    """Whether the consumer group, or the stream with it, was deleted."""
    return str(error).startswith(("NOGROUP", "UNBLOCKED the stream key"))


def text(value: Any) -> str:
    """Return Redis' bytes as text; bytes that are not UTF-8 become escapes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
