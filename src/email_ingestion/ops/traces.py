"""Exports OpenTelemetry spans: send (producer), process (worker, linked to send) and deliver (a sink).

No trace context travels with the message: the ids of its send span follow from its identity, so that a worker can
link to it. A sink takes batches, so its spans stand for batches.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from email_ingestion.background import BackgroundThread
from email_ingestion.events import DeadLettered, Deferred, Delivered, Event, Published, SinkDelivered
from email_ingestion.ops.metric_factory import ERROR_TYPES, label_value
from email_ingestion.ops.status_records import Identity

STREAM = "email_ingestion"
EXPORT_SECONDS = 5


class Traces:
    """An observer that exports spans in the background and rather loses a span than waits. `close` it at the end."""

    def __init__(self, endpoint: str, identity: Identity) -> None:
        self._ids = _Ids()
        who = {"service.name": f"email-ingestion-{identity.component}", "service.version": identity.version}
        self._provider = TracerProvider(
            resource=Resource.create(who | {"service.instance.id": identity.instance}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        url = f"{endpoint.rstrip('/')}/v1/traces"
        exporter = OTLPSpanExporter(url, timeout=EXPORT_SECONDS, session=_StatusOnly())
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("email_ingestion", identity.version)

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        match event:
            case Published(email_ids=ids):
                for email_id in ids:
                    self._send(email_id)
            case Delivered():
                attributes = {"email_ingestion.duplicate": event.duplicate}
                self._process(event.email_id, event.attempt, attributes, seconds=event.duration)
            case Deferred():
                self._process(event.email_id, event.attempt, {}, event.error)
            case DeadLettered():
                self._process(event.email_id, event.attempts, {"email_ingestion.dead": event.reason}, event.error)
            case SinkDelivered():
                batch: dict[str, AttributeValue] = {"messaging.batch.message_count": event.count}
                batch["email_ingestion.result"] = event.result
                self._span(f"deliver {event.sink}", SpanKind.CLIENT, batch, failed=event.result == "failed")

    def close(self) -> None:
        """Export the remaining spans if the collector takes them."""
        self._provider.shutdown()

    def _send(self, email_id: str) -> None:
        self._ids.chosen = _send_span(email_id)
        try:
            self._span(f"send {STREAM}", SpanKind.PRODUCER, _message(email_id, "send"))
        finally:
            self._ids.chosen = None

    def _process(
        self,
        email_id: str,
        attempt: int,
        extra: Mapping[str, AttributeValue],
        error: Exception | None = None,
        seconds: float = 0.0,
    ) -> None:
        attributes = {**_message(email_id, "process"), "email_ingestion.attempt": attempt, **extra}
        if error:
            attributes["error.type"] = label_value(type(error).__name__, ERROR_TYPES)
        trace, span = _send_span(email_id)
        sent = Link(SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
        failed = error is not None or "email_ingestion.dead" in extra
        self._span(f"process {STREAM}", SpanKind.CONSUMER, attributes, failed=failed, links=[sent], seconds=seconds)

    def _span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue],
        *,
        failed: bool = False,
        links: Sequence[Link] = (),
        seconds: float = 0.0,
    ) -> None:
        """Export a span that ends now; it is the root of a trace of its own."""
        end = time.time_ns()
        begin = end - int(seconds * 1e9)
        span = self._tracer.start_span(name, Context(), kind, attributes, links, begin)
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)


class _StatusOnly(requests.Session):
    """A session that reads no answer beyond its head, which comes soon or is not waited for.

    Whoever is the collector may answer without end, or a byte now and then. One such answer is all that is held open.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = BackgroundThread("traces-http")
        self._latest: Future[requests.Response] | None = None

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request; the content of the answer is empty. Raises requests.Timeout."""
        if self._latest and not self._latest.done():
            raise requests.Timeout("the answer before has not come yet")
        self._latest = self._thread.submit(partial(self._send, request, kwargs))
        try:
            return self._latest.result(EXPORT_SECONDS)
        except TimeoutError as error:
            raise requests.Timeout("the answer has not come in time") from error

    def _send(self, request: requests.PreparedRequest, options: dict[str, Any]) -> requests.Response:
        answer = super().send(request, **(options | {"stream": True, "allow_redirects": False}))
        answer.close()
        answer.raw = None
        return answer


class _Ids(RandomIdGenerator):
    """Makes random ids, except for a span that a thread starts while `chosen` holds its ids."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def chosen(self) -> tuple[int, int] | None:
        found: tuple[int, int] | None = getattr(self._local, "ids", None)
        return found

    @chosen.setter
    def chosen(self, ids: tuple[int, int] | None) -> None:
        self._local.ids = ids

    def generate_trace_id(self) -> int:
        return self.chosen[0] if self.chosen else super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self.chosen[1] if self.chosen else super().generate_span_id()


def _message(email_id: str, operation: str) -> dict[str, AttributeValue]:
    return {
        "messaging.system": "redis",
        "messaging.destination.name": STREAM,
        "messaging.operation.type": operation,
        "messaging.message.id": email_id,
    }


def _send_span(email_id: str) -> tuple[int, int]:
    digest = hashlib.sha256(email_id.encode()).digest()
    return int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])
