"""The files that come with the product, in a checkout as in an installed package: configuration, alerts, runbooks."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def shipped_root() -> Path:
    """Return the folder in which `config/`, `deploy/` and `docs/runbooks/` lie."""
    package = Path(str(files("email_ingestion")))
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent.parent


def here_or_shipped(path: Path) -> Path:
    """Return a file or folder of the working directory where it is there, else the one that comes with the product."""
    return path if path.exists() else shipped_root() / path
