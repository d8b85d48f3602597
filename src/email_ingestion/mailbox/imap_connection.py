"""The connection to one IMAP server: connect, log in, keep alive, interrupt, hang up. `imap_mailbox` reads mail on it.

Every error comes out as one of ours (`imap_errors`): after an IMAPConnectionError the object is only good for `close`.
"""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from imapclient.exceptions import IMAPClientError, LoginError

from email_ingestion.certificates import explain_tls_error
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.mailbox.imap4 import Client, LiteralTooLong
from email_ingestion.mailbox.imap_errors import MessageTooLong, translate, translate_login
from email_ingestion.mailbox.pipelining import FetchPipeline
from email_ingestion.settings import Account

ACTIVITY_BYTES = 64 * 1024
_BYE = re.compile(rb"^\* BYE ([^\r\n]*)\r\n", re.MULTILINE)


class ImapConnection:
    """A connection for one thread; other threads may call only `interrupt` and `abort`, and read its properties."""

    def __init__(self, account: Account, timeout: float) -> None:
        """Connect; `timeout` is the longest silence in seconds. Raises IMAPConnectionError."""
        self._account = account
        self._connected_at = time.monotonic()
        with _translated_errors("connect to", (account.imap_host, account.imap_port)):
            self._client = Client(account.imap_host, account.imap_port, tls=account.imap_tls, read_timeout=timeout)
        self._imap4 = self._client.imap4
        self._pipeline = FetchPipeline(self._imap4)
        self._wakeup, self._wakeup_sender = socket.socketpair()
        # imaplib sends a command in pieces: Nagle's algorithm would hold each back for the server's delayed ACK.
        self._client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _enable_keepalive(self._client.socket())

    @property
    def received_bytes(self) -> int:
        """Bytes that came from the server so far."""
        return self._imap4.received_bytes

    @property
    def sent_commands(self) -> int:
        """How many commands were sent so far."""
        return self._imap4.sent_commands

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
        return bool(self._client.has_capability("X-GM-EXT-1"))

    def login(self, token: str | None) -> None:
        """Log in by XOAUTH2 with `token`, or by password without one.

        Raises AuthenticationFailed or a subclass when the credentials are refused, else IMAPConnectionError.
        """
        with self._command("log in to"):
            challenges: list[bytes] = []
            try:
                if token is None:
                    self._client.login(self._account.imap_user, self._account.imap_password or "")
                else:
                    self._client.sasl_login("XOAUTH2", _xoauth2_responder(self._account.imap_user, token, challenges))
            except LoginError as error:
                if isinstance(error.__context__, self._client.AbortError):
                    raise IMAPConnectionError(f"the IMAP server broke off the login: {error}") from error
                raise translate_login(error, challenges, oauth2=token is not None) from error
            self._client.capabilities()  # the list after login replaces the one before
            if self._client.has_capability("ID"):
                self._client.id_({"name": "email-ingestion"})

    def noop(self) -> None:
        """Keep the session alive."""
        with self._command("keep alive"):
            self._client.noop()

    def close(self) -> None:
        """Log out if that is quick; never raises."""
        with suppress(Exception):
            self._client.socket().settimeout(1.0)
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
        with _translated_errors(action):
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

    def _wait_readable(self, sources: list[Any], timeout: float) -> None:
        """Wait until one of `sources` can be read, `interrupt` is called, or `timeout` seconds are over."""
        with selectors.DefaultSelector() as selector:  # select() itself ends at 1,024 descriptors
            for source in (*sources, self._wakeup):
                selector.register(source, selectors.EVENT_READ)
            selector.select(timeout)

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


def _xoauth2_responder(user: str, token: str, challenges: list[bytes]) -> Any:
    """Return the SASL callback; it adds an error challenge (JSON) to `challenges` and answers it with an empty line."""

    def respond(challenge: bytes) -> str | bytes:
        if not challenge:
            return f"user={user}\x01auth=Bearer {token}\x01\x01"
        challenges.append(challenge)
        return b""

    return respond


@contextmanager
def _translated_errors(action: str, server: tuple[str, int] | None = None) -> Iterator[None]:
    """Raise errors of imaplib and the socket as ours; with `server` also say what is wrong with its certificate."""
    try:
        yield
    except LiteralTooLong as error:
        raise MessageTooLong(str(error), error.uid) from error
    except IMAPClientError as error:
        raise translate(error, action) from error
    except (ssl.SSLError, OSError, EOFError) as error:
        reason = (server and explain_tls_error(error, *server)) or str(error) or type(error).__name__
        raise IMAPConnectionError(f"cannot {action} the IMAP server: {reason}") from error
