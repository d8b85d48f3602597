"""The webhook on a real connection: what it sends, and what each answer means."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.email_json import from_json
from email_ingestion.errors import (
    ConfigurationError,
    PermanentError,
    SinkFailed,
    SinkThrottled,
    SinkUnavailable,
)
from email_ingestion.events import BreakerChanged
from email_ingestion.ledger.model import ErasureNotice
from email_ingestion.records import ChangeEvent, ChangeKind, SinkMessage
from email_ingestion.sinks import load_sink
from email_ingestion.sinks.webhook import WebhookSink, open_sink, parse_retry_after
from email_ingestion.worker.processor import is_available
from tests.contract.ledgers import mail, raw_of
from tests.drills.certificate import make_certificate
from tests.servers.event_schemas import judge
from tests.servers.links import Heard
from tests.servers.webhook import SECRET, Receiver, receiving

OTHER = "whsec_" + "b3RoZXItc2VjcmV0LW90aGVyLXNlY3JldC1vdGhlcg=="
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Settings:
    """What the webhook reads of the settings."""

    webhook_url: str | None
    webhook_secret: str | None = SECRET
    webhook_timeout_seconds: float = 5
    sink_timeout: float = 30
    worker_threads: int = 2
    blob_threshold_bytes: int = 1000
    webhook_envelope: str = "standard"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def sink(receiver: Receiver) -> Iterator[WebhookSink]:
    with closing(open_sink(Settings(receiver.url))) as opened:  # type: ignore[arg-type]
        yield opened


def sink_message(number: int = 1, attachments: tuple[bytes, ...] = ()) -> SinkMessage:
    return SinkMessage(mail(number, attachments=attachments), raw_of(number))


def test_a_receiver_with_the_reference_library_accepts_what_is_sent(sink: WebhookSink, receiver: Receiver):
    sink.deliver([sink_message()])
    body = receiver.bodies["default:gm:1"]
    assert body["type"] == "email.received"
    assert from_json(body["data"]) == mail(1)
    judge("emailReceived").validate(body)
    sink.tell_erased(ErasureNotice("default:gm:1", "webhook", NOW))
    judge("emailErased").validate(receiver.bodies["erased:default:gm:1"])


CHANGED = ChangeEvent(
    7, NOW, ChangeKind.RELABELLED, "default", "default:gm:1", {"labels": ["a"], "added": ["a"], "removed": []}
)
GONE = ChangeEvent(8, NOW, ChangeKind.ERASED, "default", "default:gm:1", None, NOW)


def test_changes_are_posted_as_described(sink: WebhookSink, receiver: Receiver):
    sink.tell_changes([CHANGED])
    (name,) = receiver.bodies
    assert name.startswith("change:7:")
    assert receiver.bodies[name]["type"] == "email.relabelled"
    judge("emailChanged").validate(receiver.bodies[name])
    sink.tell_changes([GONE])
    judge("emailErased").validate(receiver.bodies["erased:default:gm:1"])
    assert receiver.bodies["erased:default:gm:1"]["data"]["seq"] == 8
    sink.tell_missed(9)
    judge("changesMissed").validate(receiver.bodies["missed:9"])


def test_cloud_events_are_posted_in_structured_mode_and_signed_as_ever(receiver: Receiver):
    settings = Settings(receiver.url, webhook_envelope="cloudevents")
    with closing(open_sink(settings)) as sink:  # type: ignore[arg-type]
        sink.deliver([sink_message()])
        sink.tell_changes([CHANGED])
        sink.tell_changes([GONE])
        sink.tell_missed(9)
        sink.tell_erased(ErasureNotice("default:gm:2", "webhook", NOW))
    for name, body in receiver.bodies.items():
        judge("cloudEvent").validate(body)
        assert body["id"] == name
    assert {kind.partition(";")[0] for kind in receiver.kinds} == {"application/cloudevents+json"}
    mailed = receiver.bodies["default:gm:1"]
    assert (mailed["type"], mailed["subject"]) == ("email.received", "default:gm:1")
    assert from_json(mailed["data"]) == mail(1)
    assert mailed["time"] == mail(1).envelope.internaldate.isoformat()
    told = next(body for name, body in receiver.bodies.items() if name.startswith("change:"))
    assert (told["sequence"], told["source"]) == ("00000000000000000007", "/email-ingestion/accounts/default")
    judge("changes").validate({"items": [told["data"]], "next": 7, "total": None})


def test_what_is_too_large_to_travel_is_described(sink: WebhookSink, receiver: Receiver):
    sink.deliver([sink_message(attachments=(b"small", bytes(1001)))])
    contents = [part["content"] for part in receiver.bodies["default:gm:1"]["data"]["attachments"]]
    assert contents == ["c21hbGw=", None]


@pytest.mark.parametrize("secrets", [f"{OTHER},{SECRET}", f"{SECRET},{OTHER}"])
def test_while_the_key_is_rotated_receivers_may_have_either(receiver: Receiver, secrets: str):
    with closing(open_sink(Settings(receiver.url, secrets))) as sink:  # type: ignore[arg-type]
        sink.deliver([sink_message()])
    assert receiver.taken == {"default:gm:1": 1}


def test_a_wrong_key_is_noticed_by_the_receiver(receiver: Receiver):
    with pytest.raises(WebhookVerificationError):
        receiver.receive(
            {
                "webhook-id": "1",
                "webhook-timestamp": str(int(datetime.now(UTC).timestamp())),
                "webhook-signature": "v1,AAAA",
            },
            b"{}",
        )


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((400, PermanentError), (404, PermanentError), (410, PermanentError), (422, PermanentError)),
        *((401, SinkFailed), (403, SinkFailed), (407, SinkFailed)),
        *((408, SinkThrottled), (425, SinkThrottled), (429, SinkThrottled)),
        *((500, SinkFailed), (502, SinkFailed), (503, SinkFailed)),
        *((301, SinkUnavailable), (308, SinkUnavailable)),
    ],
)
def test_each_answer_means_what_http_says(sink: WebhookSink, receiver: Receiver, status: int, error: type[Exception]):
    receiver.fail(status)
    with pytest.raises(error, match=str(status)):
        sink.deliver([sink_message()])


@pytest.mark.parametrize("hours", [-30, 2])
def test_a_receiver_with_another_clock_refuses_no_message_for_good(
    sink: WebhookSink, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, hours: int
):
    """The clock of this machine is off; the receiver's library finds the time of a post too new or too old."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    receiver.refuse = 400
    monkeypatch.setattr("email_ingestion.sinks.webhook.datetime", Clock)
    with pytest.raises(SinkUnavailable, match=r"400, and this machine's clock is \d+ s (before|behind) its"):
        sink.deliver([sink_message()])
    sink.deliver([sink_message(), sink_message(2)])
    assert receiver.taken == {"default:gm:1": 1, "default:gm:2": 1}
    receiver.fail(422)  # what it refuses now is the message
    with pytest.raises(PermanentError):
        sink.deliver([sink_message(3)])
    receiver.work()
    monkeypatch.undo()
    with pytest.raises(SinkUnavailable, match="clock"):
        sink.deliver([sink_message(3)])
    sink.deliver([sink_message(3)])
    assert receiver.taken["default:gm:3"] == 1


def test_posts_that_were_on_their_way_when_the_clocks_were_compared_are_not_refused_for_good(
    monkeypatch: pytest.MonkeyPatch,
):
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=2)

    class Together(Receiver):
        """Judges both posts before it answers one."""

        def receive(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
            judged = super().receive(headers, body)
            both.wait(30)
            return judged

    both = threading.Barrier(2)
    monkeypatch.setattr("email_ingestion.sinks.webhook.datetime", Clock)
    with (
        receiving(Together(refuse=400)) as receiver,
        closing(open_sink(Settings(receiver.url))) as sink,  # type: ignore[arg-type]
        ThreadPoolExecutor(2) as threads,
    ):
        for _ in range(3):
            posts = [threads.submit(sink.deliver, [sink_message(number)]) for number in (1, 2)]
            errors = [post.exception(30) for post in posts]
            if errors == [None, None]:
                break
            assert {type(error) for error in errors} == {SinkUnavailable}
        assert receiver.taken == {"default:gm:1": 1, "default:gm:2": 1}


@pytest.mark.parametrize("status", [429, 503])
def test_an_answer_may_ask_for_a_pause(sink: WebhookSink, receiver: Receiver, status: int):
    receiver.fail(status, retry_after="17")
    with pytest.raises(SinkThrottled) as raised:
        sink.deliver([sink_message()])
    assert raised.value.retry_after == 17


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("120", 120), ("Thu, 01 Jan 2026 00:01:00 GMT", 60), ("Wed, 31 Dec 2025 00:00:00 GMT", 0)),
        *(("soon", 30), (None, 30), ("1e99", 30), ("-5", 30)),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float):
    assert parse_retry_after(value, NOW) == seconds


def test_a_receiver_that_is_away_is_unavailable():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with closing(open_sink(Settings(url))) as sink:  # type: ignore[arg-type]
            with pytest.raises(SinkUnavailable):
                sink.deliver([sink_message()])
            with pytest.raises(SinkUnavailable):
                sink.ping()


def test_no_answer_in_time_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        with closing(open_sink(Settings(url, webhook_timeout_seconds=0.1))) as sink:  # type: ignore[arg-type]
            sink.ping()
            with pytest.raises(SinkFailed):
                sink.deliver([sink_message()])
            with pytest.raises(SinkUnavailable):
                sink.ping()


def _failed(sink: WebhookSink, receiver: Receiver, status: int = 500) -> None:
    receiver.fail(status)
    with pytest.raises(SinkFailed):
        sink.deliver([sink_message()])


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_receiver_that_failed_and_still_does_is_unavailable(sink: WebhookSink, receiver: Receiver, status: int):
    _failed(sink, receiver, status)
    for _ in range(2):
        with pytest.raises(SinkUnavailable, match=f"answers {status}"):
            sink.ping()
    receiver.work()
    sink.ping()


@pytest.mark.parametrize("status", [301, 308])
def test_a_receiver_that_moved_is_not_there_because_its_port_is_open(
    sink: WebhookSink, receiver: Receiver, status: int
):
    receiver.fail(status)
    with pytest.raises(SinkUnavailable, match=f"answers {status}: set WEBHOOK_URL"):
        sink.deliver([sink_message()])
    with pytest.raises(SinkUnavailable, match=f"answers {status}"):
        sink.ping()


def test_an_expired_certificate_is_the_cause_that_post_and_ping_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificate = make_certificate(tmp_path, days=-3)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    expired = f"the certificate of 127.0.0.1 expired on {datetime.now(UTC) - timedelta(days=3):%Y-%m-%d}"
    with receiving(certificate=certificate) as receiver, closing(open_sink(Settings(receiver.url))) as sink:  # type: ignore[arg-type]
        for call in (sink.ping, lambda: sink.deliver([sink_message()]), sink.ping):
            with pytest.raises(SinkUnavailable, match=expired):
                call()


def test_an_authority_that_is_trusted_later_is_taken_up_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As when a receiver's certificate is rotated, and the file of authorities with it."""
    trusted = tmp_path / "authorities.pem"
    (tmp_path / "before").mkdir()
    (tmp_path / "now").mkdir()
    trusted.write_bytes(make_certificate(tmp_path / "before", days=30).read_bytes())
    certificate = make_certificate(tmp_path / "now", days=30)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with receiving(certificate=certificate) as receiver, closing(open_sink(Settings(receiver.url))) as sink:  # type: ignore[arg-type]
        for call in (sink.ping, lambda: sink.deliver([sink_message()])):
            with pytest.raises(SinkUnavailable, match="certificate"):
                call()
        trusted.write_bytes(certificate.read_bytes())
        with pytest.raises(SinkUnavailable, match="certificate"):
            sink.ping()  # which takes it up
        sink.ping()
        sink.deliver([sink_message()])
    assert receiver.taken.total() == 1


def test_a_receiver_that_refuses_tls_is_unavailable_before_anything_is_posted(receiver: Receiver):
    with closing(open_sink(Settings(receiver.url.replace("http://", "https://")))) as sink:  # type: ignore[arg-type]
        for call in (sink.ping, lambda: sink.deliver([sink_message()]), sink.ping):
            with pytest.raises(SinkUnavailable, match=r"TLS with 127\.0\.0\.1:"):
                call()


@pytest.mark.parametrize("status", [200, 401, 404, 405, 501])
def test_any_other_answer_to_options_means_that_it_is_there(sink: WebhookSink, receiver: Receiver, status: int):
    _failed(sink, receiver)
    receiver.options = status
    sink.ping()


def test_while_all_is_well_a_ping_asks_nothing(sink: WebhookSink, receiver: Receiver):
    sink.ping()
    _failed(sink, receiver)
    receiver.work()
    sink.deliver([sink_message()])
    sink.ping()
    assert (receiver.taken, receiver.pinged) == ({"default:gm:1": 1}, 0)


def test_a_receiver_that_fails_at_every_options_gets_mail_again(sink: WebhookSink, receiver: Receiver):
    _failed(sink, receiver)
    sink._failed_at -= 300
    sink.ping()


def test_a_breaker_stays_open_while_the_receiver_fails_and_closes_when_it_works(sink: WebhookSink, receiver: Receiver):
    heard = Heard()
    policy = BreakerPolicy(fail_max=1, recovery_timeout=0.0, success_threshold=2)
    breaker = Breaker("webhook", policy, (SinkUnavailable, SinkFailed), heard)
    receiver.fail(503)
    with pytest.raises(SinkFailed):
        breaker.run(lambda: sink.deliver([sink_message()]))
    for _ in range(3):
        assert not is_available(sink, breaker)
    assert "CLOSED" not in {change.new for change in heard.of(BreakerChanged)}
    receiver.work()
    assert is_available(sink, breaker)
    assert breaker.state == "CLOSED"


@pytest.mark.parametrize(
    "settings",
    [
        *(Settings(None), Settings("ftp://example.com"), Settings("http://"), Settings("not an address")),
        *(Settings("https://example.com", secret) for secret in (None, "whsec_", "a")),
    ],
)
def test_a_webhook_without_address_or_key_is_refused(settings: Settings):
    with pytest.raises(ConfigurationError, match=r"set WEBHOOK_(URL|SECRET)"):
        load_sink("webhook", settings)  # type: ignore[arg-type]


def test_a_signature_is_that_of_the_specification(receiver: Receiver):
    """The example of standard-webhooks/spec: an own signer would be held to it too."""
    from standardwebhooks.webhooks import Webhook  # noqa: PLC0415

    body = json.dumps({"test": 2432232314}, separators=(",", ":")).replace(":", ": ")
    made = Webhook(SECRET).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", datetime.fromtimestamp(1614265330, UTC), body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
