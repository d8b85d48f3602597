"""Sets up logging: one JSON object per line in the process's file, an echo on stderr; says nothing itself but crashes.

Our own records (structlog) and those of libraries (stdlib logging, from WARNING up) leave through the same formatter.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.lean import structlog
from email_ingestion.ops.records import Identity
from email_ingestion.ops.wording import error_type, redact_field, stack

ROOT = "email_ingestion"
_OURS = "email_ingestion:"  # marks the handlers installed here, so that a second call replaces them only
_OWN_FIELDS = ("timestamp", "level", "event", "component", "instance", "pid", "logger")
Record = MutableMapping[str, Any]
Count = Callable[[str], None]


def configure_logs(
    identity: Identity,
    log_dir: Path,
    level: str = "INFO",
    log_format: Literal["json", "console"] | None = None,
    count: Count | None = None,
) -> None:
    """Log to `log_dir` and stderr from now on; uncaught exceptions too. `count` is told the level of every record.

    `log_format` says what stderr shows: by default console on a terminal, JSON otherwise. Raises ConfigurationError
    when the directory cannot be written.
    """
    shape = _Shape(identity)
    file = _open(log_dir, f"{identity.stem}.log")
    handlers = [_named("file", file, _formatter(shape, console=False))]
    if not _is_stderr(file):
        handlers.append(_named("echo", logging.StreamHandler(), _formatter(shape, console=_on_console(log_format))))
    if count:
        handlers.append(_named("count", _Tally(count)))
    _install(handlers, level)
    _configure_structlog()
    _report_crashes()


class LogLevel:
    """The least level that is written: the configured one, or for a while another."""

    def __init__(self, configured: str) -> None:
        self._configured = configured
        self._lock = threading.Lock()
        self._end: threading.Timer | None = None

    @property
    def now(self) -> str:
        """The level that holds."""
        return logging.getLevelName(logging.getLogger(ROOT).getEffectiveLevel())

    def hold(self, level: str, seconds: float) -> None:
        """Write from `level` up for so long."""
        with self._lock:
            if self._end:
                self._end.cancel()
            logging.getLogger(ROOT).setLevel(level)
            self._end = threading.Timer(seconds, logging.getLogger(ROOT).setLevel, (self._configured,))
            self._end.daemon = True
            self._end.start()


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger under ours; `name` ends its dotted name."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(f"{ROOT}.{name}")
    return bound


def _on_console(log_format: str | None) -> bool:
    return log_format == "console" or (log_format is None and sys.stderr.isatty())


def _is_stderr(file: _LogFile) -> bool:
    """Whether stderr was redirected into the log file, so that the traces of native crashes land there too."""
    try:
        return file.stream is not None and os.path.sameopenfile(file.stream.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):  # no stderr, or one that is no file
        return False


def _open(log_dir: Path, name: str) -> _LogFile:
    try:
        return _LogFile(log_dir / name)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write logs to {log_dir}: {error.strerror}; set LOG_DIR to a directory this user may write"
        ) from error


class _LogFile(WatchedFileHandler):
    """Appends, and follows a rotation by rename; a full disk or a vanished directory never reaches a loop."""

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        super().__init__(path, encoding="utf-8")

    def _open(self) -> Any:
        self._directory.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


class _Tally(logging.Handler):
    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def emit(self, record: logging.LogRecord) -> None:
        self._count(record.levelname)


def _named(name: str, handler: logging.Handler, formatter: logging.Formatter | None = None) -> logging.Handler:
    handler.set_name(_OURS + name)
    handler.setFormatter(formatter)
    return handler


def _install(handlers: list[logging.Handler], level: str) -> None:
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if (handler.name or "").startswith(_OURS)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level)
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fill stderr with tracebacks


def _configure_structlog() -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _formatter(shape: _Shape, *, console: bool) -> logging.Formatter:
    render = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    return structlog.stdlib.ProcessorFormatter(processors=[shape, render])


class _Shape:
    """Makes every record, ours or a library's, the same object: who, when, what, and nothing confidential."""

    def __init__(self, identity: Identity) -> None:
        self._who = {"component": identity.component, "instance": identity.instance}

    def __call__(self, _logger: object, _method: str, event: Record) -> Record:
        record: logging.LogRecord = event.pop("_record")
        own = event.pop("_from_structlog")
        error = _error(event.pop("exc_info", None))
        if error:
            event = {"error_type": error_type(error), **event, "exception": stack(error)}
        said = event.pop("event")
        fields = {key: redact_field(key, value) for key, value in event.items() if key not in _OWN_FIELDS}
        return {
            "timestamp": _iso(record.created),
            "level": record.levelname,
            "event": redact_field("event", said),
            **self._who,
            "pid": record.process,
            **({} if own else {"logger": record.name}),
            **fields,
        }


def _error(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _report_crashes() -> None:
    sys.excepthook = _crashed
    threading.excepthook = _thread_crashed


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger("process").critical("process_crashed", exc_info=error, thread=threading.current_thread().name)


def _thread_crashed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else None
        logger("process").critical("thread_crashed", exc_info=args.exc_value, thread=name)
