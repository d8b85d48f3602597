"""The faults by name: what each breaks, on which databases, and what must hold beyond the law."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from random import Random

from bench.crash_matrix import consumers, environment, machine, operators, servers, sinks
from bench.crash_matrix import faults as ours
from bench.crash_matrix.clock import no_compiler
from bench.crash_matrix.databases import POSTGRESQL, SQLITE
from bench.crash_matrix.world import CREW, RECOVERY, World


@dataclass(frozen=True)
class Fault:
    """A row of the matrix."""

    name: str
    text: str  # what is done, for the report
    strike: Callable[[World, Random], None]
    crew: tuple[str, ...] = CREW
    surroundings: Callable[[World], AbstractContextManager[None]] = nullcontext
    recovers_within: float = math.inf  # seconds, from the end of the fault until all mail is delivered
    repeats: int = 0  # messages a round that a further sink may get once more: those of half a second
    quick: bool = True  # enough to be played with every run of the tests
    databases: tuple[str, ...] = (SQLITE, POSTGRESQL)
    obstacle: Callable[[], str] = lambda: ""  # why it cannot be done on this machine

    def __str__(self) -> str:
        return self.name

    @property
    def own_world(self) -> bool:
        """Whether it needs a world that no other fault uses."""
        return self.surroundings is not nullcontext


@contextmanager
def own_world(_: World) -> Iterator[None]:
    """A world that no other fault uses."""
    yield


PAIR = ("producer", "worker", "worker-2")

FAULTS = {
    fault.name: fault
    for fault in (
        Fault("producer_killed", "producer: SIGKILL and restart, 3 times", ours.producer_killed),
        Fault("worker_killed", "worker: SIGKILL and restart, 3 times", ours.worker_killed),
        Fault("signals", "producer and worker: SIGHUP, SIGUSR2, SIGALRM or SIGPROF, 3 times", ours.signals),
        Fault("redis_killed", "Redis (AOF everysec): SIGKILL and restart with its data, 3 times", ours.redis_killed),
        Fault(
            "redis_power_cut", "Redis: SIGKILL and up to the last second of its AOF gone, twice", ours.redis_power_cut
        ),
        Fault("producer_frozen", "producer: SIGSTOP for 0.2 to 2 s, twice", ours.producer_frozen),
        Fault("worker_frozen", "one of two workers: SIGSTOP beyond its lease", ours.worker_frozen, PAIR),
        Fault("redis_frozen", "Redis: SIGSTOP for 0.2 to 3 s, every fifth round 8 s", ours.redis_frozen),
        Fault("imap_drop", "IMAP connection dropped in mid-literal, 3 times", ours.imap_drop),
        Fault("session_expiry", "IMAP session expired, idle or in mid-FETCH, 3 times", ours.session_expiry),
        Fault("token_expiry", "every access token stale and the session ended, 3 times", ours.token_expiry),
        Fault(
            "imap_outage",
            "mail server away for 2 to 5 s, every fifth round 60 s",
            ours.imap_outage,
            recovers_within=RECOVERY + 10,
        ),
        Fault(
            "token_outage",
            "token endpoint away for 2 to 5 s, every fifth round 60 s",
            ours.token_outage,
            recovers_within=RECOVERY + 10,
        ),
        Fault(
            "database_locked",
            "database locked for 0.5 to 3 s, every fifth round 12 s",
            ours.database_locked,
            databases=(SQLITE,),
        ),
        Fault(
            "disk_full",
            "disk of database and blobs full, twice",
            ours.disk_full,
            surroundings=ours.small_disk,
            databases=(SQLITE,),
        ),
        Fault(
            "contents_lost", "stored contents removed or with a flipped bit, and scrubbed, twice", ours.contents_lost
        ),
        Fault("two_producers", "two producers on one account, one SIGKILLed", ours.two_producers, ("rival", *CREW)),
        Fault("two_workers", "two workers, one SIGKILLed and away beyond its lease", ours.two_workers, PAIR),
        Fault("redis_flushed", "FLUSHALL, 3 times", ours.redis_flushed),
        Fault("backup_restored", "Redis killed and an older copy of its data restored", ours.backup_restored),
        Fault("redis_emptied", "Redis killed and started without data, twice", ours.redis_emptied),
        Fault("uidvalidity_reset", "UIDVALIDITY of the mailbox reset, twice", ours.uidvalidity_reset),
        Fault(
            "commands_refused",
            "Redis refuses one or two of the commands that we need, twice",
            environment.commands_refused,
        ),
        Fault("foreign_key", "a list of another program under one of our names in Redis", environment.foreign_key),
        Fault(
            "queue_trimmed",
            "stream trimmed, deleted, renamed or swapped, alone or with more, before a worker had it, twice",
            environment.queue_trimmed,
            quick=False,
        ),
        Fault("parser_killed", "the worker's parser: SIGKILL, 9 times", environment.parser_killed),
        Fault(
            "no_descriptors",
            "producer or worker without a file descriptor to spare, parser killed, twice",
            environment.no_descriptors,
        ),
        Fault("blobs_away", "the folder of the blobs away or empty, twice", environment.blobs_away),
        Fault("redis_stopped", "Redis: SIGSTOP for a minute", machine.redis_stopped, quick=False),
        Fault(
            "aof_full",
            "no room for the append-only file of Redis, twice",
            machine.aof_full,
            surroundings=machine.small_redis,
            obstacle=machine.mount_refused,
            quick=False,
        ),
        Fault(
            "inodes_gone",
            "no inode left for database and blobs, files of a sink, logs or PID files, twice",
            machine.inodes_gone,
            surroundings=machine.folders_of_their_own,
            obstacle=machine.mount_refused,
            quick=False,
        ),
        Fault(
            "folder_read_only",
            "folder of the blobs or of a sink's files read-only in flight, twice",
            machine.folder_read_only,
            surroundings=machine.folders_of_their_own,
            databases=(POSTGRESQL,),  # a file of SQLite is open for writing, and a mount that has one stays writable
            obstacle=machine.mount_refused,
            quick=False,
        ),
        Fault(
            "clock_jump",
            "wall clock two days off, forward and back",
            machine.clock_jump,
            surroundings=ours.settable_clock,
            obstacle=no_compiler,
            quick=False,
        ),
        Fault(
            "clock_step",
            "wall clock steps by up to an hour, forward or back, twice",
            ours.clock_step,
            surroundings=ours.settable_clock,
            obstacle=no_compiler,
        ),
        Fault(
            "clock_skew",
            "two hosts, the clock of one up to a day wrong, and the webhook away twice",
            sinks.clock_skew,
            crew=sinks.TWO_HOSTS,
            surroundings=sinks.two_hosts,
            repeats=2 * sinks.UNMARKED,
            databases=(POSTGRESQL,),
            obstacle=no_compiler,
            quick=False,
        ),
        Fault(
            "worker_back",
            "one of two workers with a webhook: SIGSTOP beyond its lease, in the middle of its claim",
            sinks.worker_back,
            crew=sinks.CROWD,
            surroundings=sinks.webhook,
            repeats=sinks.UNMARKED,
            quick=False,
        ),
        Fault(
            "resend_killed",
            "a resend of everything and the worker: SIGKILL, twice, then given once more",
            consumers.resend_killed,
            surroundings=consumers.resent,
            repeats=1_000_000,  # by order
            quick=False,
        ),
        Fault(
            "feed_killed",
            "the worker that tells webhook, stream and ndjson of changes: SIGKILL",
            consumers.feed_killed,
            surroundings=consumers.followed,
            repeats=consumers.REPEATS,
        ),
        Fault(
            "reconcile_killed",
            "files of a sink removed; reconcile --resend and the worker: SIGKILL, twice, then given once more",
            consumers.reconcile_killed,
            surroundings=consumers.filed,
            quick=False,
        ),
        Fault(
            "network_cut",
            "way to the mail server refused, silent, half-open, or its name lost or late for 2 to 5, each fifth 60 s",
            servers.network_cut,
            surroundings=servers.own_network,
            recovers_within=RECOVERY + 10,
            obstacle=no_compiler,
            quick=False,
        ),
        Fault(
            "server_restored", "mail server restored from a backup, its UIDs given out anew", servers.server_restored
        ),
        Fault("redis_memory", "Redis has no memory left for 1 to 4 s, twice", servers.redis_memory, quick=False),
        Fault(
            "memory_short",
            "producer, worker or parser gets no more memory",
            environment.memory_short,
            quick=False,
        ),
        Fault(
            "sentinel_failover",
            "Sentinel promotes a replica that lacks the last writes",
            servers.sentinel_failover,
            surroundings=servers.under_sentinel,
            quick=False,
        ),
        Fault(
            "purge_and_replay",
            "dead letters purged and replayed at once, twice",
            operators.purge_and_replay,
            surroundings=operators.with_purges,
            quick=False,
        ),
        Fault("database_removed", "database removed under running processes", operators.database_removed, quick=False),
        Fault(
            "migration",
            "a worker of version 0.1.0 goes on while one of this version migrates its database",
            operators.migration,
            surroundings=own_world,
            obstacle=operators.no_history,
            quick=False,
        ),
        Fault(
            "postgres_killed",
            "PostgreSQL: SIGKILL and restart, twice",
            servers.postgres_killed,
            databases=(POSTGRESQL,),
        ),
        Fault(
            "postgres_frozen",
            "PostgreSQL frozen or half-open for 1 to 5 s, every fifth round 40 s",
            servers.postgres_frozen,
            databases=(POSTGRESQL,),
        ),
        Fault(
            "postgres_failover",
            "PostgreSQL: a standby that lacks the last commits takes over",
            servers.postgres_failover,
            databases=(POSTGRESQL,),
        ),
        Fault(
            "postgres_full",
            "no room for the tables of PostgreSQL, twice",
            servers.postgres_full,
            surroundings=servers.small_table_space,
            databases=(POSTGRESQL,),
            obstacle=servers.mount_refused,
        ),
        Fault(
            "tables_locked",
            "the table of PostgreSQL locked for 0.5 to 5 s, every fifth round 40 s",
            servers.tables_locked,
            databases=(POSTGRESQL,),
        ),
    )
}
