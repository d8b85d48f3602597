"""The main job on real servers of two families, with folders as people and hosters name them, and mail that moves."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imapclient

from tests.servers import cyrus, dovecot
from tests.servers.commands import told
from tests.servers.cyrus import running_cyrus
from tests.servers.dovecot import running_dovecot
from tests.servers.processes import Place, Running, place, until
from tests.servers.redis import RedisServer

MANY, FEW = 460, 20  # with what lies in two folders, 500 messages on one server of each family
MOVED = 15


@dataclass(frozen=True)
class MailServer:
    """An account on a server: INBOX and two folders, which IMAP_MAILBOX may name otherwise."""

    name: str
    port: int
    user: str
    password: str
    folders: tuple[str, str]
    mailboxes: str  # IMAP_MAILBOX

    @contextmanager
    def client(self) -> Iterator[imapclient.IMAPClient]:
        with imapclient.IMAPClient("127.0.0.1", self.port, ssl=False, timeout=60) as client:
            client.login(self.user, self.password)
            yield client

    def deliver(self, messages: list[bytes], folder: str) -> None:
        """All of them in one command (MULTIAPPEND): a Cyrus syncs its disk after each."""
        literals = b"".join(b" {%d+}\r\n%b" % (len(raw), raw) for raw in messages)
        name = imapclient.imap_utf7.encode(folder).replace(b'"', b'\\"')
        line = b""
        for _ in range(5):  # a Dovecot ends the sessions of a former folder, and mends an index that it broke
            with self.client() as client:
                client._imap.send(b'x1 APPEND "%b"%b\r\n' % (name, literals))
                while not (line := client._imap.readline()).startswith(b"x1 "):
                    assert line
            if line.startswith(b"x1 OK"):
                return
        raise AssertionError(line)

    def held(self) -> Counter[str]:
        """What lies in the three folders now, by SHA-256."""
        found: Counter[str] = Counter()
        with self.client() as client:
            for folder in ("INBOX", *self.folders):
                client.select_folder(folder, readonly=True)
                uids = client.search()
                bodies = client.fetch(uids, ["BODY.PEEK[]"]) if uids else {}
                found.update(digest(data[b"BODY[]"]) for data in bodies.values())
        return found

    def shown(self) -> dict[str, dict[bytes, int]]:
        """What the server says of each folder."""
        with self.client() as client:
            items = ("MESSAGES", "UIDNEXT", "UIDVALIDITY")
            return {folder: client.folder_status(folder, items) for folder in ("INBOX", *self.folders)}

    def move_and_expunge(self) -> None:
        """One by one: the newest of INBOX goes into a folder, the oldest goes for ever."""
        with self.client() as client:
            client.select_folder("INBOX")
            uids = client.search()
            for newest, oldest in zip(uids[:-MOVED:-1], uids[:MOVED], strict=False):
                client.move([newest], self.folders[1])
                client.delete_messages([oldest])
                client.expunge([oldest])

    def recreate(self, messages: list[bytes]) -> None:
        """Delete a folder and make another one of that name, with these messages."""
        with self.client() as client:
            client.delete_folder(self.folders[0])
            client.create_folder(self.folders[0])
        self.deliver(messages, self.folders[0])


def letters(where: str, count: int) -> list[bytes]:
    """Of many sizes, with bytes of all kinds."""
    body = bytes(set(range(1, 256)) - set(b"\r\n"))
    head = b"Subject: letter %d\r\nMessage-ID: <%d@%s>\r\n\r\n"
    return [
        head % (number, number, where.encode()) + b"\r\n".join([body] * (number * 7 % 40)) + b"\r\n"
        for number in range(count)
    ]


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@contextmanager
def servers() -> Iterator[list[MailServer]]:
    """Both families with the separators `/` and `.`, and with folders beside INBOX and under it."""
    with (
        running_dovecot() as dovecot_slash,
        running_dovecot(prefix=True) as dovecot_prefix,
        running_cyrus(prefix=False) as cyrus_slash,
        running_cyrus(prefix=True) as cyrus_prefix,
    ):
        cyrus_prefix.create("INBOX.Spam", use="\\Junk")
        names = [
            ("dovecot", dovecot_slash, dovecot, ('say "hi"', "Übung/R&D"), None),
            ("dovecot-prefix", dovecot_prefix, dovecot, ("INBOX.Entwürfe & Ideen", "INBOX.Archiv.2024"), None),
            ("cyrus", cyrus_slash, cyrus, ("Übung.R&D", "Archiv, alt/2024"), 'INBOX, Übung.R&D, "Archiv, alt/2024"'),
            ("cyrus-prefix", cyrus_prefix, cyrus, ("INBOX.R&D", "INBOX.Spam"), "INBOX, INBOX.R&D, \\Junk"),
        ]
        found = []
        for name, server, family, folders, mailboxes in names:
            setting = mailboxes or ", ".join(("INBOX", *folders))
            made = MailServer(name, server.imap_port, family.USER, family.PASSWORD, folders, setting)
            with made.client() as client:
                there = {each for _, _, each in client.list_folders()}
                for folder in set(folders) - there:
                    client.create_folder(folder)
            found.append(made)
        yield found


def settings_of(servers: list[MailServer]) -> str:
    table = (
        "[[accounts]]\nname = '{0.name}'\nimap_host = '127.0.0.1'\nimap_port = {0.port}\nimap_tls = false\n"
        "imap_auth = 'password'\nimap_user = '{0.user}'\nimap_password = '{0.password}'\n"
        "imap_mailbox = '{0.mailboxes}'\n"
    )
    return "\n".join(table.format(server) for server in servers)


def stored(here: Place, server: MailServer) -> Counter[str]:
    rows = here.rows(f"SELECT sha256 FROM emails WHERE account = '{server.name}'")
    return Counter(sha256 for (sha256,) in rows)


def all_is_stored(here: Place, server: MailServer) -> bool:
    """Whether everything is here that the server holds now: a Dovecot may lose what it held (docs/servers.md)."""
    try:
        return server.held().keys() <= stored(here, server).keys()
    except imapclient.exceptions.IMAPClientError:
        return False  # that Dovecot, before it has mended the folder


def test_all_mail_of_two_families_of_servers_arrives_whatever_happens_to_it_meanwhile(
    tmp_path: Path, redis_server: RedisServer
):
    with servers() as accounts, place(tmp_path / "here", redis_server.url, IMAP_POLL_SECONDS=2) as here:
        (here.folder / "config").mkdir()
        (here.folder / "config" / "settings.toml").write_text(settings_of(accounts))
        sent: dict[MailServer, set[str]] = {server: set() for server in accounts}

        def deliver(server: MailServer, folder: str, messages: list[bytes]) -> None:
            server.deliver(messages, folder)
            sent[server].update(map(digest, messages))

        def everything_comes(server: MailServer, what: str) -> None:
            try:
                until(lambda: all_is_stored(here, server), f"{what} of {server.name}", 180)
            except AssertionError as error:
                held = server.held().keys()
                missing = len(held - stored(here, server).keys())
                raise AssertionError(
                    f"{error}; {missing} of {len(held)}; {server.shown()}; {shown(here, producer)}"
                ) from error

        for server in accounts:
            deliver(server, "INBOX", letters("inbox", MANY if server.name in {"dovecot", "cyrus"} else FEW))
            for number, folder in enumerate(server.folders):
                deliver(server, folder, letters(f"folder{number}", FEW))
        producer = here.producer()
        here.worker()
        for server in accounts:
            until(lambda server=server: stored(here, server), f"the first mail of {server.name}")
            server.move_and_expunge()
        for server in accounts:
            everything_comes(server, "all mail")

        until(lambda: all(each["watch"] == "idle" for each in producer.status()["accounts"]), "all are in IDLE")
        for server in accounts:
            again, new = letters("folder0", FEW)[5:], letters("anew", FEW)
            server.recreate([*again, *new])
            sent[server].update(map(digest, new))
        for server in accounts:
            everything_comes(server, "what is in the new folder")
            deliver(server, "INBOX", letters("late", 3))
            deliver(server, server.folders[0], letters("later", 3))
            everything_comes(server, "new mail")
            assert set(stored(here, server).values()) == {1}
            assert stored(here, server).keys() <= sent[server]
        until(lambda: producer.get("/ready")[0] == 200 and not told_reasons(producer), "ready without a reason")
        assert told(here, "reconcile")["complete"]


def shown(here: Place, producer: Running) -> str:
    """What a producer says of its accounts, and the end of its log."""
    log = (here.folder / "logs" / "producer.log").read_text().splitlines()[-40:]
    return "\n".join([json.dumps(producer.status()["accounts"]), *log])


def told_reasons(producer: Running) -> list[str]:
    return json.loads(producer.get("/ready")[1])["reasons"]
