"""Puts a backup back: Redis in one step, and only when nobody writes; the ledger as a union, which loses nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from email_ingestion.atomic_files import file_lock
from email_ingestion.backup.archive import Archive, unpack_archive
from email_ingestion.backup.create import Steps, copied_of, ledger_in, load, partitions_in, working_directory
from email_ingestion.daemon import running_pid
from email_ingestion.errors import OperationFailed
from email_ingestion.ledger.copy import merge_copy
from email_ingestion.stream import RedisLink, SnapshotRestore, read_gauges


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a restore would be refused."""

    reason: str
    forcible: bool  # whether --force goes over it


def obstacles(archive: Archive, link: RedisLink, pid_dir: Path) -> list[Obstacle]:
    """All that stands against a restore now; raises RedisConnectionError."""
    found = [Obstacle(writer, forcible=False) for writer in writers(link, pid_dir)]
    if (there := partitions_in(archive)) != len(link.partitions):
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


def writers(link: RedisLink, pid_dir: Path) -> list[str]:
    """The processes that would write into what is being restored: of this machine, and those that say so in Redis."""
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


@dataclass(frozen=True, slots=True)
class Target:
    """Where a backup goes back to, and a place for its files meanwhile."""

    link: RedisLink
    database_url: str | None
    pid_dir: Path
    backup_dir: Path


def restore(archive: Archive, target: Target, steps: Steps, save: Callable[[], Path] | None) -> dict[str, Any]:
    """Restore Redis and bring back what the ledger lacks; returns what was done.

    A Redis that is not empty is kept by `save` before it is replaced; without it that is refused. Raises
    OperationFailed with the first obstacle, RedisConnectionError, SinkUnavailable; Redis is then as it was.
    """
    reload = SnapshotRestore(target.link)
    with file_lock(target.backup_dir / "restore"), working_directory(target.backup_dir) as folder:
        refused = [each for each in obstacles(archive, target.link, target.pid_dir) if not (each.forcible and save)]
        if refused:
            raise OperationFailed(f"nothing was restored: {refused[0].reason}")
        steps.begin("unpacking", None)
        unpack_archive(archive, folder)
        saved = str(save()) if reload.existing_keys() and save else None
        load(reload, archive, folder, steps)
        try:
            brought_back = _bring_back(archive, target, folder, steps)
            _refuse_latecomers(target)
            keys = reload.switch()
        except BaseException:
            reload.abandon()
            raise
    return {"keys": keys, "messages_brought_back": brought_back, "saved": saved}


def _bring_back(archive: Archive, target: Target, folder: Path, steps: Steps) -> int | None:
    """How many messages the ledger lacked; None when there is no ledger on one of the two sides."""
    copied = copied_of(archive)
    if not copied or not target.database_url:
        return None
    steps.begin("bringing back what the database lacks", None)
    return merge_copy(target.database_url, ledger_in(archive, folder), copied)


def _refuse_latecomers(target: Target) -> None:
    if late := writers(target.link, target.pid_dir):
        raise OperationFailed(f"Redis was left as it is, for while the backup was loaded, {late[0]}")
