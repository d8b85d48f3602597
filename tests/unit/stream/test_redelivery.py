"""Only what a message caused counts as an attempt, whatever Redis counts."""

from __future__ import annotations

import pytest
from redis import exceptions

from email_ingestion.errors import CircuitBreakerError, RedisConnectionError
from email_ingestion.stream.redelivery import EntryAttempts
from email_ingestion.stream.redis_link import meaning_of


def test_a_failed_attempt_counts_and_one_taken_back_does_not():
    attempts = EntryAttempts()
    assert attempts.delivered("1-0", 1, foreign=False) == 1
    assert attempts.delivered("1-0", 2, foreign=False) == 2  # the first one failed
    attempts.given_back(["1-0"])  # Redis did not hear of it
    assert attempts.delivered("1-0", 3, foreign=False) == 2


def test_what_another_worker_had_is_counted_as_redis_does():
    attempts = EntryAttempts()
    attempts.delivered("1-0", 1, foreign=False)
    attempts.given_back(["1-0"])
    assert attempts.delivered("1-0", 5, foreign=True) == 5


def test_deliveries_whose_answers_were_lost_are_no_attempts():
    attempts = EntryAttempts()
    for _ in range(6):
        with pytest.raises(RedisConnectionError), attempts.counting_lost_answers():
            raise RedisConnectionError("timed out")
    with pytest.raises(CircuitBreakerError), attempts.counting_lost_answers():
        raise CircuitBreakerError("redis", 1)  # not even made
    assert attempts.delivered("1-0", 8, foreign=False) == 2


def test_an_earlier_life_of_this_worker_may_have_been_killed_by_the_entry():
    assert EntryAttempts().delivered("1-0", 7, foreign=False) == 7


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (exceptions.NoPermissionError("this user has no permissions to run the 'xack' command"), "NOPERM"),
        (exceptions.ResponseError("The user executing the script can't run this command or subcommand"), "NOPERM"),
        (exceptions.ResponseError("ACL failure in script: User u has no permissions to run 'xack'"), "NOPERM"),
        (
            exceptions.ResponseError("WRONGTYPE Operation against a key holding script: a, on @user_script:1."),
            "WRONGTYPE",
        ),
        (
            exceptions.ResponseError("Error running script (call to f_a): @user_script:3: WRONGTYPE Operation"),
            "WRONGTYPE",
        ),
        (exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "OOM"),
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF"),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write. script: a"), "NOREPLICAS"),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), "READONLY"),
        (exceptions.ResponseError("unknown command 'XACK'"), ""),
    ],
)
def test_what_redis_refuses_is_told_by_its_meaning_also_inside_a_script(error: Exception, word: str):
    assert meaning_of(error) == word
