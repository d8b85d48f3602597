"""What every mailbox must do, on the Gmail sandbox and on a real Dovecot; how Gmail is special stands at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime

import imapclient
import pytest

from email_ingestion.errors import (
    AuthenticationFailed,
    ConfigurationError,
    IMAPConnectionError,
    IMAPThrottledError,
    OAuth2AuthenticationError,
    SessionExpired,
)
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import MessagesRefused, TokenRejected
from email_ingestion.settings import Account
from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.accounts import account
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot

TIMEOUT = 10.0


class Server:
    """One mail server as the tests see it: a port, and ways to put mail into its mailbox."""

    def __init__(self, port: int, deliver: Callable[[list[bytes]], None], token: Callable[[], str]) -> None:
        self.port = port
        self.deliver = deliver
        self.token = token

    def account(self, **changes) -> Account:
        return account(**{"imap_port": self.port, "imap_user": USER} | changes)

    def unauthenticated(self, **changes) -> ImapMailbox:
        return ImapMailbox(self.account(**changes), TIMEOUT)

    def connect(self, token: str | None = None) -> ImapMailbox:
        mailbox = ImapMailbox(self.account(), TIMEOUT)
        mailbox.login(token or self.token())
        return mailbox


@pytest.fixture
def gmail() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings(credentials=Credentials(user=USER, app_password=PASSWORD))) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def dovecot() -> Iterator[tuple[DovecotServer, RunningSandbox]]:
    with (
        running_sandbox(SandboxSettings(credentials=Credentials(user=USER))) as identity_provider,
        running_dovecot(identity_provider.oauth_port) as server,
    ):
        yield server, identity_provider


@pytest.fixture(params=["gmail", "dovecot"])
def server(request: pytest.FixtureRequest) -> Server:
    if request.param == "gmail":
        return _gmail(request.getfixturevalue("gmail"))
    imap, provider = request.getfixturevalue("dovecot")
    with imapclient.IMAPClient("127.0.0.1", imap.imap_port, ssl=False) as client:  # an empty mailbox for each test
        client.login(USER, PASSWORD)
        client.select_folder("INBOX")
        client.delete_messages(client.search())
        client.expunge()
    return Server(imap.imap_port, imap.deliver, provider.access_token)


def _gmail(sandbox: RunningSandbox) -> Server:
    def deliver(messages: list[bytes]) -> None:
        for raw in messages:
            sandbox.deliver(raw)

    return Server(sandbox.imap_port, deliver, sandbox.access_token)


@pytest.fixture
def mailbox(server: Server) -> Iterator[ImapMailbox]:
    with closing(server.connect()) as connected:
        yield connected


def _open(mailbox: ImapMailbox):
    return mailbox.examine(mailbox.find_mailbox("auto"))


def _letter(number: int, body: bytes = b"hello") -> bytes:
    return b"Subject: letter %d\r\nMessage-ID: <%d@example.org>\r\n\r\n%s\r\n" % (number, number, body)


def test_a_message_arrives_with_size_date_and_all_its_bytes(server: Server, mailbox: ImapMailbox):
    server.deliver([_letter(1, bytes(range(1, 256)).replace(b"\r", b"").replace(b"\n", b""))])
    _open(mailbox)
    (uid,) = mailbox.list_uids_from(1)
    (outline,) = mailbox.fetch_summaries([uid])
    raw = mailbox.fetch_bodies([uid])[uid]
    assert raw.endswith(bytes(range(128, 256)) + b"\r\n")
    assert outline.size == len(raw)
    assert abs((datetime.now(UTC) - outline.internaldate).total_seconds()) < 300
    assert outline.internaldate.tzinfo is UTC


def test_reading_changes_no_flag(server: Server, mailbox: ImapMailbox):
    server.deliver([_letter(1)])
    _open(mailbox)
    (uid,) = mailbox.list_uids_from(1)
    mailbox.fetch_bodies([uid])
    with closing(server.connect()) as other:
        _open(other)
        assert "\\Seen" not in other.fetch_summaries([uid])[0].flags


def test_uids_are_listed_in_windows_and_from_a_point_on(server: Server, mailbox: ImapMailbox):
    server.deliver([_letter(number) for number in range(5)])
    _open(mailbox)
    uids = mailbox.list_uids_from(1)
    assert len(uids) == 5
    assert uids == sorted(uids)
    assert mailbox.list_uids(uids[1], uids[3]) == uids[1:4]
    assert mailbox.list_uids_from(uids[-1] + 1) == []  # `n:*` names the last message even so


def test_a_vanished_uid_is_left_out_not_an_error(server: Server, mailbox: ImapMailbox):
    server.deliver([_letter(1)])
    _open(mailbox)
    (uid,) = mailbox.list_uids_from(1)
    assert [outline.uid for outline in mailbox.fetch_summaries([uid, uid + 1000])] == [uid]
    assert list(mailbox.fetch_bodies([uid, uid + 1000])) == [uid]


def test_what_is_expected_comes_whatever_is_said_between(server: Server, mailbox: ImapMailbox):
    server.deliver([_letter(number, b"%d " % number * 9000) for number in range(9)])
    _open(mailbox)
    uids = mailbox.list_uids_from(1)
    whole = mailbox.fetch_bodies(uids)
    first, second, third = uids[:3], uids[3:6], uids[6:]
    mailbox.prefetch(first)
    mailbox.prefetch(second)
    assert mailbox.fetch_bodies(first) == {uid: whole[uid] for uid in first}  # perhaps before the server has ended it
    mailbox.prefetch(third)
    assert [outline.uid for outline in mailbox.fetch_summaries(uids)] == uids
    assert mailbox.fetch_bodies([uids[4]]) == {uids[4]: whole[uids[4]]}
    assert mailbox.fetch_bodies(third) == {uid: whole[uid] for uid in third}
    mailbox.noop()
    assert mailbox.fetch_bodies(second) == {uid: whole[uid] for uid in second}


def test_what_was_expected_long_ago_is_asked_for_anew(server: Server, mailbox: ImapMailbox):
    server.deliver([_letter(number) for number in range(4)])
    _open(mailbox)
    uids = mailbox.list_uids_from(1)
    whole = mailbox.fetch_bodies(uids)
    for uid in uids:
        mailbox.prefetch([uid])
    assert [mailbox.fetch_bodies([uid]) for uid in uids] == [{uid: whole[uid]} for uid in uids]


def test_a_vanished_uid_among_the_expected_is_left_out(server: Server, mailbox: ImapMailbox):
    server.deliver([_letter(1), _letter(2)])
    _open(mailbox)
    one, two = mailbox.list_uids_from(1)
    mailbox.prefetch([one, two + 1000])
    mailbox.prefetch([two])
    assert list(mailbox.fetch_bodies([one, two + 1000])) == [one]
    assert list(mailbox.fetch_bodies([two])) == [two]


def test_a_body_may_be_expected_in_pieces(server: Server, mailbox: ImapMailbox):
    server.deliver([_letter(1, b"0123456789" * 500)])
    _open(mailbox)
    (uid,) = mailbox.list_uids_from(1)
    whole = mailbox.fetch_bodies([uid])[uid]
    pieces = []
    for offset in range(0, len(whole), 1000):
        mailbox.prefetch([uid], (offset, 1000))
        mailbox.prefetch([uid], (offset + 1000, 1000))
        pieces.append(mailbox.fetch_part(uid, offset, 1000).content)
    assert b"".join(pieces) == whole
    assert mailbox.fetch_part(uid, len(whole) + 1000, 1000).content == b""
    mailbox.prefetch([uid + 1000], (0, 1000))
    assert mailbox.fetch_part(uid + 1000, 0, 1000) is None


def test_new_mail_ends_the_wait(server: Server, mailbox: ImapMailbox):
    _open(mailbox)
    last = max(mailbox.list_uids_from(1), default=0)
    heard = threading.Event()

    def wait() -> None:
        mailbox.wait(60)
        heard.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    server.deliver([_letter(1)])
    assert heard.wait(20)
    waiting.join()
    assert len(mailbox.list_uids_from(last + 1)) == 1


def test_mail_that_came_before_the_wait_is_found_after_it(server: Server, mailbox: ImapMailbox):
    _open(mailbox)
    server.deliver([_letter(1)])
    mailbox.wait(0.1)
    assert len(mailbox.list_uids_from(1)) == 1


def test_an_interrupt_ends_the_wait(server: Server, mailbox: ImapMailbox):
    _open(mailbox)
    waiting = threading.Thread(target=mailbox.wait, args=(60,), daemon=True)
    waiting.start()
    mailbox.interrupt()
    waiting.join(10)
    assert not waiting.is_alive()
    assert mailbox.list_uids_from(1) == []
    began = time.monotonic()
    mailbox.wait(0.5)  # one ends a single wait
    assert time.monotonic() - began >= 0.5


def test_a_rejected_token_is_told_from_a_lost_connection(server: Server):
    with closing(ImapMailbox(server.account(), TIMEOUT)) as mailbox, pytest.raises(TokenRejected):
        mailbox.login("no-such-token")


def test_a_password_is_accepted_and_a_wrong_one_refused(server: Server):
    with closing(ImapMailbox(server.account(imap_password=PASSWORD), TIMEOUT)) as mailbox:
        mailbox.login(None)
        _open(mailbox)
    with (
        closing(ImapMailbox(server.account(imap_password="wrong"), TIMEOUT)) as mailbox,
        pytest.raises(AuthenticationFailed),
    ):
        mailbox.login(None)


def test_a_mailbox_that_does_not_exist_is_named_with_those_that_do(mailbox: ImapMailbox):
    with pytest.raises(ConfigurationError, match=r"'Nowhere' does not exist; there are: .*INBOX"):
        mailbox.find_mailbox("Nowhere")


def test_nobody_at_the_port_is_a_connection_error(server: Server):
    with pytest.raises(IMAPConnectionError):
        ImapMailbox(server.account(imap_port=1), TIMEOUT)


def test_closing_twice_and_after_a_loss_is_harmless(mailbox: ImapMailbox):
    mailbox.close()
    mailbox.close()
    with pytest.raises(IMAPConnectionError):
        mailbox.noop()


def test_a_mailbox_that_another_one_replaced_is_noticed(dovecot: tuple[DovecotServer, RunningSandbox]):
    """This server goes on to show the former one, in most of the rounds; in some it ends the session."""
    imap, provider = dovecot
    server = Server(imap.imap_port, imap.deliver, provider.access_token)
    with imapclient.IMAPClient("127.0.0.1", imap.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        for number in range(8):
            name = f"Folder{number}"
            client.create_folder(name)
            with closing(server.connect()) as mailbox:
                opened = mailbox.examine(name)
                assert not mailbox.is_replaced(opened)
                client.delete_folder(name)
                client.create_folder(name)
                try:
                    mailbox.list_uids_from(1)
                    assert mailbox.is_replaced(opened)
                except IMAPConnectionError:
                    pass


# Gmail alone


@pytest.fixture
def google(gmail: RunningSandbox) -> Iterator[ImapMailbox]:
    with closing(_gmail(gmail).connect()) as connected:
        yield connected


def test_gmail_tells_identity_thread_and_labels(gmail: RunningSandbox, google: ImapMailbox):
    labels = ["\\Inbox", "2024", "NIL", "Übung", "R&D", 'a"b', "[Imap]/x", "two words"]
    delivery = gmail.deliver(_letter(1), labels)
    _open(google)
    (outline,) = google.fetch_summaries(google.list_uids_from(1))
    assert outline.gm_msgid == delivery.message.msgid
    assert outline.gm_thrid == delivery.message.thrid
    assert sorted(outline.labels) == sorted(labels)


def test_all_mail_is_found_by_its_attribute_whatever_its_name(gmail: RunningSandbox, google: ImapMailbox):
    gmail.with_account(lambda account: account.configure(language="it"))
    assert google.find_mailbox("auto").name == "[Gmail]/Tutti i messaggi"


def test_a_hidden_all_mail_is_told_with_the_cure(gmail: RunningSandbox, google: ImapMailbox):
    gmail.arm_fault("hidden_all")
    with pytest.raises(ConfigurationError, match="Show in IMAP"):
        google.find_mailbox("auto")


def test_an_expired_session_is_no_failure(gmail: RunningSandbox, google: ImapMailbox):
    _open(google)
    gmail.arm_fault("session_expiry")
    with pytest.raises(SessionExpired):
        google.wait(20)


def test_an_announcement_glued_to_the_start_of_idle_is_heard(gmail: RunningSandbox, google: ImapMailbox):
    _open(google)
    gmail.arm_fault("glued_exists")
    gmail.deliver(_letter(1))
    waiting = threading.Thread(target=google.wait, args=(60,), daemon=True)
    waiting.start()
    waiting.join(20)
    assert not waiting.is_alive()
    assert len(google.list_uids_from(1)) == 1


def test_a_missing_scope_is_told_as_such(gmail: RunningSandbox):
    token = gmail.access_token(scope="openid")
    with closing(_gmail(gmail).unauthenticated()) as mailbox, pytest.raises(OAuth2AuthenticationError, match="scope"):
        mailbox.login(token)


@pytest.mark.parametrize(("fault", "least"), [("over_quota", 3600), ("too_many_connections", 30)])
def test_a_limited_account_stays_away(gmail: RunningSandbox, fault: str, least: float):
    gmail.arm_fault(fault)
    with pytest.raises(IMAPThrottledError) as caught, closing(ImapMailbox(_gmail(gmail).account(), TIMEOUT)) as mailbox:
        mailbox.login(gmail.access_token())
    assert caught.value.retry_after >= least


def test_nothing_is_expected_of_another_mailbox(gmail: RunningSandbox, google: ImapMailbox):
    gmail.deliver(_letter(1), ["Archive"])
    gmail.deliver(_letter(2), ["\\Inbox"])
    _open(google)
    google.prefetch([1])
    google.examine("INBOX")
    assert google.fetch_bodies([1])[1] == _letter(2)


def test_expected_messages_that_are_refused_are_told_with_those_that_came(gmail: RunningSandbox, google: ImapMailbox):
    for number in range(6):
        gmail.deliver(_letter(number))
    _open(google)
    uids = google.list_uids_from(1)
    gmail.arm_fault("partial_fetch", missing=1)
    google.prefetch(uids[:3])
    google.prefetch(uids[3:])
    with pytest.raises(MessagesRefused) as refused:
        google.fetch_bodies(uids[:3])
    assert len(refused.value.found) == 2
    assert list(google.fetch_bodies(uids[3:])) == uids[3:]
    assert list(google.fetch_bodies(uids[:3])) == uids[:3]


def test_a_session_that_ends_takes_what_was_expected_with_it(gmail: RunningSandbox, google: ImapMailbox):
    gmail.deliver(_letter(1))
    gmail.deliver(_letter(2))
    _open(google)
    uids = google.list_uids_from(1)
    gmail.arm_fault("session_expiry", when="fetch", after_messages=1)
    google.prefetch(uids)
    with pytest.raises(SessionExpired):
        google.fetch_bodies(uids)


def test_nothing_is_expected_of_a_server_that_asks_to_be_left_in_peace(gmail: RunningSandbox, google: ImapMailbox):
    gmail.deliver(_letter(1))
    _open(google)
    uids = google.list_uids_from(1)
    gmail.arm_fault("throttled", delay_ms=0)
    google.noop()
    assert google.throttle_delay > 0
    google.prefetch(uids)
    assert gmail.with_stats(lambda stats: stats.commands["UID FETCH"]) == 0
    assert list(google.fetch_bodies(uids)) == uids
