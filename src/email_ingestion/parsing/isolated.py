"""Parse in a separate process, so that a message which crashes, exhausts or stalls the parser ends only that process.

The process starts when it is first needed, and again after it died. One thread uses it; any may call `interrupt`.

A message is at fault only when the parser works without it: a system with no process, descriptor or memory to spare
ends the parser over any message. So after the end over a single message the parser must parse an empty one; and a
process that was killed from outside, such as by the kernel out of memory, gets the message once more first.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime

from email_ingestion.child_process import ChildProcess, attach_contents
from email_ingestion.errors import ParserDied, ParserUnavailable
from email_ingestion.parsing import parse
from email_ingestion.records import Email, Envelope

START_SECONDS = 30.0
# Of an answer, in bytes: what the memory that the parser may have holds, for a batch of so many bytes.
ANSWER_BYTES, ANSWER_SHARE = 500 * 1024**2, 10
PROBE = Envelope(
    account="probe",
    mailbox="INBOX",
    uidvalidity=1,
    uid=1,
    gm_msgid=None,
    gm_thrid=None,
    labels=(),
    flags=(),
    internaldate=datetime(2000, 1, 1, tzinfo=UTC),
    size=2,
    sha256="",
)


class IsolatedParser:
    """Parses batches in a child process; `timeout` is the maximum time of a batch, in seconds."""

    def twin(self) -> IsolatedParser:
        """Return another one with a process of its own."""
        return IsolatedParser(self._timeout)

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._child = ChildProcess("email_ingestion.parsing.parser_process", answer=list[Email | None])
        self._interrupted = False

    def parse(self, batch: list[tuple[Envelope, bytes]]) -> list[Email]:
        """Return the records of a batch, and empty the list: large messages are not kept beside their records.

        Raises ParserDied when a message ended the parser process or took too long, ParserUnavailable when no message
        is at fault.
        """
        return [email for email in self.parse_within(0.0, batch) if email]

    def parse_within(self, seconds: float, batch: list[tuple[Envelope, bytes]]) -> list[Email | None]:
        """Do the same, with None for each message that takes longer than `seconds`; with 0 none does.

        Raises ParserDied when a message ended the parser process or took too long, ParserUnavailable when no message
        is at fault.
        """
        if sys.platform == "win32":  # no socket can be handed to a child there
            return [parse(*batch.pop(0)) for _ in range(len(batch))]
        self._interrupted = False
        if len(batch) != 1:
            return self._parse(batch, seconds)
        alone = list(batch)
        try:
            return self._parse(batch, seconds)
        except ParserDied as error:
            if self._interrupted:
                raise
            self.check()
            if error.exit_code != -signal.SIGKILL:
                raise
        return self._parse(alone, seconds)

    def check(self) -> None:
        """Return when the parser parses an empty message. Raises ParserUnavailable."""
        try:
            self._parse([(PROBE, b"\r\n")], 0.0)
        except ParserDied as error:
            raise ParserUnavailable(f"{error}, over an empty message: {_ADVICE}") from error

    def interrupt(self) -> None:
        """Make a running `parse` raise ParserDied at once; safe from any thread."""
        self._interrupted = True
        with suppress(OSError):
            self._child.kill()

    def close(self) -> int | None:
        """End the process and return its exit code, negative for a signal; None when none was running."""
        return self._child.close()

    def _parse(self, batch: list[tuple[Envelope, bytes]], seconds: float) -> list[Email | None]:
        self._start()
        envelopes, raws = [envelope for envelope, _ in batch], [raw for _, raw in batch]
        batch.clear()
        limit = max(ANSWER_BYTES, ANSWER_SHARE * sum(map(len, raws)))
        try:
            answer, contents = self._child.ask((seconds, envelopes), self._timeout, limit, raws, raws.clear)
            return _checked(attach_contents(answer, contents), envelopes)
        except TimeoutError as error:
            self.close()
            raise ParserDied(f"parsing took longer than {self._timeout:.0f} s") from error
        except (OSError, EOFError, ValueError) as error:
            code = self.close()
            raise ParserDied(f"the parser process died with {code}", code) from error

    def _start(self) -> None:
        """Start the process unless it is there; its answer comes when it is up, for that is no parsing time."""
        if self._child.is_running():
            return
        try:
            self._child.start((0.0, []), START_SECONDS, ANSWER_BYTES)
        except (OSError, EOFError) as error:
            code = self.close()
            if self._interrupted:
                raise ParserDied(f"the parser process was ended with {code}", code) from error
            why = str(error) if code is None else f"it ended with {code}"
            raise ParserUnavailable(f"the parser process cannot be started ({why}): {_ADVICE}") from error


def _checked(records: list[Email | None], envelopes: list[Envelope]) -> list[Email | None]:
    """Return the records if they are of these messages; raises EOFError or ValueError when they are of others."""
    if any(record and record.envelope != envelope for record, envelope in zip(records, envelopes, strict=True)):
        raise EOFError("the parser answered for other messages")
    return records


_ADVICE = "look for limits of processes, open files and memory (ulimit -a, the container's limits, dmesg)"
