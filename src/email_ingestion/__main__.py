"""The console script, which `python -m email_ingestion` is too."""

from __future__ import annotations

from email_ingestion.interrupts import end_when_interrupted

TYPE_CHECKING = False  # as typing has it, whose import takes longer than all that stands here
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line, for whose libraries nobody has to wait who presses Ctrl-C."""
    end_when_interrupted()
    from email_ingestion.cli.main import main as run_commands  # noqa: PLC0415 - not before

    run_commands()


if __name__ == "__main__":
    main()
