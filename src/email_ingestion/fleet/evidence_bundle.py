"""The evidence of an incident in one directory, for people who were not there; nothing of it is mail or a secret.

DIR/logs/…  DIR/status/<process>.json  DIR/ready/…  DIR/metrics/<process>.txt  DIR/config.json  DIR/redis.json
DIR/machine.json  DIR/doctor.json  DIR/manifest.json (size and SHA-256 of each, and what could not be had)
DIR/SHA256SUMS, the manifest's too: `sha256sum --check SHA256SUMS` proves them
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import psutil

from email_ingestion import __version__
from email_ingestion.atomic_files import atomic_write, unreadable, unwritable
from email_ingestion.errors import EmailIngestionError, OperationFailed
from email_ingestion.fleet.log_files import log_files, unwritten_logs
from email_ingestion.fleet.managed_processes import ManagedProcess, find_processes, http_client
from email_ingestion.ops.redaction import redact, redact_field
from email_ingestion.settings import Settings
from email_ingestion.settings.effective_settings import effective_settings
from email_ingestion.stream import open_link, read_gauges, read_server_info
from email_ingestion.stream.pending import PendingEntries

LOG_BYTES = 50_000_000  # of the end of each file
ANSWER_SECONDS = 5.0
PATHS = {"status": "/status", "ready": "/ready", "health": "/health", "metrics": "/metrics"}


def collect_bundle(
    settings: Settings, folder: Path, say: Callable[[str], None], extra: Mapping[str, Callable[[], Any]]
) -> dict[str, Any]:
    """Write everything below `folder`, and the files that `extra` makes, for this user alone; return the manifest.

    The manifest names what is missing: on a full disk, what there is no room for. Raises OperationFailed when `folder`
    holds something, ConfigurationError when it cannot be written, DiskFull when there is no room for the manifest:
    then nothing is left.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise OperationFailed(f"{folder} is not empty: name another directory")
    except OSError as error:
        raise unwritable(folder, error) from error
    missing: dict[str, str] = {}
    for name, make in chain(_standard_files(settings), _extra_files(extra)):
        say(name)
        try:
            _write(folder / name, make())
        except EmailIngestionError as error:
            missing[name] = redact(str(error))
        except OSError as error:
            missing[name] = str(unwritable(folder / name, error))
    try:
        manifest = {
            "collected_at": datetime.now(UTC).isoformat(),
            "version": __version__,
            "files": {str(path.relative_to(folder)): _describe(path) for path in _files(folder)},
            "missing": missing,
        }
        _write(folder / "manifest.json", _json(manifest))
        sums = [f"{_describe(path)['sha256']}  {path.relative_to(folder)}\n" for path in _files(folder)]
        _write(folder / "SHA256SUMS", "".join(sums).encode())
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise unwritable(folder, error) from error
    return manifest


def _standard_files(settings: Settings) -> Iterator[tuple[str, Callable[[], bytes]]]:
    yield "config.json", lambda: _json([asdict(each) for each in effective_settings(settings)])
    yield "machine.json", lambda: _json(_machine(settings))
    for path in (*log_files(settings.log_dir), settings.log_dir / "audit.log"):
        if path.exists():
            yield f"logs/{path.name}", partial(_end_of, path)
    for number, gap in enumerate(unwritten_logs(settings.log_dir), start=1):
        yield f"logs/elsewhere-{number}", partial(_refuse, gap)
    for process in find_processes(settings):
        for name, url_path in PATHS.items():
            kind = "txt" if name == "metrics" else "json"
            yield f"{name}/{process.stem}.{kind}", partial(_fetch, process, url_path)
    yield "redis.json", lambda: _json(_redis(settings))


def _extra_files(extra: Mapping[str, Callable[[], Any]]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for name, make in extra.items():
        yield name, lambda make=make: _json(make())  # type: ignore[misc]


def _end_of(path: Path) -> bytes:
    try:
        return _tail(path)
    except PermissionError as error:
        raise unreadable(path, error) from error


def _refuse(reason: str) -> bytes:
    raise OperationFailed(reason)


def _fetch(process: ManagedProcess, path: str) -> bytes:
    if process.pid is None or process.ops_url is None:
        raise OperationFailed(f"{process.stem} is dead")
    try:
        return http_client().get(process.ops_url + path, timeout=ANSWER_SECONDS, headers=process.headers).content
    except httpx.HTTPError as error:
        raise OperationFailed(f"{process.stem} does not answer") from error


def _redis(settings: Settings) -> dict[str, Any]:
    link = open_link(settings.redis_address, "email-ingestion-evidence")
    return {
        "servers": [asdict(each) for each in read_server_info(link)],
        "gauges": asdict(read_gauges(link)),
        "consumers": [asdict(each) for each in PendingEntries(link).consumers()],
        "pending": [asdict(each) for each in PendingEntries(link).entries()],
    }


def _machine(settings: Settings) -> dict[str, Any]:
    usage = shutil.disk_usage(settings.log_dir if settings.log_dir.exists() else Path())
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": psutil.getloadavg(),
        "memory": psutil.virtual_memory()._asdict(),
        "disk_of_logs": usage._asdict(),
        "processes": [asdict(process) for process in find_processes(settings)],
    }


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read()


def _json(value: Any) -> bytes:
    return json.dumps(redact_field("", value), indent=2, default=str).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
