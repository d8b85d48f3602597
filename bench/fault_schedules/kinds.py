"""The list of all faults that a schedule may have, and how each is drawn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bench.crash_matrix.clock import compiler
from bench.fault_schedules import network, process_faults, server_faults
from bench.fault_schedules.process_faults import CLOCKS, Case
from bench.fault_schedules.schedule import Choice
from bench.fault_schedules.server_faults import GMAIL
from bench.fault_schedules.servers import FaultyRedis
from bench.fault_schedules.sinks import ANSWERS, CALLS
from bench.fault_schedules.stack import SIGNALS

SHORT = 10.0  # seconds: what lasts longer shows nothing more
REFUSALS = (*FaultyRedis.COMMANDS, FaultyRedis.READONLY, FaultyRedis.OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault: how it is drawn and how it happens."""

    name: str
    text: str
    happen: Callable[[Case], AbstractContextManager[None]]
    choice: Choice


def _short(*manners: str, needs: str = "") -> Choice:
    return Choice(manners or ("",), needs, SHORT)


def _any(*manners: str, needs: str = "") -> Choice:
    return Choice(manners or ("",), needs)


KILLED = "SIGKILL, started again at the end"
FROZEN = "SIGSTOP, SIGCONT at the end"
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("producer_killed", KILLED, process_faults.producer_killed, _short()),
        Kind("producer_frozen", FROZEN, process_faults.producer_frozen, _any()),
        Kind("worker_killed", KILLED, process_faults.worker_killed, _short()),
        Kind("worker_frozen", FROZEN, process_faults.worker_frozen, _any()),
        Kind("signalled", "a signal now and then", process_faults.signalled, _any(*SIGNALS)),
        Kind("parser_killed", "SIGKILL of the parsers, again and again", process_faults.parser_killed, _any()),
        Kind(
            "parser_cannot_start",
            "a worker has no process or no descriptor to spare, and its parser is gone",
            process_faults.parser_cannot_start,
            _any("pids", "fds"),
        ),
        *(
            [Kind("clock", "the workers' wall clock is wrong", process_faults.clock, _any(*CLOCKS))]
            if compiler()
            else []
        ),
        Kind("webhook", "how the receiver answers", process_faults.webhook, _any(*ANSWERS)),
        Kind("function", "what the Python function does", process_faults.function, _any(*CALLS)),
        Kind(
            "dead_letters",
            "replayed and purged at once, with mail that ends the parser",
            process_faults.dead_letters,
            _short(),
        ),
        Kind("paused", "an operator pauses and forgets", process_faults.paused, _short("worker", "producer")),
        Kind("redis_killed", KILLED, server_faults.redis_killed, _any("", "emptied", "power_cut")),
        Kind("redis_frozen", FROZEN, server_faults.redis_frozen, _any()),
        Kind("redis_paused", "CLIENT PAUSE, again and again", server_faults.redis_paused, _any("all", "write")),
        Kind("redis_flushed", "FLUSHALL", server_faults.redis_flushed, _short()),
        Kind("redis_restored", "the data of the beginning comes back", server_faults.redis_restored, _short()),
        Kind("redis_refuses", "a command, or all writes", server_faults.redis_refuses, _any(*REFUSALS)),
        Kind("redis_network", "between us and Redis", server_faults.network("redis"), _any(*network.MANNERS)),
        Kind("imap_network", "between us and the mail server", server_faults.network("imap"), _any(*network.MANNERS)),
        Kind("webhook_network", "between us and it", server_faults.network("webhook"), _any(*network.MANNERS)),
        Kind("gmail", "what Gmail does", server_faults.gmail, _any(*GMAIL, needs="gmail")),
        Kind("dovecot_killed", KILLED, server_faults.dovecot_killed, _any(needs="dovecot")),
        Kind("dovecot_frozen", FROZEN, server_faults.dovecot_frozen, _any(needs="dovecot")),
        Kind(
            "dovecot_restored",
            "the mailbox of the beginning comes back, UIDVALIDITY and all",
            server_faults.dovecot_restored,
            _short(needs="dovecot"),
        ),
        Kind("postgres_killed", KILLED, server_faults.postgres_killed, _any(needs="postgresql")),
        Kind("postgres_frozen", FROZEN, server_faults.postgres_frozen, _any(needs="postgresql")),
        Kind(
            "postgres_readonly", "no transaction may write", server_faults.postgres_readonly, _any(needs="postgresql")
        ),
        Kind(
            "postgres_restored",
            "the data of the beginning comes back: commits are lost",
            server_faults.postgres_restored,
            _short(needs="postgresql"),
        ),
        Kind(
            "postgres_network",
            "between us and it",
            server_faults.network("postgres"),
            _any(*network.MANNERS, needs="postgresql"),
        ),
        Kind("sqlite_locked", "a foreign process holds the lock", server_faults.sqlite_locked, _any(needs="sqlite")),
        Kind("sqlite_removed", "the file is removed", server_faults.sqlite_removed, _short(needs="sqlite")),
        Kind("disk_full", "no file grows", server_faults.disk_full, _any("workers", "everybody")),
        Kind("blobs_away", "their folder is gone, or an empty one", server_faults.blobs_away, _any("gone", "empty")),
        Kind("folder_removed", "while everything runs", server_faults.folder_removed, _short("logs", "pids")),
    )
}
CHOICES: dict[str, Choice] = {name: kind.choice for name, kind in KINDS.items()}
