"""Restore a backup: Redis in one step, and only while no process writes; the ledger as a union, which loses nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from email_ingestion.atomic_files import file_lock
from email_ingestion.backup.archive import Archive, list_archives, read_member, unpack_archive
from email_ingestion.backup.create import (
    BackupProgress,
    check_ledger,
    ledger_summary,
    load_snapshot,
    partitions_of,
    working_directory,
)
from email_ingestion.daemon import running_pid
from email_ingestion.erasure.tombstones import NAME as TOMBSTONES
from email_ingestion.erasure.tombstones import TombstoneFile, read_tombstones
from email_ingestion.errors import EmailIngestionError, OperationFailed
from email_ingestion.ledger.copy import ACCESS, find_merge_obstacle, merge_copy
from email_ingestion.ledger.store import open_ledger
from email_ingestion.stream import RedisLink, SnapshotRestore, read_gauges


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A reason to refuse a restore."""

    reason: str
    forcible: bool  # whether --force overrides it


@dataclass(frozen=True, slots=True)
class RestoreTarget:
    """The systems that a backup is restored into, and the directory for its files meanwhile."""

    link: RedisLink
    database_url: str | None
    pid_dir: Path
    backup_dir: Path
    tombstones: TombstoneFile
    reapply: Callable[[], int]  # erases again what has a tombstone; returns how many messages
    without_access: bool = False  # leave out the tokens of the API, and the accounts


@dataclass(frozen=True, slots=True)
class AccessGrants:
    """What opens something to whoever has it: valid tokens of the API by their ids, accounts by their names."""

    tokens: dict[str, str]
    accounts: dict[str, str]

    @classmethod
    def of(cls, url: str) -> AccessGrants:
        """Return what the ledger at `url` has. Raises SinkUnavailable and ConfigurationError."""
        with closing(open_ledger(url)) as ledger:
            found, now = ledger.api_tokens.all()
            tokens = {
                each.token_id: f"{each.scope}, {each.account or 'every account'}, made {each.created_at:%Y-%m-%d}"
                for each in found
                if each.state(now) == "valid"
            }
            return cls(tokens, {row.name: row.state for row in ledger.accounts.rows()})

    def beyond(self, before: AccessGrants) -> AccessGrants:
        """Return what of it was not there before."""
        tokens = {name: facts for name, facts in self.tokens.items() if name not in before.tokens}
        accounts = {name: state for name, state in self.accounts.items() if name not in before.accounts}
        return AccessGrants(tokens, accounts)


def find_obstacles(archive: Archive, target: RestoreTarget) -> list[Obstacle]:
    """Return everything that stands against a restore now. Raises RedisConnectionError."""
    link = target.link
    found = [Obstacle(writer, forcible=False) for writer in running_writers(link, target.pid_dir)]
    copied = ledger_summary(archive)
    if copied and target.database_url and (reason := find_merge_obstacle(target.database_url, copied)):
        found.append(Obstacle(reason, forcible=False))
    if (there := partitions_of(archive)) != len(link.partitions):
        reason = f"the backup is of {there} partitions: set REDIS_PARTITIONS={there}, and REDIS_… to an empty Redis"
        found.append(Obstacle(reason, forcible=False))
    keys = SnapshotRestore(link).existing_keys()
    if keys:
        gauges = read_gauges(link)
        found.append(
            Obstacle(
                f"Redis is not empty: {len(keys)} keys, {gauges.depth} messages in the stream, {gauges.dlq_depth} dead "
                "letters; --force saves them to a backup of their own first and then replaces them",
                forcible=True,
            )
        )
    return found


def running_writers(link: RedisLink, pid_dir: Path) -> list[str]:
    """Name the processes that would write during the restore: of this machine, and any with a heartbeat in Redis."""
    local = {
        path.stem: pid
        for path in sorted(pid_dir.glob("*.pid"))
        if path.stem.startswith(("producer", "worker")) and (pid := running_pid(path))
    }
    found = [f"{stem} is running here, PID {pid}: ./scripts/stop.sh first" for stem, pid in local.items()]
    for process in read_gauges(link).processes:
        if process["pid"] not in local.values():
            seconds = max(0.0, time.time() - (process["seen"] or time.time()))
            found.append(f"{process['instance']} was alive {seconds:.0f} s ago: stop it, or wait 15 s if it was killed")
    return found


def restore(
    archive: Archive, target: RestoreTarget, progress: BackupProgress, save: Callable[[], Path] | None
) -> dict[str, Any]:
    """Restore Redis, and add the messages that the ledger lacks; return what was done.

    `save` backs up a Redis that is not empty before it is replaced; without it the restore is refused. Raises
    OperationFailed with the first obstacle, also for a copy of the database that is damaged or has code in it,
    RedisConnectionError, SinkUnavailable; Redis is then as it was, unless
    only what had been erased could not be erased again: no process starts until that is done.
    """
    reload = SnapshotRestore(target.link)
    nothing = AccessGrants({}, {})
    with file_lock(target.backup_dir / "restore"), working_directory(target.backup_dir) as folder:
        refused = [each for each in find_obstacles(archive, target) if not (each.forcible and save)]
        if refused:
            raise OperationFailed(f"nothing was restored: {refused[0].reason}")
        progress.start_step("unpacking", None)
        unpack_archive(archive, folder)
        ledger = check_ledger(archive, folder, progress) if target.database_url else None
        saved = str(save()) if reload.existing_keys() and save else None
        load_snapshot(reload, archive, folder, progress)
        target.tombstones.add_missing(_archived_tombstones(archive, target.backup_dir, folder), "restore")
        target.tombstones.expect_reapply()
        before = AccessGrants.of(target.database_url) if target.database_url else nothing
        try:
            brought_back = _bring_back(archive, target, ledger, progress)
            _refuse_late_writers(target)
            keys = reload.switch()
        except BaseException:
            reload.abandon()
            with suppress(EmailIngestionError):  # the operator must read the first error
                target.reapply()
            raise
        progress.start_step("erasing again what had been erased", None)
        erased = target.reapply()
        brought = AccessGrants.of(target.database_url).beyond(before) if target.database_url else nothing
    return {
        "keys": keys,
        "messages_brought_back": brought_back,
        "erased_again": erased,
        "tokens_brought_back": brought.tokens,
        "accounts_brought_back": brought.accounts,
        "saved": saved,
    }


def _bring_back(archive: Archive, target: RestoreTarget, ledger: Path | None, progress: BackupProgress) -> int | None:
    """Add missing messages to the ledger; return their number, or None when one of the two sides has no ledger."""
    copied = ledger_summary(archive)
    if not copied or not ledger or not target.database_url:
        return None
    progress.start_step("bringing back what the database lacks", None)
    return merge_copy(target.database_url, ledger, copied, ACCESS if target.without_access else ())


def _archived_tombstones(archive: Archive, directory: Path, folder: Path) -> set[str]:
    """Return the tombstones of a backup and of all that lie beside it: later ones know what was erased since."""
    found = read_tombstones(folder / TOMBSTONES).tombstones
    for other in (each for place in {directory, archive.path.parent} for each in list_archives(place)):
        if other.path != archive.path and (path := read_member(other, TOMBSTONES, folder)):
            found |= read_tombstones(path).tombstones
    return found


def _refuse_late_writers(target: RestoreTarget) -> None:
    if late := running_writers(target.link, target.pid_dir):
        raise OperationFailed(f"Redis was left as it is, for while the backup was loaded, {late[0]}")
