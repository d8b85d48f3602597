"""imaplib's IMAP4 with what this project adds: fast reading of FETCH responses, a traffic meter, pipelined commands.

imapclient creates its protocol object in one method, which `Client` overrides. No other file calls imaplib's private
methods.
"""

from __future__ import annotations

import imaplib
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import imapclient

from email_ingestion.errors import IMAPProtocolViolation
from email_ingestion.mailbox.response_lines import (
    announced_literal,
    as_imaplib_reads,
    count_after,
    find_alert,
    find_set,
    find_uid,
    is_blank,
    is_throttled,
    with_line_end,
)

CONNECT_SECONDS = 10.0
FIRST_DELAY_SECONDS = 0.05  # doubled by every throttled command, halved by every other one, as Dovecot's imapc does
LONGEST_DELAY_SECONDS = 16.0
SLICE_BYTES = 64 * 1024
# A server may send so much in answer to a command, with what it says in passing; bodies asked for come on top.
ANSWER_BYTES = 8 * 1024 * 1024
BODIES_BYTES = 8 * 1024 * 1024  # of all bodies that one command asks for, beside the largest one: 1 MiB was announced
LINE_BYTES = 128  # counted for each line besides its length: in memory even an empty one takes so much
MAX_ALERTS = 10

_KEPT_RESPONSES = {"EXISTS", "CAPABILITY", "BYE"}
_FETCH = re.compile(rb"\* (\d+) FETCH (\(.*)\r\n", re.DOTALL)
_ATOM = re.compile(r"[A-Za-z0-9@._+-]+")
_QUOTABLE = re.compile(r"[ -~]*")


class LiteralTooLong(Exception):  # of its own: imaplib makes another `abort` of those it meets
    """The server began a literal that is longer than all that was asked for; nothing of it was read."""

    def __init__(self, size: int, limit: int, uid: int | None) -> None:
        super().__init__(f"the IMAP server sends {size:,} bytes where {limit:,} are the most that was asked for")
        self.size = size
        self.uid = uid


class UnexpectedGreeting(imaplib.IMAP4.abort):
    """What answers does not greet as an IMAP server; `greeting` is its first line, or the beginning of a long one."""

    def __init__(self, greeting: bytes) -> None:
        super().__init__(f"unexpected response: {greeting[:200]!r}")
        self.greeting = greeting


class Imap4(imaplib.IMAP4):
    """One connection, with TLS where `ssl_context` is given.

    Methods raise imaplib's `error` and `abort`, OSError, and IMAPProtocolViolation where there is no end to an answer.
    """

    # imaplib's own takes numbers of any length, and no `{5+}`.
    Literal = re.compile(rb".*{(?P<size>\d{1,18})\+?}$", re.ASCII | re.DOTALL)

    def __init__(self, host: str, port: int, ssl_context: ssl.SSLContext | None) -> None:
        self.received_bytes = 0
        self.finished_commands = 0
        self.sent_commands = 0
        self.is_reading = False  # it waits for bytes of the server at this moment
        self.throttle_delay = 0.0  # seconds to wait before the next command
        self.exists = 0  # messages in the mailbox that is open
        self.alerts: list[str] = []  # what the server wants its user told, and nobody has taken yet
        self._throttled = False
        self._ssl_context = ssl_context
        self._unread_line = b""
        self._longest_literal: int | None = None  # bytes, of a FETCH response; None: any
        self._asked = "the connection"  # or the last command
        self._counted_bytes = 0  # received, with LINE_BYTES for each line
        self._expected_bytes = ANSWER_BYTES  # since the answer began, at most
        self._max_counted_bytes = ANSWER_BYTES  # since the connection was made
        super().__init__(host, port, CONNECT_SECONDS)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        sock: socket.socket = super()._create_socket(timeout)  # type: ignore[misc]  # typeshed leaves it out
        return self._ssl_context.wrap_socket(sock, server_hostname=self.host) if self._ssl_context else sock

    def begin_answer(self) -> None:
        """Let the server send as much as an answer without bodies may have; nothing else is under way."""
        self._expected_bytes = ANSWER_BYTES
        self._max_counted_bytes = self._counted_bytes + ANSWER_BYTES

    def expect_bodies(self, count: int, max_bytes: int) -> None:
        """Let the server send `count` bodies more, of at most `max_bytes` each, and of far less all together."""
        size = min(count * max_bytes, max_bytes + BODIES_BYTES)
        self._expected_bytes += size
        self._max_counted_bytes += size

    def _command(self, name: str, *arguments: Any) -> Any:
        self.sent_commands += 1
        self._asked = f"UID {arguments[0]}" if name == "UID" else name
        return super()._command(name, *arguments)  # type: ignore[misc]  # typeshed leaves it out

    def _connect(self) -> None:
        """Read the greeting, which imaplib understands only from an IMAP server."""
        greeting = self._read_line_with_text()
        if greeting and not greeting.startswith(b"* "):
            raise UnexpectedGreeting(greeting)
        self._unread_line = greeting
        super()._connect()  # type: ignore[misc]  # typeshed leaves it out

    def _get_capabilities(self) -> None:
        """Read the list; imaplib knows no server that is of IMAP4rev2 alone, which answers all that we ask."""
        super()._get_capabilities()  # type: ignore[misc]  # typeshed leaves it out
        if "IMAP4REV2" in self.capabilities and "IMAP4REV1" not in self.capabilities:
            self.capabilities = (*self.capabilities, "IMAP4REV1")

    def log_in(self, user: str, password: str) -> None:
        """Run LOGIN. Raises `error` when it is refused.

        Strings that cannot be quoted are sent as literals, which the server must have asked for (RFC 3501, 4.3).
        """
        if _QUOTABLE.fullmatch(user + password):
            name = user if _ATOM.fullmatch(user) else _quoted(user)
            tag = self._command("LOGIN", name, _quoted(password))
        else:
            tag = self._send_literals("LOGIN", user.encode(), password.encode())
        answer: Any = self._command_complete("LOGIN", tag)
        if answer[0] != "OK":
            raise self.error(answer[1][-1])
        self.state = "AUTH"

    def log_in_plain(self, user: str, password: str) -> None:
        """Run AUTHENTICATE PLAIN, in UTF-8 (RFC 4616). Raises `error` when it is refused."""
        self.authenticate("PLAIN", lambda _: f"\0{user}\0{password}".encode())

    def _send_literals(self, name: str, *arguments: bytes) -> Any:
        """Send a command whose arguments are literals, each when the server asks for it; return its tag."""
        self.sent_commands += 1
        self._asked = name
        tag = self._new_tag()
        line = b"%b %b" % (tag, name.encode())
        for argument in arguments:
            self.send(b"%b {%d}\r\n" % (line, len(argument)))
            if not self.await_continuation(tag):
                return tag
            line = argument
        self.send(line + b"\r\n")
        return tag

    def await_continuation(self, tag: Any) -> bool:
        """Read responses until the server asks to go on; False when the command ended instead."""
        while self._get_response() is not None:
            if self.tagged_commands[tag]:
                return False
            self._check_bye()
        return True

    def begin_idle(self) -> Any:
        """Start an IDLE and return its tag; None when the server ends it at once, which `error` explains if refused."""
        tag = self.send_command("IDLE")
        if self.await_continuation(tag):
            return tag
        self._check("IDLE", self.tagged_commands.pop(tag))
        return None

    def has_ended(self, tag: Any) -> bool:
        """Read what came meanwhile, and tell whether a command has ended."""
        while not self.tagged_commands[tag] and self.peek():
            self.receive_response()
        return bool(self.tagged_commands[tag])

    def end_idle(self, tag: Any) -> None:
        """End an IDLE, unless the server did. Raises `error` when it did not end well."""
        if not self.has_ended(tag):
            self.send(b"DONE\r\n")
        while not self.tagged_commands[tag]:
            self.receive_response()
        self._check("IDLE", self.tagged_commands.pop(tag))

    def finish_command(self) -> None:
        """Count a command that is over, and choose the delay before the next one.

        Gmail asks for slower commands at the end of a tagged response's text, which imapclient shows to nobody:
        `A2 OK Success [THROTTLED]`.
        """
        self.finished_commands += 1
        for name in self.untagged_responses.keys() - _KEPT_RESPONSES:  # said in passing: nobody asks for it later
            del self.untagged_responses[name]
        if self._throttled:
            self.throttle_delay = min(LONGEST_DELAY_SECONDS, self.throttle_delay * 2 or FIRST_DELAY_SECONDS)
        elif self.throttle_delay:
            self.throttle_delay = self.throttle_delay / 2 if self.throttle_delay > FIRST_DELAY_SECONDS else 0.0
        self._throttled = False

    def _check(self, name: str, answer: Any) -> None:
        status, data = answer
        if status != "OK":
            raise self.error(f"{name} failed: {status} {(data[-1] or b'').decode('utf-8', 'replace')}")

    def list_mailboxes(self, name: str, *options: str, pattern: str = "*") -> list[Any]:
        """Run LIST or XLIST, for all mailboxes, and return its unparsed responses. Raises `error` when refused."""
        self.untagged_responses.pop(name, None)
        self.run(name, '""', _quoted(pattern), *options)
        responses: list[Any] = self.untagged_responses.pop(name, [])
        return responses

    def examine(self, mailbox: bytes) -> None:
        """Open a mailbox read-only, by the bytes of its name. Raises `error` when it is refused.

        What the server tells of it is in `untagged_responses`.
        """
        self.untagged_responses = {}
        self.is_readonly = True
        name = mailbox.decode("latin-1")
        if _QUOTABLE.fullmatch(name):
            tag = self._command("EXAMINE", _quoted(name))
        else:
            tag = self._send_literals("EXAMINE", mailbox)
        answer = self._command_complete("EXAMINE", tag)
        self.state = "SELECTED" if answer[0] == "OK" else "AUTH"
        self._check("EXAMINE", answer)

    def status_of(self, mailbox: bytes, items: str = "(UIDVALIDITY UIDNEXT)") -> bytes:
        """Run STATUS for what EXAMINE may leave out; return the unparsed response. Raises `error` when refused."""
        if not _QUOTABLE.fullmatch(mailbox.decode("latin-1")):
            return b""
        self.untagged_responses.pop("STATUS", None)
        self.run("STATUS", _quoted(mailbox.decode("latin-1")), items)
        found = self.untagged_responses.pop("STATUS", [])
        return b" ".join(part for each in found for part in (each if isinstance(each, tuple) else (each,)) if part)

    def run(self, name: str, *arguments: str) -> None:
        """Run a command whose data nobody needs. Raises `error` when it is refused."""
        self._check(name, self._command_complete(name, self.send_command(name, *arguments)))

    def enable_extension(self, capability: str) -> bool:
        """Run ENABLE (RFC 5161); return whether the server says that it did so. Raises `error` when it is refused."""
        self.untagged_responses.pop("ENABLED", None)
        self.run("ENABLE", capability)
        responses = self.untagged_responses.pop("ENABLED", [])
        enabled = b" ".join(line for line in responses if isinstance(line, bytes))
        return capability.encode() in enabled.upper().split()

    def uid_fetch(self, uid_set: str, *arguments: str) -> list[Any]:
        """Run UID FETCH and return its unparsed responses. Raises `error` on NO; what came before stays untagged."""
        status, data = self._command_complete("FETCH", self.send_command("UID", "FETCH", uid_set, *arguments))
        if status != "OK":
            raise self.error(f"fetch failed: {data[0].decode('ascii', 'replace')}")
        return self.pop_fetch_responses()

    def uid_search(self, *criteria: str) -> tuple[list[Any], bytes]:
        """Run UID SEARCH and return its responses, of which a server may send several, and the text behind OK.

        Servers of IMAP4rev2 send ESEARCH (RFC 9051, section 7.3.4); of it only the set of messages is returned.
        """
        self.untagged_responses.pop("SEARCH", None)
        self.untagged_responses.pop("ESEARCH", None)
        status, data = self._command_complete("SEARCH", self.send_command("UID", "SEARCH", *criteria))
        if status != "OK":
            raise self.error(f"search failed: {data[0].decode('ascii', 'replace')}")
        extended = self.untagged_responses.pop("ESEARCH", [])
        sets = [found for found in map(find_set, extended) if found]
        return [*self.untagged_responses.pop("SEARCH", []), *sets], data[0] or b""

    def pop_vanished(self) -> list[bytes]:
        """Return the unparsed VANISHED responses that came so far (RFC 7162, section 3.2.10), and forget them."""
        return [line for line in self.untagged_responses.pop("VANISHED", []) if isinstance(line, bytes)]

    @contextmanager
    def limited_literals(self, max_bytes: int) -> Iterator[None]:
        """Raise LiteralTooLong inside where a FETCH response begins a literal of more than `max_bytes`."""
        before, self._longest_literal = self._longest_literal, max_bytes
        try:
            yield
        finally:
            self._longest_literal = before

    def pop_fetch_responses(self) -> list[Any]:
        """Return the unparsed FETCH responses that came so far, and forget them."""
        responses: list[Any] = self.untagged_responses.pop("FETCH", [])
        return responses

    def send_command(self, name: str, *arguments: str) -> Any:
        """Send a command and return its tag, without waiting for the response."""
        return self._command(name, *arguments)

    def receive_response(self) -> None:
        """Read one response, tagged or not. Raises `abort` after a BYE."""
        self._check_bye()
        self._get_response()

    def peek(self) -> bytes:
        """Return bytes that came from the server and were not read yet, without empty lines; does not wait."""
        reader: Any = getattr(self, "_file", None) or self.file  # Python 3.14 names it otherwise
        timeout = self.sock.gettimeout()
        self.sock.settimeout(0)
        found = b""
        try:
            while (found := bytes(reader.peek(1))).startswith(b"\r\n"):  # it says nothing: nobody is to wait for more
                reader.read(2)
        except OSError:  # TLS has no complete record
            return b""
        finally:
            self.sock.settimeout(timeout)
        return found

    def read(self, size: int) -> bytes:
        """Read `size` bytes in slices, so that `received_bytes` grows during a long literal."""
        self._counted_bytes += size
        if self._counted_bytes > self._max_counted_bytes:
            raise self._too_much()
        slices: list[bytes] = []
        left = size
        self.is_reading = True
        while left > 0 and (data := super().read(min(left, SLICE_BYTES))):
            slices.append(data)
            left -= len(data)
            self.received_bytes += len(data)
        self.is_reading = False
        return b"".join(slices)

    def readline(self) -> bytes:
        """Read a line, or return the one that was put back."""
        if self._unread_line:
            line, self._unread_line = self._unread_line, b""
            return line
        try:
            self.is_reading = True
            line = super().readline()
            self.is_reading = False
        except self.abort:
            raise
        except self.error as error:  # after which imaplib would read the rest of the line as the next one
            raise self._violation("a line of more than 1,000,000 bytes") from error
        self.received_bytes += len(line)
        self._counted_bytes += len(line) + LINE_BYTES
        if self._counted_bytes > self._max_counted_bytes:
            raise self._too_much()
        self._throttled = self._throttled or is_throttled(line)
        return with_line_end(line)

    def _read_line_with_text(self) -> bytes:
        """Read a line, and leave out empty ones before it."""
        while is_blank(line := self.readline()):
            pass
        return line

    def _too_much(self) -> IMAPProtocolViolation:
        return self._violation(f"more than {self._expected_bytes:,} bytes")

    def _violation(self, what: str) -> IMAPProtocolViolation:
        return IMAPProtocolViolation(
            f"the IMAP server violates the protocol: it sends {what} in answer to {self._asked}; the connection ended"
        )

    def _get_response(self) -> Any:
        """Read one response and return its first line.

        A FETCH response is stored as imaplib stores it, without the six regular expressions that imaplib tries on each
        line. Other responses are left to imaplib.
        """
        line = self._read_line_with_text()
        fetch = _FETCH.fullmatch(line)
        if not fetch:
            line = as_imaplib_reads(line)
            fetch = _FETCH.fullmatch(line)
        if not fetch:
            self._unread_line = line
            if (alert := find_alert(line)) and len(self.alerts) < MAX_ALERTS:
                self.alerts.append(alert)
            self.exists = count_after(line, self.exists)
            return super()._get_response()  # type: ignore[misc]  # typeshed leaves it out
        responses = self.untagged_responses.setdefault("FETCH", [])
        text = b"%b %b" % fetch.groups()
        while announced := announced_literal(text):
            text, size = announced
            if self._longest_literal is not None and size > self._longest_literal:
                raise LiteralTooLong(size, self._longest_literal, find_uid(text))
            responses.append((text, self.read(size)))
            text = self._get_line() or self._get_line()  # some send an empty line behind a literal
        responses.append(text)
        return line


class Client(imapclient.IMAPClient):  # type: ignore[misc]  # imapclient has no types
    """imapclient's client on top of `Imap4`. Raises OSError and imaplib's errors when it cannot connect."""

    imap4: Imap4

    def __init__(self, host: str, port: int, *, tls: bool, read_timeout: float) -> None:
        """Connect; `read_timeout` is the longest silence in seconds."""
        super().__init__(
            host,
            port,
            ssl=tls,
            ssl_context=ssl.create_default_context() if tls else None,
            timeout=imapclient.SocketTimeout(connect=CONNECT_SECONDS, read=read_timeout),
        )
        self.normalise_times = False
        # imapclient runs imaplib at debug level 5, which repr()s every message: three times the cost of a fetch.
        self.imap4.debug = 0

    def _create_IMAP4(self) -> Imap4:  # noqa: N802 - imapclient's name
        self.imap4 = Imap4(self.host, self.port, self.ssl_context)
        return self.imap4


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
