"""Which lines an operator finds, and which floods he is spared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import email_ingestion
from email_ingestion import errors, events
from email_ingestion.events import Event
from email_ingestion.ops import log_aggregation
from email_ingestion.ops.event_log import LOG_RULES, NOT_LOGGED, EventLogger
from email_ingestion.ops.observers import combine
from tests.unit.ops.shown import Clock

SOURCE = Path(email_ingestion.__file__).parent
CATALOGUE = SOURCE.parents[1] / "docs" / "log-events.md"


def logged(path: Path, minimum: str = "INFO") -> list[dict[str, Any]]:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if levels.index(line["level"]) >= levels.index(minimum)]


def delivered(number: int, *, duplicate: bool = False) -> events.Delivered:
    return events.Delivered(f"default:gm:{number}", 1, duplicate, 0.01, 0.2, 1.5)


def test_every_event_is_told_or_left_out_on_purpose() -> None:
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)}
    assert kinds - {Event} == LOG_RULES.keys() | NOT_LOGGED


def test_catalogue_and_code_name_the_same_events() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", CATALOGUE.read_text(), re.MULTILINE)
    direct = re.compile(r"\b_?log(?:ger\(.*\))?\.(?:debug|info|warning|error|critical|exception)\(\s*\"(\w+)\"")
    written = {name for file in SOURCE.rglob("*.py") for name in direct.findall(file.read_text())}
    named = {rule.name for rule in LOG_RULES.values()} | {log_aggregation.PUBLISHED, log_aggregation.DELIVERED}
    assert len(documented) == len(set(documented))
    assert set(documented) == written | named


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (events.RedisFailed(errors.RedisConnectionError("gone"), 1.0), "RedisConnectionError"),
        (events.ConnectionFailed("a", errors.IMAPConnectionError("gone"), 1.0), "IMAPConnectionError"),
        (events.ConnectionFailed("a", errors.IMAPThrottledError("slow"), 1.0), "IMAPConnectionError"),
        (events.NeedsOperator("a", errors.OAuth2AuthenticationError("consent")), "OAuth2AuthenticationError"),
        (events.TokenRefreshFailed("a", errors.TokenRefreshError("502"), permanent=False), "TokenRefreshError"),
        (events.BreakerRejected("redis", errors.CircuitBreakerError("redis", 9)), "CircuitBreakerError"),
        (events.BreakerChanged("imap", "CLOSED", "OPEN", None), "CircuitBreakerError"),
        (events.DeadLettered("default:gm:1", "max_retries", 6, None), "max_retries"),
    ],
)
def test_the_runbooks_words_are_found_in_the_log(logs: Path, event: Event, name: str) -> None:
    EventLogger()(event)
    (line,) = logged(logs, "WARNING")
    assert name in line["message"]


def test_an_error_shows_its_class_its_text_and_the_class_beneath(logs: Path) -> None:
    error = errors.RedisConnectionError("localhost:6379 refuses connections")
    error.__cause__ = ConnectionRefusedError()
    EventLogger()(events.RedisFailed(error, 5.0))
    (line,) = logged(logs)
    assert line["error_type"] == "RedisConnectionError"
    assert line["message"] == "RedisConnectionError: localhost:6379 refuses connections"
    assert (line["cause"], line["retry_in_s"]) == ("ConnectionRefusedError", 5.0)


def test_a_repeated_failure_is_told_at_once_then_every_30_seconds_with_a_count(logs: Path) -> None:
    clock = Clock()
    event_logger = EventLogger(clock)
    for second in range(31):
        clock.now = float(second)
        event_logger(events.RedisFailed(errors.RedisConnectionError("gone"), 1.0))
    lines = logged(logs)
    assert [line.get("suppressed") for line in lines] == [None, 29]
    assert len(logged(logs, "DEBUG")) == 31


def test_another_cause_is_told_at_once(logs: Path) -> None:
    event_logger = EventLogger(Clock())
    event_logger(events.ConnectionFailed("a", errors.IMAPConnectionError("x"), 1.0))
    event_logger(events.ConnectionFailed("b", errors.IMAPConnectionError("x"), 1.0))
    event_logger(events.ConnectionFailed("a", errors.IMAPThrottledError("x"), 1.0))
    assert len(logged(logs)) == 3


def test_every_dead_letter_is_told(logs: Path) -> None:
    event_logger = EventLogger(Clock())
    for number in range(5):
        event_logger(events.DeadLettered(f"default:gm:{number}", "permanent", 1, errors.PermanentError("no body")))
    assert [line["email_id"] for line in logged(logs)] == [f"default:gm:{number}" for number in range(5)]


def test_a_flood_of_deliveries_is_one_line_per_second(logs: Path) -> None:
    clock = Clock(100.0)
    event_logger = EventLogger(clock)
    for _ in range(20):
        for number in range(100):
            event_logger(delivered(number, duplicate=number == 0))
        event_logger(events.LoopTick("consume"))
        clock.now += 0.125
    clock.now += 1
    event_logger(events.LoopTick("consume"))
    lines = logged(logs)
    assert [line["event"] for line in lines] == ["emails_delivered"] * 4
    assert sum(line["count"] for line in lines) == 2000
    assert sum(line["duplicates"] for line in lines) == 20


def test_a_single_message_is_told_with_its_identity_as_soon_as_the_loop_turns(logs: Path) -> None:
    event_logger = EventLogger(Clock())
    event_logger(delivered(7))
    assert logged(logs) == []
    event_logger(events.LoopTick("consume"))
    (line,) = logged(logs)
    assert line["email_ids"] == ["default:gm:7"]


def test_a_line_names_the_slowest_the_urgent_and_the_tags_without_being_asked_for_debug(logs: Path) -> None:
    event_logger = EventLogger(Clock())
    event_logger(replace(delivered(1), tags=("invoices", "b")))
    event_logger(replace(delivered(2), duration=1.7))
    event_logger(replace(delivered(3), priority=9, tags=("invoices",)))
    event_logger(events.LoopTick("consume"))
    event_logger(replace(delivered(4), priority=2))
    event_logger(events.Stopped())
    first, second = (line for line in logged(logs) if line["event"] == "emails_delivered")
    assert (first["priority"], first["urgent_email_ids"]) == (9, ["default:gm:3"])
    assert (first["duration_ms"], first["slowest_email_id"]) == (1700.0, "default:gm:2")
    assert first["tags"] == ["b", "invoices"]
    assert (second["priority"], second["tags"], "urgent_email_ids" in second) == (2, [], False)


def test_the_slowest_is_one_of_live_mail_and_absent_where_there_was_none(logs: Path) -> None:
    event_logger = EventLogger(Clock())
    old = replace(delivered(1), end_to_end=4e8, history=True)
    for batch in ([old, delivered(2), old], [old]):
        for event in batch:
            event_logger(event)
        event_logger(events.Stopped())
    lines = [line for line in logged(logs) if line["event"] == "emails_delivered"]
    assert [(line["count"], line.get("slowest_end_to_end_s")) for line in lines] == [(3, 1.5), (1, None)]


def test_what_was_delivered_last_is_told_before_the_end(logs: Path) -> None:
    event_logger = EventLogger(Clock())
    event_logger(delivered(1))
    event_logger(events.LoopTick("consume"))
    event_logger(delivered(2))
    event_logger(events.Stopped())
    assert sum(line["count"] for line in logged(logs) if line["event"] == "emails_delivered") == 2


def test_a_dependency_that_is_back_is_worth_a_line(logs: Path) -> None:
    event_logger = EventLogger()
    for ok in (True, False, True, True):
        event_logger(events.Probed("redis", ok, 0.001, None if ok else errors.RedisConnectionError("gone")))
    assert [(line["level"], line["ok"]) for line in logged(logs)] == [("WARNING", False), ("INFO", True)]


def test_an_error_nobody_foresaw_shows_its_stack(logs: Path) -> None:
    try:
        int("Dear customer")
    except ValueError as error:
        EventLogger()(events.LoopFailed("consume", error))
    (line,) = logged(logs)
    assert "test_event_log.py" in line["exception"]
    assert "ValueError: text withheld" in line["exception"]


def test_a_broken_observer_stops_neither_the_loop_nor_the_others(logs: Path) -> None:
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError(str(event))

    observe = combine(broken, seen.append)
    observe(events.Stopped())
    observe(events.Stopped())
    assert seen.count(events.Stopped()) == 2
    assert {type(event) for event in seen} == {events.Stopped, events.LoopFailed}
    assert [line["event"] for line in logged(logs)] == ["observer_failed"]


def test_the_number_of_attempts_is_not_called_max_retries(logs: Path) -> None:
    EventLogger()(events.DeadLettered("default:gm:1", "max_retries", 3, None))
    (line,) = logged(logs)
    assert line["message"] == (
        "delivery attempts exceeded max_retries: 3 attempts failed, moved to the dead letter queue"
    )
