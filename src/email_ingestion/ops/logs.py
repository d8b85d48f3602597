"""Sets up logging: one JSON object per line in the process's file, a copy on stderr; it logs nothing but crashes.

Our own records (structlog) and the records of libraries (stdlib logging, from WARNING up) share one formatter.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from email_ingestion.atomic_files import unwritable
from email_ingestion.file_modes import share_with_group
from email_ingestion.ops.log_aggregation import RepeatLimiter
from email_ingestion.ops.redaction import error_type, redact_field, safe_traceback
from email_ingestion.ops.status_records import Identity

if "rich" in sys.modules:  # a command that draws tables
    import structlog
else:  # structlog would take rich for its tracebacks, which are not ours: 4 MB and 0.1 s
    sys.modules["rich"] = None  # type: ignore[assignment]  # the import system's mark for a missing module
    try:
        import structlog
    finally:
        del sys.modules["rich"]

ROOT = "email_ingestion"
_OURS = "email_ingestion:"  # marks the handlers installed here, so that a second call replaces them only
_OWN_FIELDS = ("timestamp", "level", "event", "component", "instance", "pid", "logger")
Record = MutableMapping[str, Any]
Count = Callable[[str], None]
FLOOD_SECONDS = 30.0
LEFT_OUT = "left_out"  # of a record: how many like it were left out before


def configure_logs(
    identity: Identity,
    log_dir: Path,
    level: str = "INFO",
    log_format: Literal["json", "console"] | None = None,
    count: Count | None = None,
    *,
    echo: bool = True,
) -> None:
    """Log to `log_dir` and, with `echo`, to stderr from now on, uncaught exceptions included.

    `count` is called with the level of every record. `log_format` is the format on stderr: by default console on a
    terminal and JSON otherwise. A stderr that was redirected into a file of `log_dir` gets none. Raises
    ConfigurationError when the directory cannot be written.
    """
    record_format = _RecordFormat(identity)
    file = _open_log_file(log_dir, f"{identity.stem}.log")
    floods = _LibraryFloods()
    handlers = [_named("file", file, _formatter(record_format, console=False))]
    if echo and not _is_in(log_dir):
        handlers.append(
            _named("echo", logging.StreamHandler(), _formatter(record_format, console=_on_console(log_format)))
        )
    if count:
        handlers.append(_named("count", _CountingHandler(count)))
    for handler in handlers:
        handler.addFilter(floods)
    _install(handlers, level)
    _configure_structlog()
    _report_crashes()


def reopen_logs() -> None:
    """Close the log file and open it by its name, after a rotation for instance."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogFile):
            handler.reopen()


class LogLevel:
    """The minimum level that is logged: the configured one, or another one for a limited time."""

    def __init__(self, configured: str) -> None:
        self._configured = configured
        self._lock = threading.Lock()
        self._end: threading.Timer | None = None

    @property
    def current(self) -> str:
        """The level in force."""
        return logging.getLevelName(logging.getLogger(ROOT).getEffectiveLevel())

    def configure(self, level: str) -> None:
        """Make `level` the configured one, in force from now on, or from the end of another one that is set."""
        with self._lock:
            self._configured = level
            if not (self._end and self._end.is_alive()):
                logging.getLogger(ROOT).setLevel(level)

    def set_for(self, level: str, seconds: float) -> None:
        """Log from `level` up for `seconds`, then return to the configured level."""
        with self._lock:
            if self._end:
                self._end.cancel()
            logging.getLogger(ROOT).setLevel(level)
            self._end = threading.Timer(seconds, lambda: logging.getLogger(ROOT).setLevel(self._configured))
            self._end.daemon = True
            self._end.start()


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger `email_ingestion.<name>`."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(f"{ROOT}.{name}")
    return bound


def _on_console(log_format: str | None) -> bool:
    return log_format == "console" or (log_format is None and sys.stderr.isatty())


def _is_in(log_dir: Path) -> bool:
    """Whether stderr is a log file of ours, or its companion for what is no record."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
        files = [path for kind in ("*.log", "*.stderr") for path in log_dir.glob(kind)]
        return any(os.path.samestat(path.stat(), stderr) for path in files)
    except (OSError, ValueError, AttributeError):  # no stderr, or one that is no file
        return False


def are_configured() -> bool:
    """Return whether `configure_logs` was called."""
    return any((handler.name or "").startswith(_OURS) for handler in logging.getLogger().handlers)


def _open_log_file(log_dir: Path, name: str) -> _LogFile:
    try:
        return _LogFile(log_dir / name)
    except OSError as error:
        raise unwritable(log_dir / name, error, "set LOG_DIR to a directory this user may write") from error


class _LogFile(WatchedFileHandler):
    """Appends, and follows a rotation by rename; a full disk or a vanished directory never reaches a loop."""

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        super().__init__(path, encoding="utf-8")

    def _open(self) -> Any:
        self._directory.mkdir(parents=True, exist_ok=True)
        stream = super()._open()
        share_with_group(Path(self.baseFilename))
        return stream

    def reopen(self) -> None:
        """Open the file again; where that is impossible the old one stays."""
        with self.lock or nullcontext(), suppress(OSError):
            stream, old = self._open(), self.stream
            self.stream = stream
            self._statstream()
            if old:
                old.close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


class _CountingHandler(logging.Handler):
    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def emit(self, record: logging.LogRecord) -> None:
        self._count(record.levelname)


class _LibraryFloods(logging.Filter):
    """Lets the same record of a library through once in FLOOD_SECONDS, with the number of those left out meanwhile.

    A caller of the ops port makes uvicorn warn with every request. Our own records are limited where events are logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._limiter = RepeatLimiter(FLOOD_SECONDS, time.monotonic)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith(ROOT):
            return True
        if LEFT_OUT not in record.__dict__:  # decided once for all handlers
            error = _error(record.exc_info)
            text = record.getMessage() if record.name == "py.warnings" else str(record.msg)
            record.__dict__[LEFT_OUT] = self._limiter.allow((record.name, record.lineno, text, type(error)))
        return record.__dict__[LEFT_OUT] is not None


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


def _formatter(record_format: _RecordFormat, *, console: bool) -> logging.Formatter:
    render = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    processors: list[Any] = [record_format, _for_people, render] if console else [record_format, render]
    return structlog.stdlib.ProcessorFormatter(processors=processors)


def _for_people(_logger: object, _method: str, event: Record) -> Record:
    """Replace control characters, which JSON escapes: who wrote to us must not write to a terminal."""
    return {name: _printable(value) if isinstance(value, str) else value for name, value in event.items()}


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text).replace("\n", "\n    ")


class _RecordFormat:
    """Gives every record, ours or a library's, the same fields, and redacts what is confidential."""

    def __init__(self, identity: Identity) -> None:
        self._who = {"component": identity.component, "instance": identity.instance}

    def __call__(self, _logger: object, _method: str, event: Record) -> Record:
        record: logging.LogRecord = event.pop("_record")
        own = event.pop("_from_structlog")
        error = _error(event.pop("exc_info", None))
        if error:
            event = {"error_type": error_type(error), **event, "exception": safe_traceback(error)}
        message = event.pop("event")
        if not own and record.name.startswith("opentelemetry."):
            message = str(record.msg)  # what it fills in may be the headers that open the collector
        fields = {key: redact_field(key, value) for key, value in event.items() if key not in _OWN_FIELDS}
        return {
            "timestamp": _iso(record.created),
            "level": record.levelname,
            "event": redact_field("event", message),
            **self._who,
            "pid": record.process,
            **({} if own else {"logger": record.name}),
            **({"suppressed": record.__dict__[LEFT_OUT]} if record.__dict__.get(LEFT_OUT) else {}),
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
    sys.unraisablehook = _not_raised


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger("process").critical("process_crashed", exc_info=error, thread=threading.current_thread().name)


def _thread_crashed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else None
        logger("process").critical("thread_crashed", exc_info=args.exc_value, thread=name)


def _not_raised(failure: sys.UnraisableHookArgs) -> None:
    """Log an exception that has no caller, such as one of a finalizer."""
    if failure.exc_value:
        place = failure.err_msg or "exception ignored"
        logger("process").error("exception_ignored", exc_info=failure.exc_value, place=f"{place}: {failure.object!r}")
