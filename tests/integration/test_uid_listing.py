"""UIDs are listed at the cost of the messages, whatever lies between them, and whatever the server refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain

import pytest

from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.uid_listing import LAST_UID
from tests.servers.accounts import account
from tests.servers.odd_imap import PASSWORD, USER, Mail, OddImapServer, bad, default, no, ok, send
from tests.servers.odd_mail import Reply

RAW = b"Subject: one\r\n\r\nhello\r\n"
WEB_DE = [743_024_218 + 1_400 * number for number in range(6)]
FAR_APART = [7 + number * number * 400_000 for number in range(95)]


@contextmanager
def opened(uids: list[int]) -> Iterator[tuple[OddImapServer, ImapMailbox]]:
    with OddImapServer([Mail(RAW, uid=uid) for uid in uids]) as server:
        ours = account(imap_port=server.port, imap_user=USER, imap_password=PASSWORD)
        with closing(ImapMailbox(ours, 10.0)) as mailbox:
            mailbox.login(None)
            mailbox.examine("INBOX")
            yield server, mailbox


def listed(mailbox: ImapMailbox, size: int, *, between: Callable[[], None] = lambda: None) -> list[list[int]]:
    """What each window holds; `between` runs when it is known where to cut."""
    windows = mailbox.windows(1, LAST_UID, size)
    between()
    assert [low for low, _ in windows] == [1, *(high + 1 for _, high in windows[:-1])]
    assert windows[-1][1] == LAST_UID
    return [mailbox.list_uids(*window) for window in windows]


def test_few_messages_take_one_command_however_far_apart_they_are():
    with opened(WEB_DE) as (server, mailbox):
        assert listed(mailbox, 5000) == [WEB_DE]
        assert mailbox.list_uids_from(WEB_DE[3]) == WEB_DE[3:]
        assert mailbox.list_present([WEB_DE[0], 5, WEB_DE[5]]) == {WEB_DE[0], WEB_DE[5]}
        assert server.count("UID SEARCH") == 3


def test_many_are_cut_into_windows_of_the_size_that_was_asked_for():
    with opened(FAR_APART) as (server, mailbox):
        windows = listed(mailbox, 10)
        assert [len(window) for window in windows] == [10] * 9 + [5]
        assert list(chain(*windows)) == FAR_APART
        assert server.count("UID SEARCH") == 1 + len(windows)


def test_windows_of_a_part_of_the_range_are_within_it():
    with opened(FAR_APART) as (_, mailbox):
        windows = mailbox.windows(FAR_APART[25], FAR_APART[71], 10)
        assert windows[0][0] == FAR_APART[25]
        assert windows[-1][1] == FAR_APART[71]
        assert list(chain(*(mailbox.list_uids(*window) for window in windows))) == FAR_APART[25:72]
        assert mailbox.windows(9, 8) == []


def test_nothing_is_left_out_when_mail_comes_and_goes_meanwhile():
    with opened(FAR_APART) as (server, mailbox):

        def change() -> None:
            with server.lock:
                del server.inbox.mail[5:65]
            for _ in range(20):
                server.deliver(RAW)

        windows = listed(mailbox, 10, between=change)
        assert list(chain(*windows)) == [mail.uid for mail in server.inbox.mail]
        assert (len(windows), mailbox.exists) == (10, 55)


@pytest.mark.parametrize("answer", [[bad("no sequence numbers")], [no("cannot")], [send("* SEARCH"), ok()], [ok()]])
def test_a_server_that_does_not_tell_where_to_cut_is_asked_for_windows_of_equal_width(answer: list[Reply]):
    with opened(FAR_APART) as (server, mailbox):
        server.on("UID SEARCH", *answer, containing=b"10,20,30", times=1)
        windows = listed(mailbox, 10)
        assert list(chain(*windows)) == FAR_APART
        assert max(map(len, windows)) < 30
        assert server.count("UID SEARCH") < 60


def test_a_limited_search_goes_on_below():
    """RFC 9738, as Yahoo has it."""

    def limited(conversation, command) -> None:
        low, high = map(int, command.arguments.partition(b" ")[2].split(b":"))
        found = list(range(low, high + 1))[-20:]
        conversation.send(b"* SEARCH " + b" ".join(b"%d" % uid for uid in found) + b"\r\n")
        conversation.end(command, f"OK [MESSAGELIMIT 20 {found[0]}] not all" if len(found) == 20 else "OK done")

    with opened(list(range(1, 96))) as (server, mailbox):
        server.on("UID SEARCH", limited)
        assert mailbox.list_uids(1, 90) == list(range(1, 91))
        assert server.count("UID SEARCH") == 5


def test_several_search_responses_are_one_and_what_was_not_asked_for_is_left_out():
    with opened(FAR_APART) as (server, mailbox):
        server.on("UID SEARCH", send("* SEARCH 8 7", "* 3 FETCH (FLAGS ())", "* SEARCH 9 1 99 (MODSEQ 12)"), ok())
        assert mailbox.list_uids(5, 20) == [7, 8, 9]


def test_the_count_follows_the_server():
    with opened(FAR_APART) as (server, mailbox):
        server.on("NOOP", send("* 3 EXPUNGE", "* 3 EXPUNGE", "* 95 EXISTS", "* 1 EXPUNGE"), default)
        mailbox.noop()
        assert mailbox.exists in {94, 95}
