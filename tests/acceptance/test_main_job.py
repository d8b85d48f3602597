"""Mail travels from a mailbox over real IMAP and a real Redis into a database: all of it, once, unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import imapclient
import pytest

from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot
from tests.servers.processes import Place, place, token_settings, until
from tests.servers.redis import RedisServer


def letter(number: int, size: int = 0) -> bytes:
    head = f"Subject: letter {number}\r\nMessage-ID: <{number}@example.org>\r\nFrom: Ada <ada@example.org>\r\n\r\n"
    return head.encode() + (b"%08d " % number) * (size // 9) + b"\r\n"


def digests(messages) -> list[str]:
    return sorted(hashlib.sha256(raw).hexdigest() for raw in messages)


def stored(here: Place) -> list[str]:
    return sorted(row[1] for row in here.rows())


def settled(here: Place, count: int) -> None:
    until(lambda: len(here.rows("SELECT 1 FROM emails")) >= count, f"{count} messages in the database")


def more(here: Place) -> None:
    """Return when another message has arrived."""
    seen = len(here.rows("SELECT 1 FROM emails"))
    until(lambda: len(here.rows("SELECT 1 FROM emails")) > seen, "another message in the database")


@pytest.fixture
def sample() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings(mail="300")) as running:
        yield running


def test_the_sample_mail_arrives_and_a_restart_fetches_nothing_again(
    tmp_path: Path, own_redis: RedisServer, sample: RunningSandbox
):
    mail = sample.with_account(lambda account: [account.raw(message) for message in account.messages.values()])
    expected = digests(mail)
    settings = token_settings(sample, tmp_path) | {"IMAP_PORT": sample.imap_port, "IMAP_USER": sample.user}
    with place(tmp_path / "here", own_redis.url, **settings) as here:
        assert here.run("producer.py", "--once").returncode == 0
        assert here.run("worker.py", "--drain").returncode == 0
        assert stored(here) == expected
        producer, worker = here.producer(), here.worker()
        until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "the producer idles")
        assert producer.metric("email_ingestion_imap_fetched_bytes_total") == 0
        assert worker.metric("email_ingestion_emails_processed_total") == 0
        for process in (producer, worker):
            until(lambda process=process: process.get("/ready")[0] == 200, f"{process.stem} is ready")
        assert (producer.terminate(), worker.terminate()) == (0, 0)
        assert stored(here) == expected
    assert max(sample.with_stats(lambda stats: dict(stats.fetched_messages)).values()) == 1


def test_new_mail_is_pushed_not_polled(here: Place, sandbox: RunningSandbox):
    here.set(IMAP_POLL_SECONDS=100000, IMAP_IDLE_SECONDS=1000)
    producer, worker = here.producer(), here.worker()
    until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "the producer idles")
    until(lambda: worker.get("/ready")[0] == 200, "the worker is ready")
    sandbox.deliver(letter(1))
    settled(here, 1)


def test_a_producer_killed_again_and_again_delivers_every_message_once(here: Place, sandbox: RunningSandbox):
    messages = [letter(number, 40_000) for number in range(600)]
    for raw in messages:
        sandbox.deliver(raw)
    here.worker()
    for _ in range(10):
        producer = here.producer()
        more(here)
        producer.kill()
        if len(here.rows("SELECT 1 FROM emails")) == len(messages):
            break
    here.producer()
    settled(here, len(messages))
    assert stored(here) == digests(messages)


def test_a_worker_killed_in_mid_work_leaves_nothing_behind_and_nothing_doubled(here: Place, sandbox: RunningSandbox):
    messages = [letter(number, 5_000) for number in range(400)]
    for raw in messages:
        sandbox.deliver(raw)
    assert here.run("producer.py", "--once").returncode == 0
    for _ in range(3):
        worker = here.worker()
        more(here)
        worker.kill()
    assert here.run("worker.py", "--drain", seconds=120).returncode == 0
    assert stored(here) == digests(messages)


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningSandbox]:
    """Gives out the tokens that Dovecot asks about."""
    with running_sandbox(SandboxSettings(credentials=Credentials(user=USER))) as running:
        yield running


@pytest.fixture
def dovecot(provider: RunningSandbox) -> Iterator[DovecotServer]:
    with running_dovecot(provider.oauth_port) as server:
        yield server


def _fill(server: DovecotServer, messages: list[bytes]) -> None:
    with imapclient.IMAPClient("127.0.0.1", server.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        client.multiappend("INBOX", messages)


def _flags(server: DovecotServer) -> dict[int, tuple[bytes, ...]]:
    with imapclient.IMAPClient("127.0.0.1", server.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        client.select_folder("INBOX", readonly=True)
        found = {}
        for start in range(1, 2001, 500):
            found |= client.fetch(list(range(start, start + 500)), ["FLAGS"])
    return {uid: tuple(flag for flag in data[b"FLAGS"] if flag != b"\\Recent") for uid, data in found.items()}


def test_two_thousand_messages_from_a_dovecot_arrive_byte_for_byte(
    tmp_path: Path, own_redis: RedisServer, provider: RunningSandbox, dovecot: DovecotServer
):
    messages = [letter(number, 200 + number * 7 % 30_000) for number in range(2000)]
    _fill(dovecot, messages)
    before = _flags(dovecot)
    settings = token_settings(provider, tmp_path) | {"IMAP_PORT": dovecot.imap_port}
    with place(tmp_path / "here", own_redis.url, **settings) as here:
        producer, worker = here.producer(), here.worker()
        settled(here, len(messages))
        assert stored(here) == digests(messages)
        until(lambda: producer.status()["stream"]["depth"] == 0, "the stream is empty")
        assert (producer.terminate(), worker.terminate()) == (0, 0)
    assert _flags(dovecot) == before


def test_a_password_and_a_server_that_is_not_gmail_work_too(
    tmp_path: Path, own_redis: RedisServer, dovecot: DovecotServer
):
    messages = [letter(number) for number in range(20)]
    dovecot.deliver(messages)
    settings = {"IMAP_HOST": "127.0.0.1", "IMAP_PORT": dovecot.imap_port, "IMAP_TLS": "false", "IMAP_USER": USER}
    settings |= {"IMAP_AUTH": "password", "IMAP_PASSWORD": PASSWORD}
    with place(tmp_path / "here", own_redis.url, **settings) as here:
        assert here.run("producer.py", "--once").returncode == 0
        assert here.run("worker.py", "--drain").returncode == 0
        rows = here.rows("SELECT email_id, subject FROM emails ORDER BY uid")
        assert [subject for _, subject in rows] == [f"letter {number}" for number in range(20)]
        assert all(email_id.startswith("default:sha256:") for email_id, _ in rows)
        assert here.run("producer.py", "--once").returncode == 0
        assert here.run("worker.py", "--drain").returncode == 0
        assert len(here.rows()) == 20


def test_drafts_and_sent_mail_are_left_out_and_spam_never_seen(here: Place, sandbox: RunningSandbox):
    for number, labels in enumerate((["\\Sent"], ["\\Inbox", "\\Draft"], ["\\Junk"], ["\\Inbox", "\\Starred"])):
        sandbox.deliver(letter(number), labels)
    producer = here.producer()
    here.worker()
    settled(here, 1)
    until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "the producer idles")
    assert [row[0] for row in here.rows("SELECT subject FROM emails")] == ["letter 3"]
    assert producer.metric("email_ingestion_emails_skipped_total") == 2


def test_mail_moved_to_the_trash_and_back_is_not_delivered_again(here: Place, sandbox: RunningSandbox):
    delivery = sandbox.deliver(letter(1))
    here.producer()
    worker = here.worker()
    settled(here, 1)
    sandbox.arm_fault("trash_and_back", msgid=delivery.message.msgid)
    sandbox.deliver(letter(2))
    settled(here, 2)
    until(lambda: sandbox.with_stats(lambda stats: stats.fetched_messages[delivery.message.msgid]) == 2, "it came back")
    until(lambda: worker.status()["statistics"]["duplicates"] == 1, "the worker recognized it")
    assert len(here.rows()) == 2
