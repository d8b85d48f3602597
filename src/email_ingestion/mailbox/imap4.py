"""imaplib's IMAP4 with what this project adds: fast reading of FETCH responses, logins by any way, pipelined commands.

imapclient creates its protocol object in one method, which `Client` overrides. No other file but `metered_imap4` calls
imaplib's private methods.
"""

from __future__ import annotations

import base64
import binascii
import imaplib
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import imapclient

from email_ingestion.mailbox.metered_imap4 import CONNECT_SECONDS, MeteredImap4, UnexpectedGreeting
from email_ingestion.mailbox.response_lines import (
    announced_literal,
    as_imaplib_reads,
    count_after,
    find_alert,
    find_set,
    find_uid,
    goes_on_after_literal,
    is_refusal_without_star,
    is_trailer,
    shortened_status,
)

FIRST_DELAY_SECONDS = 0.05  # doubled by every throttled command, halved by every other one, as Dovecot's imapc does
LONGEST_DELAY_SECONDS = 16.0
MAX_ALERTS = 10
MAX_CHALLENGES = 4  # in one AUTHENTICATE

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


class Imap4(MeteredImap4):
    """One connection, with TLS where `ssl_context` is given; methods raise as those of MeteredImap4."""

    # imaplib's own takes numbers of any length, and no `{5+}`.
    Literal = re.compile(rb".*{(?P<size>\d{1,18})\+?}$", re.ASCII | re.DOTALL)

    def __init__(self, host: str, port: int, ssl_context: ssl.SSLContext | None) -> None:
        self.finished_commands = 0
        self.sent_commands = 0
        self.throttle_delay = 0.0  # seconds to wait before the next command
        self.exists = 0  # messages in the mailbox that is open
        self.alerts: list[str] = []  # what the server wants its user told, and nobody has taken yet
        self._longest_literal: int | None = None  # bytes, of a FETCH response; None: any
        super().__init__(host, port, ssl_context)

    def _command(self, name: str, *arguments: Any) -> Any:
        self.sent_commands += 1
        self._asked = f"UID {arguments[0]}" if name == "UID" else name
        return super()._command(name, *arguments)  # type: ignore[misc]  # typeshed leaves it out

    def _connect(self) -> None:
        """Read the greeting, which imaplib understands only from an IMAP server."""
        greeting = self._read_line_with_text()
        if is_refusal_without_star(greeting):
            greeting = b"* " + greeting.lstrip()
        if greeting and not greeting.startswith(b"* "):
            raise UnexpectedGreeting(greeting)
        self._unread_line = greeting
        super()._connect()  # type: ignore[misc]  # typeshed leaves it out

    def _get_capabilities(self) -> None:
        """Ask for the list; a server that refuses to tell may have told it in its greeting."""
        greeted = self._pop_capabilities()
        try:
            self.capabilities = self.ask_capabilities()
        except self.abort:
            raise
        except self.error:
            if not greeted:
                raise
            self.capabilities = greeted

    def ask_capabilities(self) -> tuple[str, ...]:
        """Return what the server has told of its capabilities, or tells when it is asked; IMAP4rev1 is always there.

        It must be: imaplib knows no server that is of IMAP4rev2 alone, which answers all that we ask, and an empty list
        is a list. Raises `error` when it is refused.
        """
        if "CAPABILITY" not in self.untagged_responses:
            self.run("CAPABILITY")
        return tuple(dict.fromkeys([*self._pop_capabilities(), "IMAP4REV1"]))

    def _pop_capabilities(self) -> tuple[str, ...]:
        lines = [line for line in self.untagged_responses.pop("CAPABILITY", []) if isinstance(line, bytes)]
        return tuple(lines[-1].decode("ascii", "replace").upper().split()) if lines else ()

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
        self.authenticate_by("PLAIN", f"\0{user}\0{password}".encode(), None)

    def authenticate_by(
        self, mechanism: str, first: bytes, last: bytes | None, challenged: Callable[[bytes], object] = lambda _: None
    ) -> None:
        """Run AUTHENTICATE: send `first`, and `last` (None: break it off) in answer to what the server asks then.

        That is handed to `challenged`. What stands behind the first `+` counts for nothing: some say `+ go on`. Raises
        `error` when it is refused.
        """
        tag = self._command("AUTHENTICATE", mechanism)
        for number in range(MAX_CHALLENGES):
            if not self.await_continuation(tag):
                break
            if number:
                challenge: Any = self.continuation_response  # bytes, or None
                challenged(_from_base64(challenge or b""))
            answer = first if not number else last if number == 1 else None
            self.send(b"*\r\n" if answer is None else base64.b64encode(answer) + b"\r\n")
        status, data = self._command_complete("AUTHENTICATE", tag)
        if status != "OK":
            raise self.error((data[-1] or b"").decode("utf-8", "replace"))
        self.state = "AUTH"

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

    def _get_response(self) -> Any:
        """Read one response and return its first line.

        A FETCH response is stored as imaplib stores it, without the six regular expressions that imaplib tries on each
        line. Other responses are left to imaplib.

        A line that is none is left out, as long as no literal came with this answer: then it may be a part of that.
        """
        line = self._read_line_with_text()
        while line and not self._can_be_response(line) and (not self.has_literal or is_trailer(line)):
            line = self._read_line_with_text()
        fetch = _FETCH.fullmatch(line)
        if not fetch:
            line = shortened_status(as_imaplib_reads(line))
            fetch = _FETCH.fullmatch(line)
        if not fetch:
            self.check_line(line)
            self._unread_line = line
            if (alert := find_alert(line)) and len(self.alerts) < MAX_ALERTS:
                self.alerts.append(alert)
            self.exists = count_after(line, self.exists)
            try:
                return super()._get_response()  # type: ignore[misc]  # typeshed leaves it out
            except self.abort as error:
                raise self.abort(_without_quotation(error)) from None
        responses = self.untagged_responses.setdefault("FETCH", [])
        text = b"%b %b" % fetch.groups()
        while announced := announced_literal(text):
            text, size = announced
            if self._longest_literal is not None and size > self._longest_literal:
                raise LiteralTooLong(size, self._longest_literal, find_uid(text))
            responses.append((text, self.read(size)))
            text = self._rest_of_response()
        responses.append(text)
        return line

    def _can_be_response(self, line: bytes) -> bool:
        tagged: Any = self.tagre  # of bytes, other than typeshed says
        return line.startswith((b"* ", b"+")) or bool(tagged.match(line) or tagged.match(as_imaplib_reads(line)))

    def _rest_of_response(self) -> bytes:
        """Read what stands behind a literal; `)` where the server leaves that out. Some send an empty line before it.

        Raises `abort` where the literal has another length than was announced: what follows is a part of it, or another
        response is missing in it.
        """
        text = self._get_line()
        if not text:
            line = self.readline()
            self.check_line(line)
            if self._can_be_response(line):
                self._unread_line = line
                return b")"
            text = line[:-2]
        if not goes_on_after_literal(text):
            raise self.abort("unexpected response: a literal has another length than announced")
        return text


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


def _without_quotation(error: imaplib.IMAP4.abort) -> str:
    """Return the text of an error without the line that imaplib could not read: it may be one of a mail."""
    text, quoted, _ = str(error).partition("unexpected response: ")
    return f"{text}{quoted}a line that is none" if quoted else str(error)


def _from_base64(text: bytes) -> bytes:
    """Return what Base64 means, and any other text as it is."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return text
