"""Parse in a separate process, so that a message which crashes, exhausts or stalls the parser ends only that process.

The process starts when it is first needed, and again after it died. One thread uses it; any may call `interrupt`.
"""

from __future__ import annotations

import sys

from email_ingestion.child_process import ChildProcess
from email_ingestion.errors import ParserDied
from email_ingestion.parsing import parse
from email_ingestion.records import Email, Envelope

START_SECONDS = 30.0


class IsolatedParser:
    """Parses batches in a child process; `timeout` is the maximum time of a batch, in seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._child = ChildProcess("email_ingestion.parsing.parser_process")
        self._started = False

    def parse(self, batch: list[tuple[Envelope, bytes]]) -> list[Email]:
        """Return the records of a batch, and empty the list: large messages are not kept beside their records.

        Raises ParserDied when a message ended the parser process or took too long.
        """
        if sys.platform == "win32":  # no socket can be handed to a child there
            return [parse(*batch.pop(0)) for _ in range(len(batch))]
        try:
            if not self._started:
                self._child.start([], START_SECONDS)  # the answer comes when it is up: no parsing time
                self._started = True
            records: list[Email] = self._child.ask(batch, self._timeout, batch.clear)
        except TimeoutError as error:
            self.close()
            raise ParserDied(f"parsing took longer than {self._timeout:.0f} s") from error
        except (OSError, EOFError) as error:
            code = self.close()
            raise ParserDied(f"the parser process died with {code}") from error
        return records

    def interrupt(self) -> None:
        """Make a running `parse` raise ParserDied at once; safe from any thread."""
        self._child.kill()

    def close(self) -> int | None:
        """End the process and return its exit code, negative for a signal; None when none was running."""
        self._started = False
        return self._child.close()
