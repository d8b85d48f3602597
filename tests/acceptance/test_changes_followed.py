"""What the owner does to delivered mail on a Dovecot with QRESYNC, told once and in order to every reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imapclient
import pytest

from email_ingestion.stream import Keys
from tests.servers.api import api, token
from tests.servers.dovecot import PASSWORD, USER, running_dovecot
from tests.servers.processes import Place, place, until
from tests.servers.redis import RedisServer
from tests.servers.webhook import SECRET, Receiver, receiving

ARCHIVE = "Archive"
QUIET = {"born", "trashed"}  # the latter where the producer looks between the flag \Deleted and the expunge
LETTER = "From: ann@example.org\r\nMessage-ID: <{0}@example.org>\r\nSubject: letter {0}\r\n\r\nhello {0}\r\n"


class Owner:
    """The owner's mail program."""

    def __init__(self, client: imapclient.IMAPClient) -> None:
        self._client = client
        client.login(USER, PASSWORD)
        client.create_folder(ARCHIVE)
        for number in range(7):
            self.append(number)

    def append(self, number: int, folder: str = "INBOX") -> None:
        self._client.append(folder, LETTER.format(number).encode())

    def flag(self, number: int) -> None:
        self._client.add_flags(self._uids("INBOX", number), ["\\Flagged"])

    def delete(self, number: int, folder: str = "INBOX") -> None:
        uids = self._uids(folder, number)
        self._client.delete_messages(uids)
        self._client.uid_expunge(uids)

    def archive(self, number: int) -> None:
        self._client.move(self._uids("INBOX", number), ARCHIVE)

    def replace_archive(self, *numbers: int) -> None:
        self._client.select_folder("INBOX")
        self._client.delete_folder(ARCHIVE)
        self._client.create_folder(ARCHIVE)
        for number in numbers:
            self.append(number, ARCHIVE)

    def _uids(self, folder: str, number: int) -> list[int]:
        self._client.select_folder(folder)
        return self._client.search(["SUBJECT", f"letter {number}"])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as it:
        yield it


@pytest.fixture
def here(tmp_path: Path, own_redis: RedisServer, receiver: Receiver) -> Iterator[tuple[Place, Owner]]:
    with (
        running_dovecot(maildir={}) as dovecot,
        imapclient.IMAPClient("127.0.0.1", dovecot.imap_port, ssl=False) as client,
        place(tmp_path / "here", own_redis.url) as made,
    ):
        made.set(IMAP_HOST="127.0.0.1", IMAP_PORT=dovecot.imap_port, IMAP_TLS="false", IMAP_AUTH="password")
        made.set(IMAP_USER=USER, IMAP_PASSWORD=PASSWORD, IMAP_MAILBOX=f"INBOX, {ARCHIVE}", IMAP_POLL_SECONDS=1)
        made.set(IMAP_TRACK_LABELS="true", SINKS="webhook,stream,ndjson:out.ndjson", WEBHOOK_URL=receiver.url)
        made.set(WEBHOOK_SECRET=SECRET, WEBHOOK_EVENTS="all", STREAM_EVENTS="all", NDJSON_EVENTS="all")
        yield made, Owner(client)


def test_each_change_is_told_once_and_in_order_to_api_webhook_stream_and_file(
    here: tuple[Place, Owner], receiver: Receiver, own_redis: RedisServer
):
    made, owner = here
    producer = made.producer()
    made.worker()
    until(lambda: len(made.rows()) == 7, "all mail is delivered")
    reader = api(made.web(), token(made, "--scope", "read"))
    subjects = dict(made.rows("SELECT email_id, subject FROM emails"))

    def told(items: list[Any]) -> list[tuple[str, str]]:
        return [(each["kind"], subjects[each["email_id"]]) for each in items if each["kind"] not in QUIET]

    def feed() -> list[tuple[str, str]]:
        return told(reader.get("changes", after=0).json()["items"])

    def in_archive() -> int:
        return made.rows(f"SELECT count(*) FROM places WHERE mailbox = '{ARCHIVE}'")[0][0]

    owner.archive(2)
    owner.flag(0)
    until(lambda: len(feed()) == 1, "a flag is told")
    owner.delete(1)
    until(lambda: len(feed()) == 2, "a deletion is told")
    until(lambda: in_archive() == 1, "what was moved is seen there")
    producer.terminate()
    owner.delete(3)
    owner.flag(4)
    owner.archive(5)
    owner.replace_archive(2, 5)  # by another one of its name, with another UIDVALIDITY
    made.producer()
    until(lambda: len(feed()) == 4, "what happened while the producer was away is told")
    until(lambda: in_archive() == 3, "what was moved is found in the new one")
    owner.delete(2, ARCHIVE)
    until(lambda: len(feed()) == 5, "what was moved and then deleted is told")
    owner.append(1)
    until(lambda: len(feed()) == 6, "what is back is told")

    expected = [("flagged", 0), ("deleted", 1), ("deleted", 3), ("flagged", 4), ("deleted", 2), ("restored", 1)]
    wanted = [(kind, f"letter {number}") for kind, number in expected]
    assert sorted(feed()[2:4]) == sorted(wanted[2:4])  # of two looks at one mailbox at once
    wanted[2:4] = feed()[2:4]
    assert feed() == wanted

    def posted() -> list[Any]:
        changes = (body["data"] for name, body in list(receiver.bodies.items()) if name.startswith("change:"))
        return sorted(changes, key=lambda change: change["seq"])

    def streamed() -> list[Any]:
        with own_redis.client() as client:
            entries = [fields for _, fields in client.xrange(Keys().sink_stream)]
        return [json.loads(each[b"json"]) for each in entries if each[b"schema"] == b"change.v1"]

    def written() -> list[Any]:
        lines = map(json.loads, (made.folder / "out.ndjson").read_text().splitlines())
        return [each for each in lines if each["schema"] == "change.v1"]

    for sink in (posted, streamed, written):
        until(lambda sink=sink: len(told(sink())) >= len(wanted), f"{sink.__name__}: all is told")
        assert told(sink()) == wanted
        assert len({each["seq"] for each in sink()}) == len(sink())
    assert {count for name, count in receiver.taken.items() if name.startswith("change:")} == {1}
