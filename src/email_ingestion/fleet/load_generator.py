"""Sends generated messages through the real pipeline and measures how long they take.

    the sandbox's stack   delivered into its mailbox ─IMAP─▶ producer ─▶ stream ─▶ worker ─▶ database, further sinks
    any other             a rehearsal, behind the mail that is in the stream ─▶ worker ─▶ database, rolled back

A real system is never given mail that is not there: a rehearsal is parsed, routed and written like mail and leaves no
row, no blob and no dead letter, no further sink gets it, no cursor moves. It fills at most `WINDOW` places of the
stream, so that mail waits for that many messages and no longer.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from typing import Any, Literal

import httpx

from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.sandbox_stack import control_url
from email_ingestion.ledger.store import open_ledger
from email_ingestion.records import email_id
from email_ingestion.settings import Settings
from email_ingestion.stream import Appender, Receipt, SyntheticMessages, open_link, read_presences
from email_ingestion.stream.synthetic import synthetic_message

WINDOW = 500
BATCH = 100
POLL_SECONDS = 0.02
GIVE_UP_SECONDS = 60.0  # without a single message coming to its end

_LINES = "The quick brown fox jumps over the lazy dog while the queue fills up.\r\n"


@dataclass
class LoadResult:
    """The measurements; times in seconds."""

    way: Literal["sandbox", "rehearsal"]
    emails: int
    sent: int = 0
    failed: int = 0
    seconds: float = 0.0  # from the first message sent to the last at its end
    waited: list[float] = field(default_factory=list)  # in the stream; the sandbox's way does not tell
    took: list[float] = field(default_factory=list)  # one for each delivered

    @property
    def missing(self) -> int:
        """How many messages did not end in time."""
        return self.emails - len(self.took) - self.failed

    def summary(self) -> dict[str, Any]:
        """Return the result as it is printed."""
        return {
            "way": self.way,
            "emails": self.emails,
            "delivered": len(self.took),
            "failed": self.failed,
            "missing": self.missing,
            "seconds": round(self.seconds, 3),
            "rate_per_second": round(len(self.took) / self.seconds, 1) if self.seconds else None,
            "latency_seconds": percentiles(self.took),
            "queue_wait_seconds": percentiles(self.waited),
        }


def percentiles(values: list[float]) -> dict[str, float] | None:
    """Return percentiles by nearest rank; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    found = {f"p{part}": ordered[ceil(part / 100 * len(ordered)) - 1] for part in (50, 95, 99)}
    return {name: round(value, 4) for name, value in (found | {"max": ordered[-1]}).items()}


def generate_load(
    settings: Settings, emails: int, rate: float | None, on_progress: Callable[[int], None]
) -> LoadResult:
    """Send `emails` messages, `rate` a second if given, and wait for their end; `on_progress` gets how many have ended.

    Raises OperationFailed when nobody could take them, RedisConnectionError and SinkUnavailable.
    """
    sandbox = control_url()
    result = LoadResult("sandbox" if sandbox else "rehearsal", emails)
    way = _through_sandbox(settings, sandbox, result, rate) if sandbox else _rehearse(settings, result, rate)
    started = last_arrival = time.monotonic()
    done = 0
    for _ in way:
        now = time.monotonic()
        arrived = len(result.took) + result.failed
        if arrived > done:
            done, last_arrival = arrived, now
            result.seconds = now - started
            on_progress(done)
        if not result.missing or now - last_arrival > GIVE_UP_SECONDS + (1 / rate if rate else 0):
            break
    return result


def _due(result: LoadResult, rate: float | None, since: float) -> int:
    """Return how many messages are due by now and not sent."""
    allowed = result.emails if rate is None else min(result.emails, 1 + int((time.monotonic() - since) * rate))
    return allowed - result.sent


def _rehearse(settings: Settings, result: LoadResult, rate: float | None) -> Iterator[None]:
    link = open_link(settings.redis_address, "email-ingestion-loadtest")
    workers = [each for each in read_presences(link) if each.get("component") == "worker"]
    if all(each.get("paused") for each in workers):
        state = "every worker is paused" if workers else "no worker runs"
        raise OperationFailed(f"{state}: `email-ingestion status` shows them, ./scripts/start.sh starts one")
    synthetic, appender, name = SyntheticMessages(link), Appender(link), f"loadtest-{secrets.token_hex(6)}"
    since = time.monotonic()
    while True:
        room = WINDOW - (result.sent - len(result.took) - result.failed)
        batch = min(_due(result, rate, since), BATCH, room)
        if batch > 0 and appender.backlog().depth < settings.stream_max_depth:
            numbers = range(result.sent, result.sent + batch)
            synthetic.append([synthetic_message(name, number, sample_message(name, number)) for number in numbers])
            result.sent += batch
        receipts = synthetic.pop_receipts(name)
        _count(result, receipts)
        yield
        if not receipts:
            time.sleep(POLL_SECONDS)


def _count(result: LoadResult, receipts: list[Receipt]) -> None:
    for each in receipts:
        result.waited.append(each.waited)
        if each.delivered:
            result.took.append(each.took)
        else:
            result.failed += 1


def _through_sandbox(settings: Settings, url: str, result: LoadResult, rate: float | None) -> Iterator[None]:
    account, name = settings.all_accounts[0].name, secrets.token_hex(6)
    sent: dict[str, float] = {}
    with (
        closing(open_ledger(settings.database_url)) as ledger,
        httpx.Client(base_url=url, timeout=10, trust_env=False) as client,
    ):
        since = time.monotonic()
        while True:
            for _ in range(min(_due(result, rate, since), BATCH)):
                now = time.time()
                sent[email_id(account, _deliver(client, sample_message(name, result.sent)), "")] = now
                result.sent += 1
            arrived = ledger.processed_times(sent)
            result.took += [max(0.0, at.timestamp() - sent.pop(each)) for each, at in arrived.items()]
            yield
            if result.sent == result.emails or rate:
                time.sleep(POLL_SECONDS)


def _deliver(client: httpx.Client, raw: bytes) -> int:
    """Deliver a message into the sandbox's mailbox; return its X-GM-MSGID."""
    try:
        answer = client.post("/deliver", content=raw, headers={"Content-Type": "message/rfc822"})
        return int(answer.json()["msgid"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise OperationFailed("the sandbox does not take mail: see logs/sandbox.out") from error


def sample_message(run: str, number: int) -> bytes:
    """Make a message of one to six kilobytes; every fourth is HTML, every tenth has an attachment."""
    text = _LINES * (10 + number * 7919 % 60)
    kind = "html" if number % 4 == 0 else "plain"
    body = f"<html><body><p>{text}</p></body></html>\r\n" if kind == "html" else text
    head = (
        f"Message-ID: <{run}-{number}@loadtest.invalid>\r\n"
        f"Date: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} +0000\r\n"
        f"From: Sender {number % 97} <sender{number % 97}@example.com>\r\nTo: demo@example.com\r\n"
        f"Subject: Load test {run}, message {number}\r\nMIME-Version: 1.0\r\n"
    )
    part = f"Content-Type: text/{kind}; charset=utf-8\r\n\r\n{body}"
    if number % 10:
        return (head + part).encode()
    attached = (
        'Content-Type: text/csv; name="rows.csv"\r\nContent-Disposition: attachment; filename="rows.csv"\r\n\r\n'
        + f"{run},{number}\r\n" * 100
    )
    parts = "".join(f"--b\r\n{each}\r\n" for each in (part, attached))
    return f'{head}Content-Type: multipart/mixed; boundary="b"\r\n\r\n{parts}--b--\r\n'.encode()
