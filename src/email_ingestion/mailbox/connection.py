"""The conversation with one IMAP server: connect, log in, speak, hear, hang up. What is said is `imap`'s business.

Errors come out as ours (`imap_errors` says which): after an IMAPConnectionError the object is only good for `close`.
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

import imapclient
from imapclient.exceptions import IMAPClientError, LoginError

from email_ingestion.errors import IMAPConnectionError
from email_ingestion.mailbox.imap_errors import translate, translate_login
from email_ingestion.mailbox.meter import Meter
from email_ingestion.mailbox.pipelining import Ahead
from email_ingestion.mailbox.responses import Responses
from email_ingestion.settings import Account

CONNECT_SECONDS = 10.0
ACTIVITY_BYTES = 64 * 1024
_FAREWELL = re.compile(rb"^\* BYE ([^\r\n]*)\r\n", re.MULTILINE)


class ImapConnection:
    """Belongs to one thread, but for what is said to be for any."""

    def __init__(self, account: Account, timeout: float) -> None:
        """Connect; `timeout` is the longest silence in seconds. Raises IMAPConnectionError."""
        self._account = account
        self._since = time.monotonic()
        with _translated("connect to"):
            self._client = imapclient.IMAPClient(
                account.imap_host,
                account.imap_port,
                ssl=account.imap_tls,
                ssl_context=ssl.create_default_context() if account.imap_tls else None,
                timeout=imapclient.SocketTimeout(connect=CONNECT_SECONDS, read=timeout),
            )
        self._alarm, self._snooze = socket.socketpair()
        # imaplib sends a command in pieces: Nagle's algorithm would hold each back for the server's delayed ACK.
        self._client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(self._client.socket())
        self._client.normalise_times = False
        # imapclient runs imaplib at debug level 5, which repr()s every message: three times the cost of a fetch.
        self._client._imap.debug = 0  # noqa: SLF001 - there is no public way
        self._meter = Meter(self._client._imap)  # noqa: SLF001 - likewise
        Responses(self._client._imap)  # noqa: SLF001 - likewise
        self._ahead = Ahead(self._client._imap)  # noqa: SLF001 - likewise

    @property
    def received_bytes(self) -> int:
        """Bytes that came from the server so far."""
        return self._meter.received

    @property
    def activity(self) -> int:
        """Rises with every command that ends, and with what comes; not with a byte now and then."""
        return self._meter.commands + self._meter.received // ACTIVITY_BYTES

    @property
    def throttle_delay(self) -> float:
        """Seconds that are waited before each command, because the server asks for it."""
        return self._meter.pace

    @property
    def age(self) -> float:
        """Seconds since it was connected."""
        return time.monotonic() - self._since

    def login(self, token: str | None) -> None:
        """Log in by XOAUTH2 with `token`, or by password without one.

        Raises AuthenticationFailed or one of its kind when the credentials are refused, else IMAPConnectionError.
        """
        with self._command("log in to"):
            challenges: list[bytes] = []
            try:
                if token is None:
                    self._client.login(self._account.imap_user, self._account.imap_password or "")
                else:
                    self._client.sasl_login("XOAUTH2", _xoauth2(self._account.imap_user, token, challenges))
            except LoginError as error:
                if isinstance(error.__context__, self._client.AbortError):
                    raise IMAPConnectionError(f"the IMAP server broke off the login: {error}") from error
                raise translate_login(error, challenges, oauth2=token is not None) from error
            self._client.capabilities()  # the list after login replaces the one before
            if self._client.has_capability("ID"):
                self._client.id_({"name": "email-ingestion"})

    @property
    def is_gmail(self) -> bool:
        """Whether the server has X-GM-EXT-1."""
        return bool(self._client.has_capability("X-GM-EXT-1"))

    def noop(self) -> None:
        """Show the server that we are there."""
        with self._command("keep alive"):
            self._client.noop()

    def close(self) -> None:
        """Log out if that is quick; never raises."""
        with suppress(Exception):
            self._client.socket().settimeout(1.0)
            self._client.logout()
        with suppress(Exception):
            self._client.shutdown()
        self._alarm.close()
        self._snooze.close()

    def interrupt(self) -> None:
        """End whatever is waited for now; from any thread."""
        with suppress(OSError):
            self._alarm.send(b"!")

    def abort(self) -> None:
        """End whatever goes on, with an error in the thread it goes on in; from any thread."""
        self.interrupt()
        with suppress(Exception):
            self._client.socket().shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _command(self, doing: str, *, alone: bool = True) -> Iterator[None]:
        """Keep to the pace the server asks for, and translate what goes wrong inside.

        What runs `alone` waits for the end of everything before it.
        """
        with self._reading(doing):
            if self._meter.pace:
                self._until_audible([], self._meter.pace)
            if alone:
                self._ahead.end()
            try:
                yield
            finally:
                self._meter.settle()

    @contextmanager
    def _reading(self, doing: str) -> Iterator[None]:
        with _translated(doing):
            try:
                yield
            except OSError:
                self._raise_bye()
                raise

    def _raise_bye(self) -> None:
        """A server that says BYE and closes may be cut short by the reset that our next word provokes."""
        with suppress(OSError, ValueError, AttributeError):
            farewell = _FAREWELL.search(self._peek())
            if farewell:
                raise self._client.AbortError(farewell[1].decode("ascii", "replace"))

    def _until_audible(self, sources: list[Any], seconds: float) -> None:
        with selectors.DefaultSelector() as waiting:  # select() itself ends at 1,024 descriptors
            for source in (*sources, self._snooze):
                waiting.register(source, selectors.EVENT_READ)
            waiting.select(seconds)

    def _peek(self) -> bytes:
        """What came from the server but was not read by imaplib yet."""
        imap, sock = self._client._imap, self._client.socket()  # noqa: SLF001 - imaplib's buffer is the point here
        reader = getattr(imap, "_file", None) or imap.file
        timeout = sock.gettimeout()
        sock.settimeout(0)
        try:
            return bytes(reader.peek(1))
        except OSError:  # TLS has nothing complete to give
            return b""
        finally:
            sock.settimeout(timeout)

    @contextmanager
    def _answering(self, seconds: float) -> Iterator[None]:
        """Take a server for dead that says nothing for `seconds`, sooner than usual."""
        sock = self._client.socket()
        usual = sock.gettimeout()
        sock.settimeout(min(seconds, usual or seconds))
        yield
        sock.settimeout(usual)


def _keep_alive(sock: socket.socket) -> None:
    """Have the system find a vanished peer within 50 s: a NAT in between forgets us without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 50_000)):
        if hasattr(socket, name):  # each system has some of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _xoauth2(user: str, token: str, challenges: list[bytes]) -> Any:
    """The SASL conversation; an error challenge is kept for its JSON and answered by an empty line."""

    def respond(challenge: bytes) -> str | bytes:
        if not challenge:
            return f"user={user}\x01auth=Bearer {token}\x01\x01"
        challenges.append(challenge)
        return b""

    return respond


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Make what goes wrong inside one of ours."""
    try:
        yield
    except IMAPClientError as error:
        raise translate(error, doing) from error
    except (ssl.SSLError, OSError, EOFError) as error:
        reason = str(error) or type(error).__name__
        raise IMAPConnectionError(f"cannot {doing} the IMAP server: {reason}") from error
