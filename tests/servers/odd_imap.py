r"""A scripted IMAP server on a real socket: a test writes an odd conversation in a few lines, and counts the commands.

Without rules it is a sane server with IDLE and without Gmail's extensions. What is odd is said in three ways:

    server = OddImapServer([Mail(b"Subject: one\r\n\r\nhello\r\n"), Mail(raw, uid=7, internaldate="NIL")])

* a message's own data: `internaldate`, `size`, `flags` as they stand on the wire (None leaves one out), `items` for
  whatever else FETCH asks for (`{"BODY[]": "NIL"}`; a function `(offset, size) -> bytes` answers parts as it likes),
  `hidden` for one that SEARCH lists and FETCH leaves out, `instead` for what happens in the place of its body:

    Mail(raw, uid=7, items={"BODY[]": '""'})
    Mail(raw, uid=7, instead=[no("[SERVERBUG] Internal error")])       # after the bodies of the messages before it
    Mail(raw, uid=7, instead=[hang_up])
    Mail(raw, uid=7, items={"BODY[]": lambda offset, size: b"BODY[] " + literal(raw)})       # whole, whatever was asked

* the greeting, the capabilities and the folders: plain attributes, as `server.greeting = b"* BYE closed\r\n"`,
  `server.capabilities = "IMAP4rev1 ID"`, `server.folders["R&D"] = Folder()`, `server.inbox.uidnext = None`,
  `server.chatter = b"* 3 EXISTS\r\n"` in every IDLE;

* rules for commands; the newest one that matches acts, with its replies in their order, `default` among them:

    server.on("IDLE", no("not today"))
    server.on("IDLE", send("* OK Still here"), default)
    server.on("UID FETCH", hang_up, uid=7, times=2)                    # a command that asks for UID 7, twice
    server.on("LOGIN", bad("User is authenticated but not connected."))
    server.on("UID FETCH", trickle("* 1 FETCH (UID 7 BODY[] {99999}\r\n", every=0.2))
    server.on("UID SEARCH", flood("* OK and more\r\n"))
    server.on("NOOP", lambda conversation, command: conversation.send(b"* 5 EXISTS\r\n"), default)

`{tag}` in a sent text is the command's tag. `server.deliver(Mail(…))` announces new mail as RFC 3501 says, at once to
who is in IDLE. `server.stop()` and `server.start()` are an outage; the port stays. What was asked is in `commands`:

    assert server.count("UID SEARCH") < 20 and len(server.logins) == 1
    assert len(server.during(10.0)) <= 10                              # commands in the next ten seconds

`tests/servers/odd_stack.py` runs the real producer and worker on it; `tests/acceptance/odd_servers/test_<kind>.py` is
the place of the tests, with the fixture `odd`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from tests.servers.odd_conversation import Command, Conversation
from tests.servers.odd_mail import Folder, Mail, Reply, Text, literal, to_bytes
from tests.servers.odd_replies import (
    HangUp,
    bad,
    bye,
    default,
    flood,
    hang,
    hang_up,
    no,
    ok,
    send,
    send_raw,
    trickle,
    wait,
)
from tests.servers.ports import free_port

__all__ = [
    "Command",
    "Conversation",
    "Folder",
    "Mail",
    "OddImapServer",
    "bad",
    "bye",
    "default",
    "flood",
    "hang",
    "hang_up",
    "literal",
    "no",
    "ok",
    "send",
    "send_raw",
    "trickle",
    "wait",
]

USER = "alice@example.com"
PASSWORD = "correct-horse"
CAPABILITIES = "IMAP4rev1 LITERAL+ SASL-IR AUTH=PLAIN AUTH=XOAUTH2 ID ENABLE IDLE NAMESPACE UIDPLUS UNSELECT"


@dataclass
class Rule:
    command: str
    replies: Sequence[Reply]
    uid: int | None
    containing: bytes
    left: float
    used: int = 0

    def matches(self, command: Command) -> bool:
        return (
            self.left > 0
            and self.command in {command.name, "*"}
            and (self.uid is None or self.uid in command.uids)
            and self.containing in command.arguments
        )

    def end(self) -> None:
        self.left = 0


class OddImapServer:
    """Starts with the `with` statement; everything else may be changed while it runs."""

    def __init__(self, mail: Sequence[Mail] = (), *, capabilities: str = CAPABILITIES) -> None:
        self.port = free_port()
        self.greeting: bytes | None = b"* OK ready\r\n"  # None: silence
        self.capabilities = capabilities
        self.users = {USER: PASSWORD}
        self.inbox = Folder()
        self.folders = {"INBOX": self.inbox}
        self.commands: list[Command] = []
        self.logins: list[float] = []  # the times of those that were accepted
        self.attempts: list[float] = []  # and of all
        self.connections: list[float] = []
        self.sent_bytes = 0
        self.chatter = b""  # what is said in every IDLE at once
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self._rules: list[Rule] = []
        self._listener: socket.socket | None = None
        self._conversations: set[Conversation] = set()
        for each in mail:
            self.inbox.add(each)

    def on(
        self, command: str, *replies: Reply, uid: int | None = None, containing: Text = b"", times: float = float("inf")
    ) -> Rule:
        """Answer a command so; `*` is any. `end()` of the returned rule ends it."""
        rule = Rule(command.upper(), replies, uid, to_bytes(containing), times)
        self._rules.insert(0, rule)
        return rule

    def deliver(self, mail: Mail | bytes, folder: str = "INBOX", *, announce: bool = True) -> Mail:
        """New mail, and whoever has the folder open is told."""
        made = Mail(mail) if isinstance(mail, bytes) else mail
        with self.lock:
            self.folders[folder].add(made)
            conversations = list(self._conversations)
        for conversation in conversations if announce else ():
            conversation.announce(self.folders[folder])
        return made

    def count(self, name: str) -> int:
        return sum(command.name == name for command in self.commands)

    def during(self, seconds: float) -> list[Command]:
        """Wait, and return the commands that came meanwhile."""
        before = len(self.commands)
        time.sleep(seconds)
        return self.commands[before:]

    # The life of the server

    def start(self) -> None:
        self.stopped.clear()
        listener = self._listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and cut those that there are."""
        self.stopped.set()
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections; new ones are taken."""
        for conversation in list(self._conversations):
            conversation.cut()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def pause(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise HangUp

    def wait_until_stopped(self, conversation: Conversation) -> None:
        """Return when the server stops or the client has hung up."""
        while not self.stopped.wait(0.05) and not conversation.client_is_gone():
            pass

    def rule_for(self, command: Command) -> Rule | None:
        with self.lock:
            rule = next((rule for rule in self._rules if rule.matches(command)), None)
            if rule:
                rule.left -= 1
                rule.used += 1
            return rule

    def _accept(self, listener: socket.socket) -> None:
        while not self.stopped.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.connections.append(time.monotonic())
            conversation = Conversation(self, sock, len(self.connections))
            self._conversations.add(conversation)
            threading.Thread(target=self._talk, args=(conversation,), daemon=True).start()

    def _talk(self, conversation: Conversation) -> None:
        with suppress(HangUp, OSError, ValueError):
            conversation.run()
        self._conversations.discard(conversation)
        conversation.cut()
