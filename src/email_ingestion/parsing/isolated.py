"""Parse in a separate process, so that a message which crashes, exhausts or stalls the parser ends only that process.

The process starts when it is first needed, and again after it died. One thread uses it; any may call `interrupt`.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress

from email_ingestion.errors import ParserDied
from email_ingestion.parsing import parse
from email_ingestion.parsing.parser_channel import receive, send
from email_ingestion.records import Email, Envelope

START_SECONDS = 30.0


class IsolatedParser:
    """Parses batches in a child process; `timeout` is the maximum time of a batch, in seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def parse(self, batch: list[tuple[Envelope, bytes]]) -> list[Email]:
        """Return the records of a batch, and empty the list: large messages are not kept beside their records.

        Raises ParserDied when a message ended the parser process or took too long.
        """
        if sys.platform == "win32":  # no socket can be a child's standard input there
            return [parse(*batch.pop(0)) for _ in range(len(batch))]
        try:
            connection = self._connected()
            send(connection, batch)
            batch.clear()
            records: list[Email] = receive(connection)
        except TimeoutError as error:
            self.close()
            raise ParserDied(f"parsing took longer than {self._timeout:.0f} s") from error
        except (OSError, EOFError) as error:
            code = self.close()
            raise ParserDied(f"the parser process died with {code}") from error
        return records

    def interrupt(self) -> None:
        """Make a running `parse` raise ParserDied at once; safe from any thread."""
        child = self._child
        if child:
            child.kill()

    def close(self) -> int | None:
        """End the process and return its exit code, negative for a signal; None when none was running."""
        if self._socket:
            self._socket.close()
            self._socket = None
        if not self._child:
            return None
        child, self._child = self._child, None
        with suppress(subprocess.TimeoutExpired):
            return child.wait(0.2)  # it sees that we hung up, or is dead already: then the code says why
        child.kill()
        return child.wait()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-m", "email_ingestion.parsing.parser_process"]
                self._child = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
            self._socket = ours
            ours.settimeout(START_SECONDS)
            send(ours, [])  # the answer says that it is up, which must not count as parsing time
            receive(ours)
            ours.settimeout(self._timeout)
        return self._socket
