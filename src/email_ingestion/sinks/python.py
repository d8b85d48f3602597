"""The sink that calls a Python function with each record: `SINKS=python:my_module:handle`.

The function runs in a process of its own, which can be ended: one that never returns holds up a message for a limited
time, and one that crashes or calls `sys.exit` ends no thread of the worker.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from email_ingestion import errors
from email_ingestion.child_process import ChildProcess, detach_contents
from email_ingestion.errors import ConfigurationError, EmailIngestionError, SinkFailed, SinkTimedOut, SinkUnavailable
from email_ingestion.records import Email, SinkMessage
from email_ingestion.sinks.python_process import NOT_NOW, import_function

if TYPE_CHECKING:
    from email_ingestion.settings import Settings

START_SECONDS = 30.0  # for the import of the module
CLOSE_SECONDS = 5.0  # for what the module does at its end
ANSWER_BYTES = 16 * 1024**2
# To a call None or what it raised; to the start None or why the function cannot be called.
Answer = tuple[str, str, float | None, str] | str | None


def open_sink(settings: Settings, target: str = "") -> PythonSink | DirectPythonSink:
    """Start the process, which imports the function.

    Raises ConfigurationError when there is no such function, SinkUnavailable when no process can be started now.
    """
    module, _, function = target.partition(":")
    if not module or not function:
        raise ConfigurationError("SINKS: python needs a module and a function, such as python:my_module:handle")
    if sys.platform == "win32":  # no socket can be handed to a child there
        return DirectPythonSink(import_function(module, function))
    sink = PythonSink(module, function, settings.sink_timeout)
    try:
        sink.open()
    except EmailIngestionError:
        sink.close()
        raise
    return sink


class PythonSink:
    """Has the function called. It may raise `email_ingestion.Retry` or `Reject`; another error counts as a failure.

    A call that takes longer than `timeout` seconds is ended together with its process, before anything else is called.
    """

    name = "python"
    parallel = 1  # one message at a time: the function may not be thread-safe

    def __init__(self, module: str, function: str, timeout: float) -> None:
        self._function = f"{module}:{function}"
        self._timeout = timeout
        # What the function prints becomes a log line of ours: the files hold nothing but JSON.
        self._child = ChildProcess(
            *("email_ingestion.sinks.python_process", module, function),
            answer=Answer,
            on_output=logging.getLogger(__name__).info,
        )
        self._lock = threading.Lock()
        self._current: str | None = None
        self._closed = False

    def open(self) -> None:
        """Start the process if there is none. Raises ConfigurationError and SinkUnavailable."""
        with self._lock:
            self._start()

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Have the function called with the record of each message."""
        for message in batch:
            with self._lock:
                try:
                    self._start()
                except ConfigurationError as error:  # it worked when it was opened
                    raise SinkUnavailable(str(error)) from error
                self._current = message.email.email_id
                try:
                    self._call(message.email)
                finally:
                    self._current = None

    def ping(self) -> None:
        """Check that the process is there; only a call shows whether the function works."""
        if not self._closed and self._lock.acquire(blocking=False):  # else a call is running
            try:
                self._start()
            except ConfigurationError as error:
                raise SinkUnavailable(str(error)) from error
            finally:
                self._lock.release()

    def interrupt(self, email_id: str) -> None:
        """End the process if it is handling this message; safe from any thread."""
        if self._current == email_id:
            self._child.kill()

    def close(self) -> None:
        """Let the process end by itself, and end it when it takes long."""
        self._closed = True
        self._child.close(CLOSE_SECONDS)

    def _start(self) -> None:
        if self._child.is_running():
            return
        try:
            refusal: str | None = self._child.start(list(map(str, sys.path)), START_SECONDS, ANSWER_BYTES)
        except TimeoutError as error:
            self._child.close()
            raise SinkUnavailable(f"{self._function} took longer than {START_SECONDS:.0f} s to import") from error
        except EOFError as error:
            code = self._child.close()
            ended = f"importing {self._function} ended its process with {code}"
            if code in (NOT_NOW, -signal.SIGKILL):  # nothing to spare, or killed for it: no setting is wrong
                raise SinkUnavailable(f"{ended}: look for limits of open files, processes and memory") from error
            raise ConfigurationError(f"SINKS: {ended}") from error
        except OSError as error:
            self._child.close()
            raise SinkUnavailable(f"no process can be started for {self._function}: {error}") from error
        if refusal is not None:
            self._child.close()
            raise ConfigurationError(refusal)

    def _call(self, email: Email) -> None:
        try:
            (lean,), contents = detach_contents([email])
            answer, _ = self._child.ask((lean, self._timeout), self._timeout, ANSWER_BYTES, contents)
        except TimeoutError as error:
            self._child.kill()
            self._child.close()
            words = f"{self._function} took longer than {self._timeout:g} s, and its process was ended"
            raise SinkTimedOut(words) from error
        except (OSError, EOFError) as error:
            code = self._child.close(CLOSE_SECONDS)
            raise SinkFailed(f"{self._function} ended its process with {code}") from error
        if answer is not None:
            raise _error(self._function, *answer)


class DirectPythonSink:
    """Calls the function in a thread of the worker, where there are no such processes: on Windows."""

    name = "python"
    parallel = 1

    def __init__(self, handle: Callable[[Email], object]) -> None:
        self._handle = handle

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Call the function with the record of each message."""
        for message in batch:
            self._handle(message.email)

    def ping(self) -> None:
        """Do nothing: only a call shows whether the function works."""


class RemoteError(Exception):
    """What the function raised in its process; `frames` is its stack."""

    def __init__(self, frames: str) -> None:
        super().__init__()
        self.frames = frames


def _error(function: str, kind: str, text: str, seconds: float | None, frames: str) -> EmailIngestionError:
    """Make the error here that the function raised there."""
    if not kind:
        error: EmailIngestionError = SinkFailed(f"{function} failed: {text}")
    elif kind == "Retry":
        error = errors.Retry(text, seconds)
    elif kind == "SinkThrottled":
        error = errors.SinkThrottled(text, seconds or 0.0)
    else:
        error = getattr(errors, kind)(text)
    error.__cause__ = RemoteError(frames)
    return error
