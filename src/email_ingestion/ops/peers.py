"""The other processes of the system: which there are, and which of them should run and do not.

`missing_processes` is the one judgement of that; `/ready`, `status`, `doctor` and `start` all use it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from email_ingestion.daemon import read_pid, running_pid
from email_ingestion.ops.status_records import Peer

REPLACED_SECONDS = 30.0  # a death is shown so long at least, though another process has taken over at once
UNATTENDED_SECONDS = 5.0  # a worker that restarts is no worker too few


@dataclass(frozen=True, slots=True)
class MissingProcess:
    """A process that should run and does not; `name` is its instance, or what its PID file is called."""

    component: str
    name: str
    pid: int | None
    reason: str


def address_proof(read_token: str, ops_url: str) -> str:
    """Return what only who has the token of OPS_READ_TOKEN_FILE can say of an address.

    Addresses of processes elsewhere stand in Redis; the token goes to none that somebody else has written there.
    """
    return hmac.new(read_token.encode(), f"email-ingestion ops address {ops_url}".encode(), hashlib.sha256).hexdigest()


def missing_processes(
    processes: Sequence[Peer], now: float, *, unattended_seconds: float = 0.0, count_pid_files: bool = False
) -> list[MissingProcess]:
    """Judge which processes should run and do not.

    `processes` are all that are known, the live ones included, `now` Unix seconds. Mail has been waiting without any
    live worker for `unattended_seconds`. A dead process that was replaced is missing only if its PID file is still
    here and `count_pid_files` says that such a file counts.
    """
    dead = [each for each in processes if each.alive is False]
    left = [each for each in dead if (each.pid_file and count_pid_files) or not is_replaced(each, processes, now)]
    found = [MissingProcess(each.component, each.instance, each.pid, _describe(each, now)) for each in left]
    workers = [each for each in processes if each.component == "worker" and each.alive]
    missed = any(each.component == "worker" for each in found)
    if unattended_seconds >= UNATTENDED_SECONDS and not workers and not missed:
        found.append(MissingProcess("worker", "worker", None, "none runs although mail waits: ./scripts/start.sh"))
    return found


def is_replaced(peer: Peer, processes: Sequence[Peer], now: float) -> bool:
    """Return whether a dead process can be forgotten: another of its kind lives, and nothing pends in its name."""
    others = any(each.alive and each.component == peer.component for each in processes)
    return others and not peer.pending and now - (peer.seen_at or 0.0) >= REPLACED_SECONDS


def _describe(peer: Peer, now: float) -> str:
    pid = f" (PID {peer.pid})" if peer.pid else ""
    seen = f", seen last {max(0.0, now - peer.seen_at):.0f} s ago" if peer.seen_at else ""
    pending = f", {peer.pending} messages pend in its name" if peer.pending else ""
    return f"{peer.instance}{pid} is dead{seen}{pending}: ./scripts/start.sh"


def peers(
    own: str | None,
    processes: Sequence[dict[str, Any]],
    pid_dir: Path,
    *,
    lost: Sequence[dict[str, Any]] = (),
    pending: Mapping[str, int] | None = None,
) -> Iterator[Peer]:
    """Yield the processes but `own`: those with a heartbeat in Redis, lost ones, and those here with a PID file.

    `pending` is the number of pending entries by instance.
    """
    files = {path.stem: path for path in sorted(pid_dir.glob("*.pid")) if path.stem.startswith(("producer", "worker"))}
    records = [(process, True) for process in processes] + [(process, False) for process in lost]
    for process, announced in sorted(records, key=lambda record: str(record[0]["instance"])):
        path = files.get(process["stem"])
        here = process.get("host") in {None, socket.gethostname()}
        local = here and path is not None and read_pid(path) == process["pid"]
        if local:
            del files[process["stem"]]
        if process["instance"] != own:
            alive = running_pid(path) is not None if local and path else announced
            yield Peer(
                process["component"],
                process["instance"],
                process["pid"],
                alive,
                process["ready"] if alive else False,
                process["ops_url"],
                process["seen"],
                pending=(pending or {}).get(process["instance"], 0),
                pid_file=local,
            )
    for stem, path in files.items():
        pid = read_pid(path)
        if pid != os.getpid():
            alive = running_pid(path) is not None
            yield Peer(stem.partition("-")[0], stem, pid, alive, None if alive else False, None, None, pid_file=True)
