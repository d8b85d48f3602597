"""Waiting for new mail: IDLE (RFC 2177) where the server has it and it works, else a pause that the caller chooses.

    + idling                          the server announces mail from now on
    * OK … before it, or during it    nothing new: go on
    NO, BAD, or an end at once        IDLE is done without for the rest of the session

Not imapclient's idle_check: it misses an EXISTS in the segment of `+ idling`, loses a split line, and spins on a dead
socket.
"""

from __future__ import annotations

import time

from imapclient.exceptions import IMAPClientAbortError, IMAPClientError

from email_ingestion.errors import quote_server
from email_ingestion.mailbox.imap_connection import ImapConnection
from email_ingestion.mailbox.imap_errors import is_refusal

IDLE = "IDLE"
IDLE_DONE_SECONDS = 15.0  # the end of an IDLE costs a server nothing: one that takes longer is gone
IDLE_BEGIN_SECONDS = 8.0  # a server that does not answer IDLE itself leaves new mail unannounced so long
SHORTEST_IDLE_SECONDS = 1.0  # a server that ends it sooner, unasked, would be asked again without an end
NEWS = frozenset(["EXISTS", "EXPUNGE", "VANISHED", "BYE"])  # after which there is something to do


class WaitingConnection(ImapConnection):
    """A connection that can wait for new mail."""

    @property
    def can_idle(self) -> bool:
        """Whether `wait` returns as soon as there is news; else it only pauses."""
        return self._has(IDLE) and IDLE not in self.refused

    def wait(self, seconds: float, max_silence: float = IDLE_DONE_SECONDS) -> None:
        """Return when the server announces something, after `seconds`, or on `interrupt`; list UIDs in each case.

        A server that does not answer the end of the wait for `max_silence` seconds is gone. Returns at once when the
        server turns out to have no IDLE: look at `can_idle` again.
        """
        with self._command("wait for"):
            if self._pop_announcement():
                return
            max_silence = min(max_silence, IDLE_DONE_SECONDS)
            if self.can_idle:
                self._idle(seconds, max_silence)
                return
            self._wait_readable([], seconds)
            with self.limited_silence(max_silence):
                self._imap4.run("NOOP")

    def _idle(self, seconds: float, max_silence: float) -> None:
        started = time.monotonic()
        try:
            with self.limited_silence(min(max_silence, IDLE_BEGIN_SECONDS)):
                tag = self._try(IDLE, self._imap4.begin_idle)
            if tag is None:
                self.do_without(IDLE, "the IMAP server ends an IDLE at once")
                return
            ended = self._await_news(tag, started + seconds)
            with self.limited_silence(max_silence):
                self._imap4.end_idle(tag)
        except IMAPClientAbortError:
            raise
        except IMAPClientError as error:
            if not is_refusal(error):
                raise
            self.do_without(IDLE, f"the IMAP server ends an IDLE oddly: {quote_server(str(error))}")
            return
        if ended and time.monotonic() - started < min(seconds, SHORTEST_IDLE_SECONDS):
            self.do_without(IDLE, "the IMAP server ends an IDLE at once")

    def _await_news(self, tag: object, deadline: float) -> bool:
        """Wait for news, the deadline or `interrupt`; return whether the server ended the IDLE unasked."""
        while not NEWS & self._imap4.untagged_responses.keys():
            if not self._imap4.peek():
                left = deadline - time.monotonic()
                if left <= 0 or not self._wait_readable([self._client.socket()], left):
                    return False
                self._raise_bye()
                if not self._imap4.peek():  # closed, or TLS alone: the end of the IDLE tells
                    return False
            with self.limited_silence(IDLE_DONE_SECONDS):
                if self._imap4.has_ended(tag):
                    return True
        return False

    def _pop_announcement(self) -> bool:
        """Whether new mail was announced, in passing, in the response to another command; true only once."""
        return bool(self._imap4.untagged_responses.pop("EXISTS", None))
