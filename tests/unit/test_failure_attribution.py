"""Who is to blame when a sink did not take messages."""

from __future__ import annotations

import pytest

from email_ingestion.errors import (
    CircuitBreakerError,
    PermanentError,
    Reject,
    Retry,
    SinkFailed,
    SinkThrottled,
    SinkUnavailable,
)
from email_ingestion.worker.failure_attribution import LONGEST_PAUSE, attribute_failures

TAKEN = None
FAILED = SinkFailed("500")


@pytest.mark.parametrize("error", [SinkUnavailable(""), CircuitBreakerError("sink", 1), SinkThrottled("", 1)])
def test_a_sink_that_is_away_spends_no_attempt_even_when_others_got_through(error):
    found = attribute_failures([error, TAKEN, error], proven=True)
    assert (found.permanent, found.failed) == ((), ())


def test_in_an_outage_no_message_is_to_blame():
    assert attribute_failures([FAILED, FAILED, FAILED], proven=False).failed == ()


def test_a_message_that_fails_where_a_later_one_succeeds_is_to_blame():
    assert attribute_failures([TAKEN, FAILED, TAKEN, FAILED], proven=False).failed == (1,)


def test_a_sink_that_worked_until_now_has_the_benefit_of_the_doubt():
    assert attribute_failures([FAILED], proven=True).failed == (0,)


def test_what_a_sink_says_of_a_message_holds_always():
    found = attribute_failures([Reject("no"), PermanentError("400"), Retry("later")], proven=False)
    assert (found.permanent, found.failed, found.delivered_any) == ((0, 1), (2,), False)


def test_the_longest_pause_asked_for_holds_up_to_an_hour():
    assert attribute_failures([SinkThrottled("", 5), SinkThrottled("", 9), TAKEN], proven=True).pause == 9
    assert attribute_failures([SinkThrottled("", 1e9)], proven=True).pause == LONGEST_PAUSE
    assert attribute_failures([TAKEN], proven=True).pause == 0
