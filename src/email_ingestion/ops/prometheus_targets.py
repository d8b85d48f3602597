"""Writes a target file for every process of this machine, which Prometheus watches (`file_sd_configs`).

A process that ends removes its file; the file of a process that dies stays, so that its target is shown as down.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from email_ingestion.atomic_files import unwritable
from email_ingestion.file_modes import share_with_group

TARGETS = Path("data/targets")


def write_target(stem: str, component: str, metrics_url: str) -> None:
    """Write the target file of a process; `stem` is its name. Raises ConfigurationError when that is impossible."""
    targets = [{"targets": [urlsplit(metrics_url).netloc], "labels": {"component": component, "process": stem}}]
    unfinished = TARGETS / f".{stem}"
    try:
        TARGETS.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(targets))
        share_with_group(unfinished)  # with Prometheus, which has a user of its own
        unfinished.replace(TARGETS / f"{stem}.json")
    except OSError as error:
        raise unwritable(TARGETS, error) from error


def remove_target(stem: str) -> None:
    """Remove the target file of a process that has ended as it should."""
    (TARGETS / f"{stem}.json").unlink(missing_ok=True)
