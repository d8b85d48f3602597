"""Whose fault it is when a sink did not take messages: pure, no waiting and no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from email_ingestion.errors import (
    CircuitBreakerError,
    EmailIngestionError,
    PermanentError,
    SinkFailed,
    SinkThrottled,
    SinkUnavailable,
)

# Nothing was tried, or the sink says itself that no message is to blame.
NO_MESSAGE_AT_FAULT = (SinkUnavailable, SinkThrottled, CircuitBreakerError)
LONGEST_PAUSE = 3600.0  # seconds a sink may ask for


@dataclass(frozen=True, slots=True)
class Attribution:
    """Messages by their place in the sequence of answers; who is in neither was taken, or is to be spared."""

    permanent: tuple[int, ...]  # never to be tried again
    failed: tuple[int, ...]  # has spent an attempt
    taken: bool  # the sink has taken something
    pause: float  # seconds the sink wants to be left alone for


def attribute_failures(answers: Sequence[EmailIngestionError | None], *, proven: bool) -> Attribution:
    """Decide on the answers of a sink, in the order in which it gave them.

    Where either may be to blame, it is the message if the sink took another one afterwards, or if the sink is
    `proven`: its breaker is closed, and it has taken something since that was last open. So no outage spends
    attempts, however long it is.
    """
    last_taken = max((place for place, error in enumerate(answers) if error is None), default=-1)
    permanent: list[int] = []
    failed: list[int] = []
    for place, error in enumerate(answers):
        if error is None or isinstance(error, NO_MESSAGE_AT_FAULT):
            continue
        if isinstance(error, PermanentError):
            permanent.append(place)
        elif proven or place < last_taken or not isinstance(error, SinkFailed):
            failed.append(place)
    asked = [error.retry_after for error in answers if isinstance(error, SinkThrottled)]
    return Attribution(tuple(permanent), tuple(failed), last_taken >= 0, min(max(asked, default=0.0), LONGEST_PAUSE))
