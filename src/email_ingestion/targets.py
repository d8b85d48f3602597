"""Tells Prometheus where the processes of this machine are: a file each, which it watches (`file_sd_configs`).

A process that ends takes its file away; one that dies leaves it, so that its target is shown as down.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from email_ingestion.errors import ConfigurationError

TARGETS = Path("data/targets")


def write_target(stem: str, component: str, metrics_url: str) -> None:
    """Announce a process. Raises ConfigurationError when the directory cannot be written."""
    found = [{"targets": [urlsplit(metrics_url).netloc], "labels": {"component": component, "process": stem}}]
    unfinished = TARGETS / f".{stem}"
    try:
        TARGETS.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(found))  # for Prometheus to read, whoever runs it
        unfinished.replace(TARGETS / f"{stem}.json")
    except OSError as error:
        raise ConfigurationError(f"cannot write {TARGETS}: {error.strerror}; make data writable") from error


def remove_target(stem: str) -> None:
    """The process has ended as it should."""
    (TARGETS / f"{stem}.json").unlink(missing_ok=True)
