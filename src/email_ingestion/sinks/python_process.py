"""The process of a Python sink: imports the function, and calls it with each record that the worker sends.

Its answer is None when the function returned, else what it raised: the name of our class for it, its text, the seconds
it asks for and its stack without texts. It ends when the worker does, also in the middle of a call.
"""

from __future__ import annotations

import io
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from msgspec.msgpack import Decoder

from email_ingestion import errors
from email_ingestion.child_process import attach_contents, connect_to_parent, end_with_parent, receive, send
from email_ingestion.records import Email

# What a function may raise of ours, or a subclass of its own; a breaker is the worker's.
OURS = {
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EmailIngestionError)
} - {errors.CircuitBreakerError}
NOT_NOW = 75  # EX_TEMPFAIL of sysexits.h: the exit code of an import for which the machine has nothing to spare
LATE_SECONDS = 2.0  # after its time the worker has ended a call; where the worker is gone, the kernel does


def main() -> None:
    """Serve until the worker is gone."""
    _, _, module, name = sys.argv
    busy = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what it printed must not die with it
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
    for number in (signal.SIGINT, signal.SIGTERM, hangup):  # they may reach all our processes: the worker decides
        signal.signal(number, lambda *_: None)  # not ignored, which the function's own processes would inherit
    with connect_to_parent() as worker:
        sys.path[:], _ = receive(worker, Decoder(list[str]))
        requests = Decoder(tuple[Email, float])
        try:
            end_with_parent(worker, lambda: busy)
            handle = import_function(module, name)
        except errors.ConfigurationError as error:
            send(worker, str(error))
            return
        except (OSError, MemoryError, RuntimeError):
            sys.exit(NOT_NOW)
        send(worker, None)
        while True:
            try:
                (email, seconds), contents = receive(worker, requests)
            except (EOFError, OSError):
                return
            busy = True
            signal.setitimer(signal.ITIMER_REAL, seconds + LATE_SECONDS)
            (whole,) = attach_contents([email], contents)
            answer = _call(handle, whole)
            del email, whole, contents
            signal.setitimer(signal.ITIMER_REAL, 0)
            busy = False  # before the worker has the answer: it may hang up as soon as it has it
            send(worker, answer)


def import_function(module: str, name: str) -> Callable[[Email], object]:
    """Import the function, also from the working directory, which is searched last.

    Raises ConfigurationError, and OSError, MemoryError or RuntimeError when this machine has nothing to spare for it.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(import_module(module), name, None)
    except (Exception, SystemExit) as error:  # a foreign module may raise anything when it is imported
        if errors.is_shortage(error):
            raise
        raise errors.ConfigurationError(f"SINKS: the module {module!r} cannot be imported: {error!r}") from error
    if not callable(function):
        raise errors.ConfigurationError(f"SINKS: the module {module!r} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def _call(handle: Callable[[Email], object], email: Any) -> tuple[str, str, float | None, str] | None:
    try:
        handle(email)
    except BaseException as error:  # noqa: BLE001 - the worker decides on it, sys.exit() included
        stack = "".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__name__}\n"
        ours = next((kind for kind in type(error).__mro__ if kind in OURS), None)
        if ours is None:
            return "", type(error).__name__, None, stack  # a foreign text may quote the message
        seconds: Any = getattr(error, "after", getattr(error, "retry_after", None))
        return ours.__name__, str(error), None if seconds is None else float(seconds), stack
    return None


if __name__ == "__main__":
    main()
