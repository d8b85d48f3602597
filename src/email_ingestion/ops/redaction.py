"""Makes errors and texts safe to log and to show: without addresses, tokens and mail content.

A foreign exception may quote the data it choked on (SQLAlchemy its parameters, PostgreSQL the failing row, KeyError
the key), so its text is withheld unless its class never quotes data. Redaction is the net under that.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from email_ingestion import errors
from email_ingestion.settings import mask_url

PACKAGE = "email_ingestion"
WITHHELD = "text withheld, it may quote a message"
_QUOTABLE = (
    errors.EmailIngestionError,
    OSError,
    ImportError,
    AttributeError,
    NameError,
    TypeError,
    MemoryError,
    RecursionError,
)
# The names that the runbooks grep for: a subclass is described together with its parent of this list.
_RUNBOOK_NAMES = (
    errors.RedisConnectionError,
    errors.IMAPConnectionError,
    errors.OAuth2AuthenticationError,
    errors.TokenRefreshError,
    errors.CircuitBreakerError,
)

_SECRET_KEYS = re.compile(
    r"(?i)^(subject|body|text|html|.*headers?|.*(password|passwd|secret|authorization|api[_-]?key|private_key|cookie)"
    r"|.*_token|token)$"
)
# Linear in the length of the text: a repetition without a limit is possessive (it gives nothing back to try it
# otherwise), and none can begin at many places of the same run. A test holds to it.
_TOKENS = (
    (re.compile(r"://(?:[^\s/@]*+@)++"), "://<credentials>@"),
    (re.compile(r"\bya29\.[\w.~+/-]++"), "<token>"),
    (re.compile(r"\b1//[\w-]{16,}+"), "<token>"),
    (re.compile(r"\bGOCSPX-[\w-]++"), "<token>"),
    (re.compile(r"(?<![\w-])eyJ[\w-]{8,}+\.[\w-]++\.[\w-]*+"), "<token>"),
    (re.compile(r"\bdXNlcj[0-3][\w+/]++=*+"), "<token>"),  # base64 of "user=…", what XOAUTH2 sends
    (re.compile(r"(?i)\bbearer\s++(?!<)[^\s\"',}\x01]++"), "Bearer <token>"),
)
_SEPARATOR = r"([\"']?\s*+[:=]\s*+[\"']?|[\"'],\s*+[\"']|%3D)"
_VALUE = r"(?!<|Bearer\s)[^\s\"'&,}]++"
_ASSIGNED = (
    (re.compile(r"(?i)(\bOTEL_EXPORTER_OTLP_(?:TRACES_)?HEADERS)(\s*+[:=]\s*+)\S++"), r"\1\2<secret>"),
    (
        re.compile(
            r"(?i)((?:access|refresh|id)[_-]token|client_secret|password|passwd|passphrase|authorization|api[_-]?key"
            rf"|secret_access_key|private_key|honeycomb-team){_SEPARATOR}((?:basic|digest|token|apikey)\s++)?{_VALUE}"
        ),
        r"\1\2<secret>",
    ),
    (re.compile(rf"(?i)\b(token|secret|signature)(=|[\"']\s*+[:=]\s*+[\"'])(){_VALUE}"), r"\1\2<secret>"),
    (re.compile(r"(?i)(\bwith url: )\S++"), r"\1<path>"),  # of urllib3, for the address of a hook or a collector
)
_URL = re.compile(r"(?i)(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,30}+://[^\s<>\"'`]++")
_SERVER_WORDS = re.compile(f'({re.escape(errors.SERVER_SAYS)}[^"]*")')
# Anchored at the start of a word, so that a long word without "@" costs one pass and not one per character.
_DELIMITERS = r"\s<>\"`,;:=()\[\]{}|"
_ADDRESS = re.compile(rf"(?:\"[^\"\n]{{1,64}}\"|(?<![^{_DELIMITERS}])[^{_DELIMITERS}@]+)@[^{_DELIMITERS}@']+")


def redact(text: str) -> str:
    """Return `text` without anything that looks like an address, a token or a password.

    What a server said (`errors.quote_server`) may speak of passwords and name pages with help: of that only addresses
    and tokens are masked.
    """
    if errors.SERVER_SAYS not in text:
        return _masked_fully(text)
    pieces = _SERVER_WORDS.split(text)
    return "".join(
        _masked(piece, _TOKENS) if number % 2 else _masked_fully(piece) for number, piece in enumerate(pieces)
    )


def _masked_fully(text: str) -> str:
    if "://" in text:
        text = _URL.sub(lambda found: mask_url(found[0]), text)
    return _masked(text, (*_TOKENS, *_ASSIGNED))


def _masked(text: str, patterns: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in patterns:
        text = pattern.sub(replacement, text)
    return _ADDRESS.sub("<address>", text) if "@" in text else text


def redact_field(key: str, value: Any) -> Any:
    """Return a value for JSON, redacted at every depth; a field named after a secret or mail content is masked."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if _SECRET_KEYS.match(key):
        return "<redacted>"
    if isinstance(value, Mapping):
        return {str(name): redact_field(str(name), item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_field(key, item) for item in value]
    return redact(str(value))


def error_type(error: BaseException) -> str:
    """Return the class name of an error."""
    return type(error).__name__


def describe_error(error: BaseException) -> str:
    """Return the class name of an error and its safe text, on one line."""
    parents = [parent.__name__ for parent in _RUNBOOK_NAMES if isinstance(error, parent) and type(error) is not parent]
    if isinstance(error, errors.AuthenticationFailed) and not isinstance(error, errors.OAuth2AuthenticationError):
        parents.append(errors.IMAPConnectionError.__name__)  # a runbook greps for this name when a password is refused
    kind = f"{error_type(error)} ({', '.join(parents)})" if parents else error_type(error)
    return f"{kind}: {safe_text(error)}"


def safe_text(error: BaseException) -> str:
    """Return the text of an error if its class never quotes mail, else a placeholder."""
    return redact(" ".join(str(error).split())) if isinstance(error, _QUOTABLE) else WITHHELD


def describe_unforeseen(error: BaseException) -> str:
    """Return the class of an error that nobody foresaw and where it was raised, `KeyError at mailbox/x.py:12`.

    Where a library raised it, the place in our code that called it follows.
    """
    frames = [f"{_short(frame.filename)}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    ours = [frame for frame in frames if not frame.startswith("<")]
    if not ours:
        return error_type(error)
    place, called = ours[-1], next((each for each in reversed(ours) if each.startswith(PACKAGE)), None)
    return f"{error_type(error)} at {place}" + (f", called at {called}" if called and called != place else "")


def _short(path: str) -> str:
    """Return the part of a path that is the same on every machine."""
    parts = path.replace("\\", "/").split("/")
    for root in (PACKAGE, "site-packages"):
        if root in parts:
            position = len(parts) - 1 - parts[::-1].index(root)
            return "/".join(parts[position + (root == "site-packages") :])
    return "/".join(parts[-2:])


def safe_traceback(error: BaseException) -> str:
    """Return the tracebacks of an error and of its causes, the oldest first, without unsafe texts."""
    return "\n".join(_traceback_of(link) for link in reversed(list(_chain(error))))


def _traceback_of(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"Traceback (most recent call last):\n{frames}{describe_error(error)}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
