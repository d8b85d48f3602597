"""The parser process: receives batches of raw messages on the socket of its parent, and sends records back.

It ends when its worker does. A message that crashes it or exhausts its memory harms no other process.
"""

from __future__ import annotations

import signal

import email_ingestion.parsing.record  # noqa: F401 - now, and not in the time of the first message
from email_ingestion.child_process import connect_to_parent, receive, send
from email_ingestion.parsing import parse

try:
    import resource
except ImportError:  # Windows, where the parser runs inside the worker
    resource = None  # type: ignore[assignment]

ADDRESS_SPACE = 4 * 1024**3  # bytes; above them a hostile message gets a MemoryError


def main() -> None:
    """Serve until the worker is gone."""
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
    for name in (signal.SIGINT, signal.SIGTERM, hangup):  # Ctrl-C reaches the whole group: the worker decides
        signal.signal(name, signal.SIG_IGN)
    if resource:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold somebody's mail
    with connect_to_parent() as worker:
        while True:
            try:
                batch = receive(worker)
            except (EOFError, OSError):
                return
            send(worker, [parse(envelope, raw) for envelope, raw in batch])


if __name__ == "__main__":
    main()
