"""Checks of this machine: folders, room on their disks, ports, processes."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

from email_ingestion.atomic_files import make_writable
from email_ingestion.doctor.findings import Finding, Findings
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.errors import EmailIngestionError
from email_ingestion.file_modes import open_to_others
from email_ingestion.fleet.log_files import logs_elsewhere
from email_ingestion.fleet.managed_processes import FOUNDATIONS, find_processes
from email_ingestion.fleet.status_table import system_status
from email_ingestion.fleet.web_process import STEM as WEB
from email_ingestion.ledger.fingerprint import sqlite_path
from email_ingestion.ops.audit_log import NAME as AUDIT_LOG
from email_ingestion.ops.sockets import METRICS_PORT, OPS_PORT, bind
from email_ingestion.settings import Settings, secret_files

MIB = 1024 * 1024
MIN_FREE_BYTES = 100 * MIB  # below, a database may meet the end of its disk in the middle of a batch
LOW_BYTES = 1024 * MIB
LOW_SHARE = 0.05
READY = "ready"


def check_folders(settings: Settings) -> Findings:
    """Check that our folders can be written and have room."""
    folders = {"LOG_DIR": settings.log_dir, "PID_DIR": settings.pid_dir, "BACKUP_DIR": settings.backup_dir}
    if settings.blob_url.startswith("file:"):
        folders["BLOB_URL"] = Path(settings.blob_url.removeprefix("file:").removeprefix("//"))
    if file := sqlite_path(settings.database_url):
        folders["DATABASE_URL"] = file.parent
    if logs_elsewhere(settings.log_dir):
        del folders["LOG_DIR"]
        yield Finding("folder LOG_DIR", "ok", f"the logs in {settings.log_dir} are standard error")
        folders["audit.log"] = (settings.log_dir / AUDIT_LOG).resolve().parent
    for name, folder in folders.items():
        yield check_folder(name, folder)


def check_folder(name: str, folder: Path) -> Finding:
    """Check a folder that exists, or the one it would be made in."""
    check = f"folder {name}"
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            usage = shutil.disk_usage(there)
    except OSError as error:
        of_rights = error.errno in {errno.EACCES, errno.EPERM}
        remedy = f"chown -R $(id -u) {there}" if of_rights else make_writable(there, error)
        cause = f"{folder} cannot be written: {error.strerror}"
        return Finding(check, "failed", cause, f"{remedy}, or set {name} to a folder you own")
    room = f"{usage.free // MIB:,} MiB free in {folder}"
    if usage.free < MIN_FREE_BYTES:
        cause = f"too little room for a database to work: {room}, {MIN_FREE_BYTES // MIB} MiB are needed"
        return Finding(check, "failed", cause, f"df -h {there}; make room, or move {name}")
    if usage.free < min(LOW_BYTES, LOW_SHARE * usage.total):
        return Finding(check, "degraded", f"the disk is nearly full: {room}", f"df -h {there}; make room")
    return Finding(check, "ok", room)


def check_modes(settings: Settings) -> Findings:
    """Check that no other user of this machine can read secrets or mail."""
    files = [*secret_files(settings), *settings.log_dir.glob("*.log"), *settings.backup_dir.glob("*.tar*")]
    if file := sqlite_path(settings.database_url):
        files += [file, Path(f"{file}-wal")]
    found = list(open_to_others(files))
    for path, mode in found:
        cause = f"{path} has mode {mode:04o}: every user of this machine can read it"
        yield Finding("file modes", "degraded", cause, f"chmod o-rwx {path}")
    if not found:
        yield Finding("file modes", "ok", "secrets, database, logs and backups are closed to other users")


def check_erasure(settings: Settings) -> Findings:
    """Check that what was erased stays erased: no restore is unfinished, and the tombstones can be read."""
    file = TombstoneFile(settings.erasure_dir)
    if file.reapply_pending:
        cause = "a restore ended before it erased again what had been erased: no process starts until that is done"
        yield Finding("restore", "failed", cause, "give the restore again, or `email-ingestion erase --reapply`")
    for mark in file.unfinished() if not file.reapply_pending else ():
        cause = f"an erasure did not come to its end, or could not erase everything: {mark}"
        yield Finding("erasure", "degraded", cause, 'give the same order again; docs/erasure.md, "What is unfinished"')
    try:
        found = file.read()
    except EmailIngestionError as error:
        yield Finding("erasure", "failed", str(error), f"make {file.path} readable for this user")
        return
    if found.breaks:
        cause = f"{found.breaks[0]}: what it no longer tells may come back, and no erasure or restore runs"
        remedy = f"bring {file.path} back from a backup (`tombstones.jsonl` in the archive)"
        yield Finding("erasure", "failed", cause, remedy)
    else:
        yield Finding("erasure", "ok", f"{len(found.tombstones):,} tombstones keep what was erased from coming back")


def check_ports(settings: Settings) -> Findings:
    """Check that producer and first worker can listen on their ports, unless they run."""
    running = {process.stem: process.pid for process in find_processes(settings)}
    for offset, stem in enumerate(("producer", "worker")):
        if pid := running.get(stem):
            yield Finding(f"ports of {stem}", "ok", f"it is running, PID {pid}")
            continue
        ops = settings.ops_port if settings.ops_port is not None else OPS_PORT + offset
        metrics = settings.metrics_port if settings.metrics_port is not None else METRICS_PORT + offset
        yield _ports(f"ports of {stem}", settings.ops_host, {"OPS_PORT": ops, "METRICS_PORT": metrics})


def _ports(check: str, host: str, ports: dict[str, int]) -> Finding:
    for setting, port in ports.items():
        try:
            bind(host, port, setting).close()
        except EmailIngestionError as error:
            return Finding(check, "failed", str(error), f"ss -ltnp 'sport = :{port}' shows who listens")
    return Finding(check, "ok", " and ".join(map(str, ports.values())) + " are free")


def check_processes(settings: Settings) -> Findings:
    """Check that every process that should run does, and works."""
    system = system_status(settings)
    for missing in system.missing:
        cause, _, remedy = missing.reason.rpartition(": ")
        forget = (
            "./scripts/stop.sh" if missing.component in {WEB, *FOUNDATIONS} else "`email-ingestion consumers prune`"
        )
        yield Finding(f"process {missing.name}", "degraded", cause, f"{remedy}; or {forget}")
    for process in system.processes:
        if process.state != READY and not process.missing:
            reasons = "; ".join(process.body.get("reasons", ())) if process.body else "it does not answer"
            remedy = f"email-ingestion status; email-ingestion logs, or logs/{process.stem}.log"
            yield Finding(f"process {process.stem}", "degraded", f"{process.state}: {reasons}", remedy)
    if system.ok and all(each.state == READY for each in system.processes):
        running = [*(each.stem for each in system.processes), *([WEB] if system.web else [])]
        yield Finding("processes", "ok", f"{', '.join(running)} run")
    elif system.idle:
        yield Finding("processes", "ok", system.nothing())
