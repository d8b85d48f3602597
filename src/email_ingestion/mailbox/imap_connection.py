"""The connection to one IMAP server: connect, log in, keep alive, interrupt, hang up. `imap_mailbox` reads mail on it.

A command that mail can be read without (ID, IDLE, LIST RETURN) is done without for the rest of the session when the
server refuses it, whatever it advertises: `refused` names it.

Every error comes out as one of ours (`imap_errors`): after an IMAPConnectionError the object is only good for `close`.
"""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from imapclient.exceptions import IMAPClientAbortError, IMAPClientError

from email_ingestion import __version__
from email_ingestion.certificates import explain_tls_error
from email_ingestion.errors import EmailIngestionError, IMAPConnectionError, quote_server
from email_ingestion.mailbox.authentication import log_in
from email_ingestion.mailbox.greeting import explain_failure
from email_ingestion.mailbox.imap4 import Client, LiteralTooLong
from email_ingestion.mailbox.imap_errors import MessageTooLong, hide_names, is_refusal, translate
from email_ingestion.mailbox.pipelining import FetchPipeline
from email_ingestion.settings import Account

T = TypeVar("T")

ACTIVITY_BYTES = 64 * 1024
WAKEUP_BYTES = 4096  # of interrupts at once
LOGIN_SECONDS = 45.0  # in all; a socket's time-out is about its silence alone
LOGOUT_SECONDS = 1.0
_BYE = re.compile(rb"^\* BYE ([^\r\n]*)\r\n", re.MULTILINE)


class ImapConnection:
    """A connection for one thread; other threads may call only `interrupt` and `abort`, and read its properties."""

    def __init__(self, account: Account, timeout: float) -> None:
        """Connect; `timeout` is the longest silence in seconds. Raises IMAPConnectionError."""
        self._account = account
        self._connected_at = time.monotonic()
        self._names: tuple[str, ...] = (account.imap_user, account.imap_password or "")  # not to be quoted
        self.refused: dict[str, str] = {}  # what the server said, by the command that is done without
        self.attempting = ""  # such a command, while its answer is awaited
        with self._translated_errors("connect to"):
            self._client = self._open(account, timeout)
        self._imap4 = self._client.imap4
        self._capabilities = {word.upper() for word in self._imap4.capabilities}
        self._pipeline = FetchPipeline(self._imap4)
        self._wakeup, self._wakeup_sender = socket.socketpair()
        # imaplib sends a command in pieces: Nagle's algorithm would hold each back for the server's delayed ACK.
        self._client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _enable_keepalive(self._client.socket())

    def _open(self, account: Account, timeout: float) -> Client:
        try:
            return Client(account.imap_host, account.imap_port, tls=account.imap_tls, read_timeout=timeout)
        except (IMAPClientError, OSError) as error:
            known = explain_failure(error, account.imap_host, account.imap_port, tls=account.imap_tls)
            if known:
                raise known from error
            if why := explain_tls_error(error, account.imap_host, account.imap_port):
                raise IMAPConnectionError(f"cannot connect to the IMAP server: {why}") from error
            raise

    @property
    def received_bytes(self) -> int:
        """Bytes that came from the server so far."""
        return self._imap4.received_bytes

    @property
    def sent_commands(self) -> int:
        """How many commands were sent so far."""
        return self._imap4.sent_commands

    @property
    def awaited_answer(self) -> int | None:
        """The number of the answer that is being read at this moment, None while none is."""
        return self._imap4.finished_commands + 1 if self._imap4.is_reading else None

    @property
    def activity(self) -> int:
        """A number that rises with every finished command and every 64 KiB received, but not with single bytes."""
        return self._imap4.finished_commands + self._imap4.received_bytes // ACTIVITY_BYTES

    @property
    def throttle_delay(self) -> float:
        """Seconds to wait before each command, because the server asks for it."""
        return self._imap4.throttle_delay

    @property
    def age(self) -> float:
        """Seconds since the connection was made."""
        return time.monotonic() - self._connected_at

    @property
    def is_gmail(self) -> bool:
        """Whether the server has Gmail's extension X-GM-EXT-1."""
        return self._has("X-GM-EXT-1")

    def take_alerts(self) -> list[str]:
        """Return what the server wants its user told (RFC 3501, section 7.1), each text once."""
        alerts, self._imap4.alerts = self._imap4.alerts, []
        return [hide_names(quote_server(text), self._names) for text in alerts]

    def do_without(self, command: str, why: str) -> None:
        """Do not use an optional command in this session."""
        self.refused.setdefault(command, hide_names(why, self._names))

    def login(self, token: str | None) -> None:
        """Log in by XOAUTH2 with `token`, or by password without one.

        Raises AuthenticationFailed or a subclass when the credentials are refused, else IMAPConnectionError.
        """
        self._names = (*self._names, token or "")
        with self._command("log in to"), self._imap4.limited_time(LOGIN_SECONDS):
            log_in(self._imap4, self._account.imap_user, self._account.imap_password or "", token)
            self._read_capabilities()
            if self._has("ID"):
                self._identify()

    def _read_capabilities(self) -> None:
        """Read the list after the login, which replaces the one before."""
        self._capabilities = {word.upper() for word in self._imap4.capabilities}
        found = self._try("CAPABILITY", self._imap4.ask_capabilities)
        if found:
            self._capabilities = set(found)

    def _identify(self) -> None:
        """Tell which program this is (RFC 2971); some servers let only those in that do."""
        words = f'"name" "email-ingestion" "version" "{__version__}" "vendor" "email-ingestion"'
        self._try("ID", lambda: self._imap4.run("ID", f"({words})"))

    def _has(self, capability: str) -> bool:
        return capability in self._capabilities

    def _try(self, command: str, run: Callable[[], T]) -> T | None:
        """Return what an optional command returns; None when the server refuses it, which it is asked only once."""
        if command in self.refused:
            return None
        self.attempting = command
        try:
            result = run()
        except IMAPClientAbortError:
            raise
        except IMAPClientError as error:
            if not is_refusal(error):
                raise
            self.do_without(command, str(translate(error, f"use {command} of")))
            result = None
        self.attempting = ""
        return result

    def noop(self) -> None:
        """Keep the session alive."""
        with self._command("keep alive"):
            self._imap4.run("NOOP")

    def close(self) -> None:
        """Log out if that is quick; never raises."""
        with suppress(Exception), self._imap4.limited_time(LOGOUT_SECONDS):
            self._client.logout()
        with suppress(Exception):
            self._client.shutdown()
        self._wakeup.close()
        self._wakeup_sender.close()

    def interrupt(self) -> None:
        """End a `wait` that goes on in another thread."""
        with suppress(OSError):
            self._wakeup_sender.send(b"!")

    def abort(self) -> None:
        """Break the connection, so that the thread which uses it gets an error."""
        self.interrupt()
        with suppress(Exception):
            self._client.socket().shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _command(self, action: str, *, drain: bool = True) -> Iterator[None]:
        """Run a command inside: wait as long as the server asks for, and translate errors.

        Pipelined FETCH commands are finished first, unless `drain` is false. `action` completes the error message
        "cannot … the IMAP server".
        """
        with self._reading(action):
            if self._imap4.throttle_delay:
                self._wait_readable([], self._imap4.throttle_delay)
            if drain:
                self._pipeline.drain()
                self._imap4.begin_answer()
            try:
                yield
            finally:
                self._imap4.finish_command()

    @contextmanager
    def _reading(self, action: str) -> Iterator[None]:
        """Translate errors; a BYE that was received but not read explains a broken connection."""
        with self._translated_errors(action):
            try:
                yield
            except OSError:
                self._raise_bye()
                raise

    def _raise_bye(self) -> None:
        """Raise `AbortError` when the unread bytes hold a BYE.

        A server that says BYE and closes answers our next bytes with a reset, which comes before the BYE is read.
        """
        with suppress(OSError, ValueError, AttributeError):
            bye = _BYE.search(self._imap4.peek())
            if bye:
                raise self._client.AbortError(bye[1].decode("ascii", "replace"))

    @contextmanager
    def _translated_errors(self, action: str) -> Iterator[None]:
        """Raise errors of imaplib and the socket as ours, without the login name and the secrets of the account."""
        try:
            yield
        except LiteralTooLong as error:
            raise MessageTooLong(str(error), error.uid) from error
        except IMAPClientError as error:
            raise self._hidden(translate(error, action)) from error
        except (ssl.SSLError, OSError, EOFError) as error:
            reason = str(error) or type(error).__name__
            raise IMAPConnectionError(f"cannot {action} the IMAP server: {reason}") from error
        except EmailIngestionError as error:
            self._hidden(error)
            raise

    def _hidden(self, error: EmailIngestionError) -> EmailIngestionError:
        error.args = (hide_names(str(error), self._names), *error.args[1:])
        return error

    def _wait_readable(self, sources: list[Any], timeout: float) -> bool:
        """Wait until one of `sources` can be read, for at most `timeout` seconds; False when not, or on `interrupt`."""
        with selectors.DefaultSelector() as selector:  # select() itself ends at 1,024 descriptors
            for source in (*sources, self._wakeup):
                selector.register(source, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(timeout)]
        if self._wakeup in ready:
            self._wakeup.recv(WAKEUP_BYTES)  # the next wait begins anew
            return False
        return bool(ready)

    @contextmanager
    def limited_silence(self, seconds: float) -> Iterator[None]:
        """Allow the server at most `seconds` of silence inside, if it would be allowed more."""
        sock = self._client.socket()
        default = sock.gettimeout()
        sock.settimeout(min(seconds, default or seconds))
        yield
        sock.settimeout(default)


def _enable_keepalive(sock: socket.socket) -> None:
    """Have the system find a vanished peer within 50 s: a NAT in between forgets a connection without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 50_000)):
        if hasattr(socket, name):  # each system has some of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
