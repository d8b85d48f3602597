"""One connection of the scripted IMAP server (`odd_imap`): the sane conversation from which a test departs."""

from __future__ import annotations

import base64
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.servers.odd_mail import Folder, Mail, Text, to_bytes
from tests.servers.odd_replies import HangUp, default

if TYPE_CHECKING:
    from tests.servers.odd_imap import OddImapServer

_LITERAL = re.compile(rb"\{(\d+)(\+?)\}\r\n\Z")
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"


@dataclass(frozen=True)
class Command:
    """What a client sent, literals included; `name` has UID in front where it was said."""

    tag: bytes
    name: str
    arguments: bytes
    at: float  # time.monotonic()
    connection: int

    @property
    def uids(self) -> range | set[int]:
        """The UIDs that a UID command names; up to 10 million for `*`."""
        found: set[int] = set()
        for part in self.arguments.split(b" ")[0].split(b","):
            low, _, high = part.partition(b":")
            if low.isdigit() and (not high or high.isdigit()):
                found |= set(range(int(low), min(int(high or low), int(low) + 100_000) + 1))
            elif low.isdigit() and high == b"*":
                return range(int(low), 10_000_000_000)
        return found


class Conversation:
    """One connection. Replies use `send`, `end` and `answer`."""

    def __init__(self, server: OddImapServer, sock: socket.socket, number: int) -> None:
        self.server = server
        self.number = number
        self.folder: Folder | None = None
        self.idling = False
        self._sock = sock
        self._reader = sock.makefile("rb")
        self._sending = threading.Lock()
        self._announced = 0
        self._ended = False

    def run(self) -> None:
        if self.server.greeting is not None:
            self.send(self.server.greeting)
        while command := self._read_command():
            self.server.commands.append(command)
            self._ended = False
            rule = self.server.rule_for(command)
            for reply in rule.replies if rule else [default]:
                reply(self, command)

    def send(self, data: bytes, command: Command | None = None) -> None:
        if command:
            data = data.replace(b"{tag}", command.tag)
        with self._sending:
            self._sock.sendall(data)
        self.server.sent_bytes += len(data)

    def end(self, command: Command, text: Text) -> None:
        """The tagged response."""
        self._ended = True
        self.send(b"%b %b\r\n" % (command.tag, to_bytes(text)))

    def announce(self, folder: Folder) -> None:
        """Say EXISTS if there is more in the open folder than was said, to one who is in IDLE."""
        if self.idling and folder is self.folder and len(folder.mail) != self._announced:
            self._announced = len(folder.mail)
            self.send(b"* %d EXISTS\r\n" % self._announced)

    def client_is_gone(self) -> bool:
        try:
            self._sock.settimeout(0)
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            with suppress(OSError):
                self._sock.settimeout(None)

    def cut(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _read_command(self) -> Command | None:
        line = self._read_line()
        if not line:
            return None
        tag, _, rest = line.partition(b" ")
        name, _, arguments = rest.partition(b" ")
        if name.upper() == b"UID":
            second, _, arguments = arguments.partition(b" ")
            name = name + b" " + second
        return Command(tag, name.decode("ascii", "replace").upper(), arguments, time.monotonic(), self.number)

    def _read_line(self) -> bytes:
        """A line with its literals, as {n} CRLF and the data."""
        line = self._reader.readline()
        while found := _LITERAL.search(line):
            if not found[2]:
                self.send(b"+ go on\r\n")
            line += self._reader.read(int(found[1])) + self._reader.readline()
        return line.removesuffix(b"\n").removesuffix(b"\r")

    # A sane server

    def answer(self, command: Command) -> None:
        method = _ANSWERS.get(command.name)
        if method is None:
            self.end(command, "BAD unknown command")
        elif command.name not in _BEFORE_SELECT and self.folder is None:
            self.end(command, "BAD no mailbox is open")
        else:
            method(self, command)

    def _finish(self, command: Command) -> None:
        if self.folder and command.name not in {"FETCH", "SEARCH"} and len(self.folder.mail) != self._announced:
            self._announced = len(self.folder.mail)
            self.send(b"* %d EXISTS\r\n" % self._announced)
        if not self._ended:
            self.end(command, f"OK {command.name} done")

    def _capability(self, command: Command) -> None:
        self.send(to_bytes(f"* CAPABILITY {self.server.capabilities}\r\n"))
        self._finish(command)

    def _log_in(self, command: Command, user: bytes, password: bytes | None) -> None:
        now = time.monotonic()
        self.server.attempts.append(now)
        known = self.server.users.get(user.decode("utf-8", "replace"))
        if known is None or (password is not None and password != known.encode()):
            self.end(command, "NO [AUTHENTICATIONFAILED] invalid credentials")
            return
        self.server.logins.append(now)
        self._finish(command)

    def _login(self, command: Command) -> None:
        user, password = _strings(command.arguments)[:2]
        self._log_in(command, user, password)

    def _authenticate(self, command: Command) -> None:
        mechanism, _, initial = command.arguments.partition(b" ")
        if not initial:
            self.send(b"+ \r\n")
            initial = self._read_line()
        data = base64.b64decode(initial)
        if mechanism.upper() == b"PLAIN":
            _, user, password = data.split(b"\0")
            self._log_in(command, user, password)
        else:  # any token will do
            self._log_in(command, data.partition(b"\1")[0].removeprefix(b"user="), None)

    def _logout(self, command: Command) -> None:
        self.send(b"* BYE see you\r\n")
        self._finish(command)
        raise HangUp

    def _id(self, command: Command) -> None:
        self.send(b'* ID ("name" "odd")\r\n')
        self._finish(command)

    def _namespace(self, command: Command) -> None:
        self.send(b'* NAMESPACE (("" "/")) NIL NIL\r\n')
        self._finish(command)

    def _list(self, command: Command) -> None:
        for name, folder in self.server.folders.items():
            escaped = name.replace("\\", "\\\\").replace('"', '\\"')
            self.send(to_bytes(f'* {command.name} ({folder.attributes}) "/" "{escaped}"\r\n'))
        self._finish(command)

    def _select(self, command: Command) -> None:
        name = _strings(command.arguments)[0].decode("utf-8", "replace")
        found = self.server.folders.get("INBOX" if name.upper() == "INBOX" else name)
        if found is None:
            self.end(command, "NO [NONEXISTENT] Unknown Mailbox")
            return
        self.folder, self._announced = found, len(found.mail)
        self.send(to_bytes(f"* FLAGS {found.flags}\r\n* {len(found.mail)} EXISTS\r\n* 0 RECENT\r\n"))
        for code, value in (("UIDVALIDITY", found.uidvalidity), ("UIDNEXT", found.next_uid())):
            if value is not None:
                self.send(to_bytes(f"* OK [{code} {value}] told\r\n"))
        self.end(command, "OK [READ-ONLY] open")

    def _status(self, command: Command) -> None:
        name = _strings(command.arguments)[0].decode("utf-8", "replace")
        found = self.server.folders.get("INBOX" if name.upper() == "INBOX" else name)
        if found is None:
            self.end(command, "NO [NONEXISTENT] Unknown Mailbox")
            return
        values = {"MESSAGES": len(found.mail), "UIDNEXT": found.next_uid(), "UIDVALIDITY": found.uidvalidity}
        told = " ".join(
            f"{key} {value}" for key, value in values.items() if value is not None and key.encode() in command.arguments
        )
        self.send(to_bytes(f'* STATUS "{name}" ({told})\r\n'))
        self._finish(command)

    def _idle(self, command: Command) -> None:
        self.send(b"+ idling\r\n" + self.server.chatter)
        self.idling = True
        try:
            if self.folder:
                self.announce(self.folder)
            line = self._read_line()
        finally:
            self.idling = False
        if line.upper() != b"DONE":
            raise HangUp
        self._finish(command)

    def _unselect(self, command: Command) -> None:
        self.folder = None
        self._finish(command)

    def _search(self, command: Command) -> None:
        assert self.folder
        with self.server.lock:
            numbered = list(enumerate(self.folder.mail, 1))
        by_uid = command.name.startswith("UID")
        found = [
            mail.uid if by_uid else number
            for number, mail in numbered
            if _matches(command.arguments, number, mail, numbered)
        ]
        self.send(to_bytes(" ".join(["* SEARCH", *map(str, found)]) + "\r\n"))
        self._finish(command)

    def _fetch(self, command: Command) -> None:
        assert self.folder
        by_uid = command.name.startswith("UID")
        which, _, asked = command.arguments.partition(b" ")
        with self.server.lock:
            numbered = list(enumerate(self.folder.mail, 1))
        last = (numbered[-1][1].uid if by_uid else len(numbered)) if numbered else 0
        for number, mail in numbered:
            if mail.hidden or not _in_set(mail.uid if by_uid else number, which, last):
                continue
            for reply in mail.instead if re.search(rb"BODY|RFC822(?!\.SIZE)", asked) else ():
                reply(self, command)
                if self._ended:
                    return
            if not mail.instead or not re.search(rb"BODY|RFC822(?!\.SIZE)", asked):
                self.send(mail.response(number, asked, uid=by_uid))
        self._finish(command)


_ANSWERS: dict[str, Callable[[Conversation, Command], None]] = {
    "CAPABILITY": Conversation._capability,
    "LOGIN": Conversation._login,
    "AUTHENTICATE": Conversation._authenticate,
    "LOGOUT": Conversation._logout,
    "ID": Conversation._id,
    "ENABLE": Conversation._finish,
    "NOOP": Conversation._finish,
    "CHECK": Conversation._finish,
    "NAMESPACE": Conversation._namespace,
    "LIST": Conversation._list,
    "LSUB": Conversation._list,
    "SELECT": Conversation._select,
    "EXAMINE": Conversation._select,
    "STATUS": Conversation._status,
    "IDLE": Conversation._idle,
    "CLOSE": Conversation._unselect,
    "UNSELECT": Conversation._unselect,
    "SEARCH": Conversation._search,
    "UID SEARCH": Conversation._search,
    "FETCH": Conversation._fetch,
    "UID FETCH": Conversation._fetch,
}
_BEFORE_SELECT = set(_ANSWERS) - {"IDLE", "CLOSE", "UNSELECT", "SEARCH", "UID SEARCH", "FETCH", "UID FETCH"}


def _strings(arguments: bytes) -> list[bytes]:
    """The atoms, quoted strings and literals of a command."""
    found = re.findall(rb'"((?:[^"\\]|\\.)*)"|\{(\d+)\+?\}\r\n|([^\s"()]+)', arguments)
    if not any(size for _, size, _ in found):
        return [re.sub(rb"\\(.)", rb"\1", quoted) if quoted else atom for quoted, _, atom in found]
    result, rest = [], arguments
    while rest:
        if part := re.match(rb"\s*\{(\d+)\+?\}\r\n", rest):
            end = part.end() + int(part[1])
            result.append(rest[part.end() : end])
        else:
            part = re.match(rb'\s*(?:"((?:[^"\\]|\\.)*)"|(\S+))', rest)
            if not part:
                break
            result.append(part[2] if part[1] is None else re.sub(rb"\\(.)", rb"\1", part[1]))
            end = part.end()
        rest = rest[end:]
    return result


def _in_set(number: int, which: bytes, last: int) -> bool:
    for part in which.split(b","):
        low, _, high = part.partition(b":")
        ends = sorted(last if end == b"*" else int(end) for end in (low, high or low))
        if ends[0] <= number <= ends[1]:
            return True
    return False


def _matches(criteria: bytes, number: int, mail: Mail, numbered: list[tuple[int, Mail]]) -> bool:
    """UID and sequence sets, SINCE and BEFORE; every other key is true."""
    words = criteria.split()
    for key, value in zip(words, [*words[1:], b""], strict=True):
        if key.upper() == b"UID" and not _in_set(mail.uid, value, numbered[-1][1].uid):
            return False
        if key.upper() in {b"SINCE", b"BEFORE"} and (_day(mail) < _date(value)) is (key.upper() == b"SINCE"):
            return False
    return not re.fullmatch(rb"[\d*:,]+", words[0]) or _in_set(number, words[0], len(numbered))


def _date(value: bytes) -> datetime:
    day, month, year = value.decode().strip('"').split("-")
    return datetime(int(year), _MONTHS.index(month) // 3 + 1, int(day), tzinfo=UTC)


def _day(mail: Mail) -> datetime:
    try:
        return _date((mail.internaldate or "").strip('"').split(" ")[0].encode())
    except ValueError:
        return datetime(1970, 1, 1, tzinfo=UTC)
