"""The parser process: receives batches of raw messages on the socket of its parent, and sends records back.

It ends when its worker does, also amid a message. A message that crashes it or exhausts its memory harms no other
process.
"""

from __future__ import annotations

import signal
import sys

from msgspec.msgpack import Decoder

import email_ingestion.parsing.record  # noqa: F401 - now, and not in the time of the first message
from email_ingestion.child_process import connect_to_parent, detach_contents, killed_with_parent, receive, send
from email_ingestion.parsing import parse
from email_ingestion.records import Email, Envelope

try:
    import resource
except ImportError:  # Windows, where the parser runs inside the worker
    resource = None  # type: ignore[assignment]

ADDRESS_SPACE = 4 * 1024**3  # bytes, for libraries are mapped too
DATA = 500 * 1024**2  # bytes of memory; above them a hostile message gets a MemoryError
LARGE_MESSAGE = 10  # times the size of its batch, for one that is large by itself


class _TooSlow(BaseException):
    """The time of a message is over; no `except Exception` of a parser keeps it."""


def main() -> None:
    """Serve until the worker is gone."""
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
    for name in (signal.SIGINT, signal.SIGTERM, hangup):  # Ctrl-C reaches the whole group: the worker decides
        signal.signal(name, signal.SIG_IGN)
    if resource:
        signal.signal(signal.SIGALRM, _time_is_over)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold somebody's mail
    requests = Decoder(tuple[float, list[Envelope]])
    with connect_to_parent() as worker:
        while True:
            try:
                (seconds, envelopes), raws = receive(worker, requests)
            except (EOFError, OSError):
                return
            _limit_memory(raws)
            with killed_with_parent(worker):
                emails = [_parse_within(seconds, envelope, raw) for envelope, raw in zip(envelopes, raws, strict=True)]
            del raws
            send(worker, *detach_contents(emails))
            del emails


def _limit_memory(raws: list[bytes]) -> None:
    if resource and sys.platform == "linux":
        size = sum(map(len, raws))
        resource.setrlimit(resource.RLIMIT_DATA, (max(DATA, LARGE_MESSAGE * size), ADDRESS_SPACE))


def _parse_within(seconds: float, envelope: Envelope, raw: bytes) -> Email | None:
    """Parse one message; None when it takes longer than `seconds`, which 0 does not limit."""
    if not seconds:
        return parse(envelope, raw)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return parse(envelope, raw)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TooSlow:
        return None


def _time_is_over(_signal: int, _frame: object) -> None:
    raise _TooSlow


if __name__ == "__main__":
    main()
