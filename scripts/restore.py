"""Entry point for `python scripts/restore.py`; the code is in `email_ingestion.cli.backup`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src._venv import reexec_in_venv

reexec_in_venv()

if __name__ == "__main__":
    from email_ingestion.cli.backup import restore_backup
    from email_ingestion.cli.exit_codes import run

    run(restore_backup)
