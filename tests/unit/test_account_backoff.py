"""How long a watcher stays away, and what makes it forget that it had to."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from email_ingestion.errors import (
    AuthenticationFailed,
    CircuitBreakerError,
    ConfigurationError,
    EmailIngestionError,
    IMAPCommandRefused,
    IMAPConnectionError,
    IMAPLockedOut,
    IMAPThrottledError,
    OAuth2AuthenticationError,
    SessionExpired,
    StaleCursor,
    TokenRefreshError,
)
from email_ingestion.mailbox.imap_errors import LookupFailed, WebLoginRequired
from email_ingestion.producer.account_backoff import FREE_QUARANTINES, AccountBackoff
from email_ingestion.producer.suspicion import MessageQuarantined


@pytest.fixture
def backoff() -> AccountBackoff:
    return AccountBackoff(random.Random(1))


def seconds(backoff: AccountBackoff, error: EmailIngestionError, times: int) -> list[float]:
    return [backoff.after(error).seconds for _ in range(times)]


@pytest.mark.parametrize("error", [IMAPConnectionError("x"), TokenRefreshError("x")])
def test_what_may_pass_is_waited_for_longer_each_time_up_to_the_recovery_time(backoff: AccountBackoff, error):
    waits = seconds(backoff, error, 12)
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits[:5]))
    assert all(15 <= wait <= 30 for wait in waits[5:])


def test_an_attempt_that_took_long_to_fail_is_followed_by_the_rest_of_the_wait(backoff: AccountBackoff):
    seconds(backoff, IMAPConnectionError("x"), 8)
    assert backoff.after(IMAPConnectionError("x"), spent=30.0).seconds <= 1


def test_logins_without_progress_come_four_times_in_a_minute_and_then_three_times():
    now = 1000.0
    account = AccountBackoff(random.Random(1), clock=lambda: now)
    logins = []
    for _ in range(20):
        now += account.login_delay()
        logins.append(now)
        account.count_login()
    assert all(each - before > 60 for before, each in zip(logins, logins[4:], strict=False))
    assert all(each - before <= 30 for before, each in pairwise(logins))
    account.progressed()
    assert account.login_delay() == 0.0


def test_a_login_after_a_long_session_is_the_first_again():
    now = 1000.0
    account = AccountBackoff(random.Random(1), clock=lambda: now)
    for _ in range(5):
        account.count_login()
        now += 3000.0
    account.count_login()
    assert account.login_delay() < 2


def test_refused_credentials_are_tried_once_in_a_quarter_of_an_hour(backoff: AccountBackoff):
    assert set(seconds(backoff, AuthenticationFailed("x"), 5)) == {900}


def test_too_many_connections_waits_half_a_minute_to_a_quarter_of_an_hour(backoff: AccountBackoff):
    waits = seconds(backoff, IMAPThrottledError("crowded", 30.0), 10)
    assert waits[0] >= 30
    assert waits[1] >= 60
    assert all(900 <= wait <= 900 * 1.25 for wait in waits[6:])


def test_a_person_is_waited_for_longer_each_time_up_to_a_quarter_of_an_hour(backoff: AccountBackoff):
    assert seconds(backoff, ConfigurationError("no such mailbox"), 10)[-1] == 900
    assert {backoff.after(error).kind for error in (AuthenticationFailed("x"), ConfigurationError("x"))} == {"operator"}
    assert backoff.after(IMAPCommandRefused("BAD")).kind == "operator"


def test_a_login_in_a_browser_is_looked_at_hourly(backoff: AccountBackoff):
    assert backoff.after(WebLoginRequired("x")) == backoff.after(WebLoginRequired("x"))
    assert backoff.after(WebLoginRequired("x")).seconds == 3600


def test_a_failed_lookup_is_a_matter_for_a_person_at_the_third_time(backoff: AccountBackoff):
    assert [backoff.after(LookupFailed("x")).kind for _ in range(3)] == ["transient", "transient", "operator"]


def test_only_a_successful_sync_ends_a_back_off(backoff: AccountBackoff):
    seconds(backoff, IMAPConnectionError("x"), 6)
    seconds(backoff, OAuth2AuthenticationError("x"), 6)
    assert backoff.after(IMAPConnectionError("x")).seconds > 10
    backoff.reset()
    assert backoff.after(IMAPConnectionError("x")).seconds <= 1
    assert backoff.after(ConfigurationError("x")).seconds == 15


@pytest.mark.parametrize("error", [SessionExpired("x"), StaleCursor("x")])
def test_a_session_that_ends_is_no_failure_unless_it_was_of_no_use(backoff: AccountBackoff, error):
    first, second, third = (backoff.after(error) for _ in range(3))
    assert (first.kind, first.seconds) == ("normal", 0.0)
    assert third.seconds > second.seconds / 2 > 0
    backoff.reset()
    assert backoff.after(error).seconds == 0.0


def test_a_lockout_and_an_open_breaker_say_themselves_how_long(backoff: AccountBackoff):
    assert seconds(backoff, IMAPLockedOut("x", 3600.0), 2) == [3600, 3600]  # doubled where it is written down
    assert seconds(backoff, CircuitBreakerError("imap", 3.0), 2) == [3, 3]
    assert seconds(backoff, CircuitBreakerError("imap", 3600.0), 1) == [5]  # an operator may let it go at any time


def test_accounts_that_fail_together_do_not_come_back_together():
    waits = {AccountBackoff(random.Random(seed)).after(IMAPConnectionError("x")).seconds for seed in range(20)}
    assert len(waits) == 20


def test_messages_that_end_the_conversation_are_no_failures_while_others_come():
    backoff = AccountBackoff(random.Random(1))
    backoff.after(IMAPConnectionError("broke off"))
    among_others = [backoff.after(MessageQuarantined("", others_came=True)).seconds for _ in range(20)]
    alone = [backoff.after(MessageQuarantined("", others_came=False)).seconds for _ in range(6)]
    assert among_others == [0.0] * 20
    assert alone[:FREE_QUARANTINES] == [0.0] * FREE_QUARANTINES
    assert all(seconds > 0 for seconds in alone[FREE_QUARANTINES:])
    assert alone[-1] > alone[FREE_QUARANTINES]
