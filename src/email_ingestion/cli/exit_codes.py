"""Runs a command and exits: with its exit code, and with an error as one sentence on stderr.

0 ok, 1 negative answer, 2 failed, 64 usage, 78 bad configuration, 130 interrupted, 141 nobody read on. A negative
answer is "there is none" of a command that looks for something, and "not all is well" of one that asks for that. A
mistake of the operator never shows a traceback.
"""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import typer

from email_ingestion.cli.output import printable_lines
from email_ingestion.errors import (
    ConfigurationError,
    DiskFull,
    EmailIngestionError,
    RedisConnectionError,
    is_shortage,
    is_thread_shortage,
)
from email_ingestion.file_modes import use_private_umask
from email_ingestion.interrupts import INTERRUPTED, SENTENCE, end_when_interrupted, raise_when_interrupted
from email_ingestion.ops.redaction import describe_unforeseen
from email_ingestion.process_limits import describe_thread_limits
from email_ingestion.shipped_files import as_typed_here

REDIS_REFUSES = "Redis does not serve"
REDIS_REMEDY = "see that Redis runs and that REDIS_URL or REDIS_HOST and REDIS_PORT name it"
OnFailure = Callable[[Exception, str, int], None]
OK, NEGATIVE, FAILED, USAGE, CONFIGURATION = 0, 1, 2, 64, 78
# What a folder or file says that is not as a program needs it, such as a home that only root may write.
REFUSED_FILES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
PYDANTIC = "Value error, "  # typer checks values with it since a version, and says so
READER_GONE = 141  # 128 and SIGPIPE, as a shell has it for `… | head -1`

# typer carries its own copy of click and does not publish this class, the parent of every wrong use.
UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


def run(
    function: Callable[..., Any],
    on_failure: OnFailure = lambda _error, _sentence, _code: None,
    *,
    crashes: bool = False,
) -> NoReturn:
    """Run one function as a whole program, as `scripts/backup.py` does; the arguments are those of `leave`."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(function)
    leave(typer.main.get_command(program), on_failure, crashes=crashes)


def leave(
    command: Any, on_failure: OnFailure = lambda _error, _sentence, _code: None, *, crashes: bool = False
) -> NoReturn:
    """Run a command and exit with its code; before it fails, call `on_failure` with the error, a sentence, the code.

    With `crashes`, an error that nobody foresaw is raised: a process that is to be started again must not end with the
    code of one that only an operator can help.
    """
    use_private_umask()
    _speak_utf8()
    # Else the interpreter looks for garbage at its end, in all that was imported, for a fifth of a second.
    atexit.register(gc.freeze)
    sys.exit(_write_out(_run(command, on_failure, crashes=crashes)))


def _run(command: Any, on_failure: OnFailure, *, crashes: bool) -> int:
    try:
        raise_when_interrupted()
        code = command.main(standalone_mode=False)
        end_when_interrupted()
    except UsageError as error:
        on_failure(error, error.format_message(), USAGE)
        error.message = error.message.replace(PYDANTIC, "")
        with suppress(OSError):
            error.show()
        return USAGE
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer ends with 1 then, which would be an answer
            return READER_GONE
        raise
    except (typer.Abort, KeyboardInterrupt):
        end_when_interrupted()  # who presses it again does not wait for threads that still end
        code = INTERRUPTED
    except EmailIngestionError as error:
        sentence = _sentence(error)
        on_failure(error, sentence, exit_code_of(error))
        _tell(sentence)
        return exit_code_of(error)
    except Exception as error:
        if crashes and not is_shortage(error):
            raise
        sentence = _sentence_of_others(error)
        on_failure(error, sentence, FAILED)
        _tell(sentence)
        return FAILED
    if code == INTERRUPTED:
        _tell(SENTENCE)
    return code if isinstance(code, int) else OK


def _write_out(code: int) -> int:
    """Write what still waits to be written and return the exit code: that of a failure where an answer was not whole.

    The interpreter would do it at its end, and say that it ignores an exception.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # nor does the interpreter try again
            if stream is sys.stdout and code in {OK, NEGATIVE}:
                code = READER_GONE if isinstance(error, BrokenPipeError) else FAILED
                if code == FAILED:
                    _tell(_sentence_of_others(error))
    return code


def _tell(sentence: str) -> None:
    with suppress(OSError):  # a file on a full disk: the exit code says it too
        typer.echo(as_typed_here(sentence), err=True)


def exit_code_of(error: EmailIngestionError) -> int:
    """Return the exit code of a failure: 78 where a setting or a right is wrong, else 2."""
    wrong_setting = isinstance(error, ConfigurationError) and not isinstance(error, DiskFull)
    return CONFIGURATION if wrong_setting else FAILED


def _speak_utf8() -> None:
    """Let no letter of a word or a mail end a command, whatever the locale of the terminal can say.

    A word in UTF-8 that the locale cannot read would be looked for as something else: then Python is started anew.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8" or " ".join(sys.argv).isascii():
        return
    try:
        b"".join(map(os.fsencode, sys.argv)).decode()
    except UnicodeError:
        return  # nor is it UTF-8
    if any("\udc80" <= letter <= "\udcff" for word in sys.argv for letter in word):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - itself


def _sentence_of_others(error: Exception) -> str:
    """Return what to say of an error that is none of ours."""
    if is_thread_shortage(error):
        return f"no thread can be started ({describe_thread_limits()})."
    if is_shortage(error):
        return f"this machine or a limit (`ulimit -a`) leaves too little to go on: {error}."
    if isinstance(error, OSError) and error.filename and error.errno in REFUSED_FILES:
        return f"cannot use {os.fsdecode(error.filename)}: {error.strerror}."
    nobody = "which nobody foresaw: please report it with the command and its words"
    return f"{describe_unforeseen(error)}, {nobody}."


def redis_remedy(text: str) -> str:
    """Return what to do about an error of Redis; nothing where the text says so itself.

    One that answers, and refuses, does run and is named.
    """
    if not text.startswith(REDIS_REFUSES):
        return REDIS_REMEDY
    return "" if "email-ingestion doctor" in text else "`email-ingestion doctor` says what to do about it"


def _sentence(error: EmailIngestionError) -> str:
    text = str(error).strip()
    if isinstance(error, RedisConnectionError) and (remedy := redis_remedy(text)):
        text = f"{text.rstrip('.')}; {remedy}"
    text = printable_lines(text)  # a server's words, or a name, may be in it
    return text if text.endswith((".", "!", "?")) else f"{text}."
