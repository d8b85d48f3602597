"""What a Ctrl-C does: while a command loads, it ends; while it works, it raises; once it was left, it ends.

The libraries take a second on a busy machine: an interrupt meets them more often than it meets the command.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130  # 128 and SIGINT
SENTENCE = "Interrupted: what was done stays done, and the same command does the rest."


def end_when_interrupted() -> None:
    """Let a Ctrl-C end the process at once, with a sentence and 130: while there is nothing to undo."""
    if _is_heeded():
        signal.signal(signal.SIGINT, _end)


def raise_when_interrupted() -> None:
    """Let a Ctrl-C raise KeyboardInterrupt, as Python has it: while a command works, which then leaves all in order."""
    if _is_heeded():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def hold_interrupts(sentence: str) -> Iterator[None]:
    """Let a Ctrl-C, a SIGTERM and a lost terminal wait for the end of a block whose half is worse than none of it.

    The sentence tells who interrupts what is waited for.
    """
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        if not came:
            _say(sentence)
        came.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers, nor has to
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {each: signal.getsignal(each) for each in numbers if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        for each in before:
            signal.signal(each, note)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])


def _is_heeded() -> bool:
    """Return whether interrupts are for this process: `nohup … &` ignores them, and daemons have their own handler."""
    return signal.getsignal(signal.SIGINT) in {signal.default_int_handler, _end}


def _end(_number: int, _frame: object) -> None:
    _say(SENTENCE)
    os._exit(INTERRUPTED)


def _say(sentence: str) -> None:
    if sys.__stderr__ is not None:
        with suppress(OSError):  # a terminal that is gone
            os.write(sys.__stderr__.fileno(), f"{sentence}\n".encode())  # past the buffer, which may be in use
