"""Runs `python producer.py` in the project's `.venv`, whichever Python the operator calls.

Only the standard library is imported here: what fails before ours can be imported still ends as a record in the log.
"""

import errno
import json
import os
import re
import subprocess
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
FAILED = 2
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC}


def reexec_in_venv() -> None:
    """Return if the package can be imported; otherwise re-execute in `.venv`, or exit with a hint how to make it."""
    if hint := _run_in_venv():
        sys.exit(hint)
    from email_ingestion.interrupts import end_when_interrupted  # noqa: PLC0415 - not before we are in .venv

    end_when_interrupted()


def run_process(component: str) -> None:
    """Run `producer` or `worker`; an installation that cannot be imported is a record of its log and a sentence."""
    if hint := _run_in_venv():
        _fail(component, hint)
    try:
        from email_ingestion.interrupts import end_when_interrupted  # noqa: PLC0415 - not before we are in .venv

        end_when_interrupted()
        from email_ingestion.cli import processes  # noqa: PLC0415
    except Exception as error:  # noqa: BLE001 - whatever it is, no line of the log may be anything but JSON
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in SHORTAGES:
            _fail(component, f"this machine or a limit (`ulimit -a`) leaves too little to begin with: {error}")
        reason = f"the installation in {sys.prefix} is broken: {type(error).__name__}: {error}"
        _fail(component, f"{reason}; `rm -r .venv` and ./scripts/start.sh makes it anew", error)
    processes.run_process(getattr(processes, component))


def _run_in_venv() -> str | None:
    """Return when the package can be imported here; else go on in `.venv`, or return a hint how to make it."""
    if find_spec("email_ingestion"):
        return None
    if not VENV.exists() or Path(sys.prefix) == VENV.parent.parent:
        return f"email-ingestion is not installed: run {ROOT}/scripts/start.sh --sandbox once, it makes .venv"
    command = [str(VENV), *sys.orig_argv[1:]]
    if os.name == "nt":
        sys.exit(subprocess.call(command))
    return os.execv(command[0], command)  # noqa: S606 - our own interpreter


def _fail(component: str, reason: str, error: Exception | None = None) -> None:
    """Exit with the reason: as a record in the log, if there is a log directory, and as a sentence on stderr."""
    instance = re.search(r"(?:^| )--instance[= ]([0-9]{1,3})(?: |$)", " ".join(sys.argv[1:]))
    number = int(instance[1]) if instance else 1
    log = Path(os.environ.get("LOG_DIR") or "logs") / f"{component if number == 1 else f'{component}-{number}'}.log"
    record = {
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": "CRITICAL",
        "event": "process_failed",
        "component": component,
        "pid": os.getpid(),
        "exit_code": FAILED,
        "reason": reason,
    }
    if error:
        record |= {"error_type": type(error).__name__, "exception": "".join(traceback.format_exception(error))}
    is_logged = False
    with suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        is_logged = os.path.samestat(os.fstat(file.fileno()), os.fstat(2))
    if not is_logged:
        sys.stderr.write(f"{reason}\n")
    sys.exit(FAILED)
