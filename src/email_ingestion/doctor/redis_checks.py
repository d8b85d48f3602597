"""Checks of Redis: it can be reached, takes writes, is durable and evicts nothing; and of the quarantine in it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from urllib.parse import urlsplit

import psutil

from email_ingestion.doctor.findings import Finding, Findings
from email_ingestion.doctor.network_checks import RESTART_SANDBOX
from email_ingestion.errors import EmailIngestionError
from email_ingestion.ledger.fingerprint import ledger_fingerprint
from email_ingestion.ops.redaction import redact
from email_ingestion.settings import SANDBOX_PROFILE, RedisAddress, Settings, is_loopback
from email_ingestion.stream import (
    RedisLink,
    ServerInfo,
    keys_aside,
    open_link,
    quarantined_mailboxes,
    read_gauges,
    read_server_info,
    server_url,
    serves_without_password,
    write_new_key,
)

OLDEST = 7
MEMORY_SHARE = 0.8
MANAGED = "look at the settings of this instance in the console of whoever runs it"
STEP_SECONDS = 2.0  # a clock that is off by less is none's business
JUMP_SECONDS = 60.0
FOREIGN_NAMED = 3  # keys of ours of another type
QUARANTINED_NAMED = 3  # messages of an account; `quarantine list` has all of them


def _change(directive: str) -> str:
    """Say how a person changes the server; the users of our redis.conf may not, and no service should."""
    return (
        f"as its administrator redis-cli CONFIG SET {directive}, and the same in redis.conf; "
        "where nobody may (NOPERM, as with config/redis.conf): in that file, then restart Redis"
    )


# By a part of what Redis says; redis-py cuts the first word off some answers.
CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "REDIS_PARTITIONS is",
        "this Redis holds mail in another number of partitions than REDIS_PARTITIONS says",
        "set REDIS_PARTITIONS to what `email-ingestion redis-cli GET {email_ingestion}:partitions` says (nothing: 1)",
    ),
    (
        "MISCONF",
        "Redis cannot save its snapshot and therefore refuses every write",
        "make room on its disk (df -h); with appendonly yes it needs no snapshots: " + _change('save ""'),
    ),
    (
        "maxmemory",
        "Redis is over its maxmemory and refuses new mail",
        "python worker.py --drain, or more memory: " + _change("maxmemory 2gb"),
    ),
    (
        "read only replica",
        "Redis is a read-only replica here",
        "set REDIS_HOST to the primary: redis-cli INFO replication on this one names it",
    ),
    ("WRONGTYPE", "a key of ours is of another type than we write there", "see `redis keys` of this report"),
    ("NOREPLICAS", "Redis misses the replicas it must write to", "redis-cli INFO replication"),
    ("Authentication required", "Redis wants a password", "set REDIS_PASSWORD (or REDIS_PASSWORD_FILE) in .env"),
    (
        "invalid username-password",
        "Redis refuses the user or the password",
        "compare REDIS_USERNAME and REDIS_PASSWORD with the `user` lines of redis.conf",
    ),
    (
        "without any password",
        "Redis has no password, but one is set here",
        "remove REDIS_PASSWORD from .env, or set requirepass in Redis",
    ),
    ("no permissions", "the Redis user lacks permissions", "take the ACL line of config/redis.conf for it"),
    ("loading the dataset", "Redis is still loading its data", "wait, then run this again: redis-cli INFO persistence"),
    ("Connection refused", "nothing listens at the address of Redis", "sudo systemctl start redis; check REDIS_HOST"),
    ("Name or service not known", "the host name of Redis is unknown", "check REDIS_HOST: getent hosts $REDIS_HOST"),
    ("SSL", "TLS to Redis fails", "check REDIS_TLS: the server may speak plain TCP, or have a foreign certificate"),
    (
        "timed out",
        "Redis does not answer in time",
        "redis-cli -h $REDIS_HOST -p $REDIS_PORT --latency; check firewalls",
    ),
)


def check_redis(settings: Settings, clock: Callable[[], float], accounts: Sequence[str]) -> Findings:
    """Check Redis; end at the first failure that makes the other checks pointless."""
    link = open_link(settings.redis_address, "email-ingestion-doctor")
    try:
        facts = read_server_info(link)
    except EmailIngestionError as error:
        yield _refusal("redis", error)
        return
    for each in facts:
        which = f" {each.address}" if len(facts) > 1 else ""
        for finding in _check_server(each, clock() - each.time):
            yield replace(finding, check=f"{finding.check}{which}")
        yield replace(_check_authentication(settings.redis_address, each), check=f"redis authentication{which}")
    yield _check_writes(link)
    yield from _check_types(link)
    yield from _check_rights(link)
    yield from _check_database_agreement(link, settings)
    yield from _check_quarantine(link, accounts)


def _check_quarantine(link: RedisLink, accounts: Sequence[str]) -> Findings:
    """Name the messages that a mail server does not send; accepted ones are in order."""
    for account in accounts:
        check = f"account {account} quarantine"
        try:
            held = [each for _, found in quarantined_mailboxes(link, account) for each in found.messages()]
        except EmailIngestionError as error:
            yield _refusal(check, error)
            return
        waiting = [each for each in held if not each.accepted]
        if waiting:
            named = "; ".join(f"UID {each.uid}: {redact(each.reason)}" for each in waiting[:QUARANTINED_NAMED])
            more = f"; and {len(waiting) - QUARANTINED_NAMED} more" if len(waiting) > QUARANTINED_NAMED else ""
            cause = f"the mail server does not send {len(waiting)} messages as they are: {named}{more}"
            yield Finding(check, "degraded", cause, "email-ingestion quarantine list; then retry or accept them")
        elif held:
            yield Finding(check, "ok", f"{len(held)} messages are accepted as lost")


def _check_authentication(address: RedisAddress, facts: ServerInfo) -> Finding:
    """Ask the server without a password, by every address at which another machine could."""
    host, _, port = facts.address.rpartition(":")
    if not host or not port:  # behind Sentinel
        url = urlsplit(server_url(address))
        host, port = url.hostname or "localhost", str(url.port or 6379)
    asked = list(_own_addresses()) if is_loopback(host) else [host]
    open_at = [each for each in asked if serves_without_password(address, each, int(port))]
    if not open_at:
        return Finding("redis authentication", "ok", "other machines get no answer without a password")
    cause = f"Redis at {' and '.join(open_at)} port {port} serves whoever reaches it, without a password"
    remedy = "take the `user` lines of config/redis.conf, set REDIS_USERNAME and REDIS_PASSWORD"
    if is_loopback(host):
        remedy += "; or let it listen on this machine only: bind 127.0.0.1 -::1"
    return Finding("redis authentication", "degraded", cause, remedy)


def _own_addresses() -> Iterator[str]:
    """Yield the addresses by which other machines reach this one."""
    for each in chain.from_iterable(psutil.net_if_addrs().values()):
        if each.family in {socket.AF_INET, socket.AF_INET6}:
            address = ipaddress.ip_address(each.address.partition("%")[0])
            if not address.is_loopback and not address.is_link_local:
                yield str(address)


def _check_server(facts: ServerInfo, seconds_ahead: float) -> Findings:
    yield _check_version(facts)
    yield from _check_durability(facts)
    yield check_clock("Redis", seconds_ahead)


def _refusal(check: str, error: EmailIngestionError) -> Finding:
    message = str(error)
    for part, cause, remedy in CAUSES:
        if part.casefold() in message.casefold():
            of_sandbox = part == "Connection refused" and SANDBOX_PROFILE.exists()
            return Finding(check, "failed", cause, RESTART_SANDBOX if of_sandbox else remedy)
    return Finding(check, "failed", message, "redis-cli -h $REDIS_HOST -p $REDIS_PORT ping")


def _check_version(facts: ServerInfo) -> Finding:
    if not facts.version:
        return Finding("redis", "unknown", "Redis does not tell its version", MANAGED)
    message = f"{facts.version}, {facts.dbsize} keys"
    if int(facts.version.removeprefix("valkey ").partition(".")[0]) < OLDEST:
        return Finding("redis", "failed", f"Redis {message} is too old", f"install Redis {OLDEST} or newer")
    return Finding("redis", "ok", f"Redis {message}")


def _check_writes(link: RedisLink) -> Finding:
    try:
        write_new_key(link)
    except EmailIngestionError as error:
        return _refusal("redis writes", error)
    return Finding("redis writes", "ok", "a key was written and removed")


def _check_rights(link: RedisLink) -> Findings:
    try:
        link.check_commands()
    except EmailIngestionError as error:
        if "NOPERM" in str(error):  # another failure is that of `redis writes` too
            cause = str(error).partition("NOPERM ")[2].partition("; ")[0]
            yield Finding("redis rights", "failed", cause, "take the ACL line of config/redis.conf for it")
    else:
        yield Finding("redis rights", "ok", "every command that we use is permitted")


def _check_types(link: RedisLink) -> Findings:
    """Name keys of ours that somebody else has written, and what was moved out of their way."""
    try:
        found, moved = link.foreign_keys(), keys_aside(link)
    except EmailIngestionError as error:
        yield _refusal("redis keys", error)
        return
    for each in found[:FOREIGN_NAMED]:
        yield Finding(
            "redis keys",
            "failed",
            f"{each}: somebody else wrote it",
            f"a process that needs it moves it to {each.moved_to}; or RENAME it; find out who writes there"
            if each.name != "partitions"
            else "SET it to the number of partitions that mail was spread over (REDIS_PARTITIONS)",
        )
    if moved and not found:
        cause = f"{moved[0]} was in the place of a key of ours" + (f", and {len(moved) - 1} more" if moved[1:] else "")
        yield Finding("redis keys", "degraded", cause, "find out who wrote it, then DEL it; email-ingestion reconcile")


def _check_durability(facts: ServerInfo) -> Findings:
    """Check that Redis keeps its data: in memory, and over a restart."""
    remedy = _change("maxmemory-policy noeviction")
    if facts.policy is None:
        cause = "Redis does not tell its maxmemory-policy, which must be noeviction"
        yield Finding("redis eviction", "unknown", cause, MANAGED)
    elif facts.policy == "noeviction":
        yield Finding("redis eviction", "ok", "noeviction")
    elif facts.policy.startswith("allkeys") and facts.memory_max:
        yield Finding("redis eviction", "failed", f"maxmemory-policy {facts.policy} may throw the queue away", remedy)
    else:
        cause = f"maxmemory-policy is {facts.policy}, so keys may vanish once memory is short"
        yield Finding("redis eviction", "degraded", cause, remedy)
    if facts.append_only is None:
        cause = "Redis does not tell whether it keeps an append-only file: without one a restart forgets the queue"
        yield Finding("redis persistence", "unknown", cause, MANAGED)
    elif not facts.append_only:
        cause = "Redis has no append-only file: a restart forgets the queue and the dead letters"
        # In the file alone it would cost everything: a Redis that starts with it loads no snapshot.
        remedy = (
            "as its administrator redis-cli CONFIG SET appendonly yes, and the same in redis.conf; "
            "where nobody may: scripts/backup.py, then in that file, restart Redis, scripts/restore.py"
        )
        yield Finding("redis persistence", "degraded", cause, remedy)
    elif facts.append_failed:
        cause = "Redis cannot write its append-only file"
        yield Finding("redis persistence", "failed", cause, "df -h on the machine of Redis; redis-cli INFO persistence")
    else:
        yield Finding("redis persistence", "ok", "append-only file")
    if facts.memory_max and facts.memory_used and facts.memory_used > MEMORY_SHARE * facts.memory_max:
        share = 100 * facts.memory_used // facts.memory_max
        cause = f"Redis uses {share} % of its maxmemory"
        yield Finding("redis memory", "degraded", cause, "start another worker, or raise maxmemory")


def check_clock(other: str, seconds_ahead: float) -> Finding:
    """This machine's clock against another one; `seconds_ahead` is negative when it is behind."""
    check = f"clock against {other}"
    if abs(seconds_ahead) < STEP_SECONDS:
        return Finding(check, "ok", f"{abs(seconds_ahead):.1f} s apart")
    direction = "ahead of" if seconds_ahead > 0 else "behind"
    cause = f"this machine's clock is {abs(seconds_ahead):.0f} s {direction} that of {other}"
    return Finding(
        check, "failed" if abs(seconds_ahead) > JUMP_SECONDS else "degraded", cause, "sudo timedatectl set-ntp true"
    )


def _check_database_agreement(link: RedisLink, settings: Settings) -> Findings:
    """Check that all processes and this configuration use one database: reconcile reads there what workers wrote."""
    mine = ledger_fingerprint(settings.database_url)
    if mine is None:
        return
    try:
        processes = [each for each in read_gauges(link).processes if each.get("ledger")]
    except EmailIngestionError:
        return  # reported by another check
    other = sorted(each["instance"] for each in processes if each["ledger"] != mine)
    if other:
        cause = f"{', '.join(other)} uses another database than this configuration"
        remedy = "give all of them one DATABASE_URL; SQLite is for one machine, several need postgresql+psycopg://…"
        yield Finding("database agreement", "failed", cause, remedy)
    elif not processes:
        cause = "no process says in Redis which database it uses"
        yield Finding("database agreement", "unknown", cause, "run this again while producer and worker run")
    else:
        yield Finding("database agreement", "ok", f"{len(processes)} running processes use this database")
