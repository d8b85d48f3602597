"""The files that come with the product, in a checkout as in an installed package: configuration, alerts, runbooks.

And how its commands are typed there: an installed package has no scripts.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
TEMPLATES = PACKAGE / "templates"  # in an installed package only
SCRIPTS = {
    "python producer.py": "email-ingestion producer",
    "python worker.py": "email-ingestion worker",
    "python -m src.auth.oauth2_gmail": "email-ingestion auth",
    "python scripts/backup.py": "email-ingestion backup",
    "python scripts/restore.py": "email-ingestion restore",
    "scripts/backup.py": "email-ingestion backup",
    "scripts/restore.py": "email-ingestion restore",
    "./scripts/start.sh": "email-ingestion start",
    "./scripts/stop.sh": "email-ingestion stop",
    ".venv/bin/email-ingestion": "email-ingestion",
}  # what a checkout has, and the same of an installed package


def shipped_root() -> Path:
    """Return the folder in which `config/`, `deploy/` and `docs/runbooks/` lie."""
    return TEMPLATES if TEMPLATES.is_dir() else PACKAGE.parent.parent


def as_typed_here(sentence: str) -> str:
    """Return a sentence with the commands in it as they can be typed: without a checkout there are no scripts."""
    return by_program(sentence) if TEMPLATES.is_dir() else sentence


def by_program(sentence: str) -> str:
    """Return a sentence with the scripts in it replaced by the commands that do the same."""
    for script, command in SCRIPTS.items():
        sentence = sentence.replace(script, command)
    return sentence


def here_or_shipped(path: Path) -> Path:
    """Return a file or folder of the working directory where it is there, else the one that comes with the product."""
    return path if path.exists() else shipped_root() / path
