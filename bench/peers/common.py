"""What every peer does with a message, and how it says that it is done. Runs in the peer's own environment.

A peer is a script with two commands, `fill` and `work`; its messages are raw bytes in the fastest form it takes.
"""

from __future__ import annotations

import email
import email.policy
import json
import os
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator


def letters(path: str, most: int) -> Iterator[bytes]:
    """The corpus, see `bench.corpus_file`; that is not importable here."""
    with open(path, "rb") as file:
        for _ in range(most):
            yield file.read(struct.unpack(">I", file.read(4))[0])


def standard(raw: bytes) -> int:
    """What a handler does that wants the contents: Python's own parser, the four fields, and every part decoded."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    found = [message["subject"], message["from"], message["to"], message["date"]]
    found += [part.get_payload(decode=True) for part in message.walk() if not part.is_multipart()]
    return len(found)


def ours(raw: bytes) -> int:
    """The same record as our worker makes."""
    from datetime import UTC, datetime  # noqa: PLC0415 - only where it is asked for

    from email_ingestion.parsing import parse  # noqa: PLC0415
    from email_ingestion.records import Envelope  # noqa: PLC0415

    envelope = Envelope("bench", "INBOX", 1, 1, None, None, (), (), datetime.now(UTC), len(raw), "0" * 64)
    return len(parse(envelope, raw).headers)


class Count:
    """Counts handled messages and ends the process with one line of JSON when all are there."""

    def __init__(self, wanted: int, parser: str) -> None:
        self._parse: Callable[[bytes], int] = {"standard": standard, "ours": ours}[parser]
        self._wanted = wanted
        self._lock = threading.Lock()
        self._done = 0
        self._since = 0.0
        self._cpu = 0.0

    def __call__(self, raw: bytes) -> None:
        """Handle one."""
        if not self._since:
            self._since, self._cpu = time.monotonic(), _cpu()
        self._parse(raw)
        with self._lock:
            self._done += 1
            if self._done == self._wanted:
                # The marks of the last ones are still on their way: that much is in the peer's favour.
                took = {"seconds": time.monotonic() - self._since, "cpu": _cpu() - self._cpu}
                os.write(1, (json.dumps(took) + "\n").encode())
                os._exit(0)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(fill: Callable[[str, Iterator[bytes]], None], work: Callable[[str, Count], None]) -> None:
    """Do what the command line says: `fill|work REDIS_URL CORPUS COUNT PARSER`."""
    sys.path += os.environ.get("BENCH_PATH", "").split(os.pathsep)
    command, url, corpus, count, parser = sys.argv[1:6]
    if command == "fill":
        fill(url, letters(corpus, int(count)))
    else:
        work(url, Count(int(count), parser))
