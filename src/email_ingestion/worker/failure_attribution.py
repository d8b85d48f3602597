"""Which messages are at fault when a sink failed: pure, no waiting and no clock."""

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

# Nothing was tried, or the sink itself says that no message is at fault.
NO_MESSAGE_AT_FAULT = (SinkUnavailable, SinkThrottled, CircuitBreakerError)
LONGEST_PAUSE = 3600.0  # seconds a sink may ask for


@dataclass(frozen=True, slots=True)
class Attribution:
    """Messages by their index in the results; a message in neither tuple was delivered, or spends no attempt."""

    permanent: tuple[int, ...]  # not to be tried any more
    failed: tuple[int, ...]  # have spent an attempt
    delivered_any: bool  # the sink has taken at least one
    pause: float  # seconds the sink asks not to be called for


def attribute_failures(results: Sequence[EmailIngestionError | None], *, proven: bool) -> Attribution:
    """Attribute the results of a sink, in the order in which it gave them.

    Where either the sink or the message may be at fault, it is the message if the sink took another one afterwards, or
    if the sink is `proven`: its breaker is closed, and it has taken a message since that was last open. So no outage
    spends attempts, however long it is.
    """
    last_delivered = max((index for index, error in enumerate(results) if error is None), default=-1)
    permanent: list[int] = []
    failed: list[int] = []
    for index, error in enumerate(results):
        if error is None or isinstance(error, NO_MESSAGE_AT_FAULT):
            continue
        if isinstance(error, PermanentError):
            permanent.append(index)
        elif proven or index < last_delivered or not isinstance(error, SinkFailed):
            failed.append(index)
    pauses = [error.retry_after for error in results if isinstance(error, SinkThrottled)]
    pause = min(max(pauses, default=0.0), LONGEST_PAUSE)
    return Attribution(tuple(permanent), tuple(failed), last_delivered >= 0, pause)
