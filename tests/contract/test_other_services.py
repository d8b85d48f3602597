"""A port on which no IMAP server greets: the error says what speaks there, in its own words, and what to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from email_ingestion.errors import AuthenticationFailed
from email_ingestion.mailbox import ImapMailbox, imap4
from email_ingestion.mailbox import greeting as greeting_module
from email_ingestion.mailbox.imap_errors import UnusableServer
from tests.servers.accounts import account
from tests.servers.odd_imap import PASSWORD, USER, OddImapServer, no


@contextmanager
def service(greeting: bytes, answer: bytes = b"") -> Iterator[int]:
    """A port on which something else than IMAP speaks."""

    def serve(peer: socket.socket) -> None:
        with peer, suppress(OSError):
            peer.sendall(greeting)
            while peer.recv(1000):
                peer.sendall(answer)

    def accept(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("greeting", "answer", "settings", "words"),
    [
        (b"+OK POP3 ready <1@x>\r\n", b"-ERR\r\n", {}, 'a POP3 server and no IMAP server: the server says "+OK POP3'),
        (b"220 mail ESMTP\r\n", b"500 what\r\n", {}, 'an SMTP server and no IMAP server: the server says "220 mail'),
        (
            b"",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            {},
            'a web server and no IMAP server: the server says "HTTP',
        ),
        (b"", b"\x15\x03\x01\x00\x02\x02\x0a", {}, "speaks TLS, and IMAP_TLS is false"),
        (b"* OK plain\r\n", b"", {"imap_tls": True}, "does not speak TLS: an IMAP server without it, the server says"),
    ],
    ids=["pop3", "smtp", "http", "tls", "no-tls"],
)
def test_another_service_is_named_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, greeting: bytes, answer: bytes, settings: dict, words: str
):
    monkeypatch.setattr(imap4, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(greeting_module, "PROBE_SECONDS", 0.5)
    with service(greeting, answer) as port, pytest.raises(UnusableServer) as caught:
        ImapMailbox(account(imap_port=port, **settings), 5.0)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_a_server_without_xoauth2_is_named_before_it_gets_the_token():
    server = OddImapServer(capabilities="IMAP4rev1 AUTH=PLAIN AUTH=LOGIN")
    with server, closing(ImapMailbox(account(imap_port=server.port), 5.0)) as mailbox:
        with pytest.raises(
            AuthenticationFailed, match=r'\(XOAUTH2\): the server says "CAPABILITY AUTH=PLAIN AUTH=LOGIN"'
        ):
            mailbox.login("ya29.token")
        assert server.count("AUTHENTICATE") == 0


def test_a_server_with_oauthbearer_alone_takes_the_token():
    server = OddImapServer(capabilities="IMAP4rev1 AUTH=OAUTHBEARER")
    server.users = {f"n,a={USER},": ""}
    with server, closing(ImapMailbox(account(imap_port=server.port, imap_user=USER), 5.0)) as mailbox:
        mailbox.login("ya29.token")
        assert mailbox.examine(mailbox.find_mailbox("Inbox")).name == "INBOX"


def test_a_server_that_wants_to_know_the_program_is_told_though_it_does_not_say_that_it_listens():
    server = OddImapServer(capabilities="IMAP4rev1")
    server.on("EXAMINE", no("EXAMINE Unsafe Login. Please contact kefu@188.com for help"), times=1)
    with server, closing(ImapMailbox(account(imap_port=server.port, imap_password=PASSWORD), 5.0)) as mailbox:
        mailbox.login(None)
        assert mailbox.examine("INBOX").exists == 0
        assert server.count("ID") == 1
