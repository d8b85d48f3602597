"""Tells the way of a message as OpenTelemetry spans: send (producer), process (worker, linked to it), deliver (a sink).

Nothing travels with the message: the ids of its send span follow from its identity, so that a worker can link to it. A
sink takes batches, so its spans are of batches.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from email_ingestion.events import DeadLettered, Deferred, Delivered, Event, Published, SinkDelivered
from email_ingestion.ops.declare import ERROR_TYPES, member
from email_ingestion.ops.records import Identity

STREAM = "email_ingestion"
EXPORT_SECONDS = 5


class Traces:
    """An observer; spans leave in the background, and are lost rather than waited for. `close` it."""

    def __init__(self, endpoint: str, identity: Identity) -> None:
        self._ids = _Ids()
        who = {"service.name": f"email-ingestion-{identity.component}", "service.version": identity.version}
        self._provider = TracerProvider(
            resource=Resource.create(who | {"service.instance.id": identity.instance}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("email_ingestion", identity.version)

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        match event:
            case Published(email_ids=ids):
                for email_id in ids:
                    self._send(email_id)
            case Delivered():
                done = {"email_ingestion.duplicate": event.duplicate}
                self._process(event.email_id, event.attempt, done, seconds=event.duration)
            case Deferred():
                self._process(event.email_id, event.attempt, {}, event.error)
            case DeadLettered():
                self._process(event.email_id, event.attempts, {"email_ingestion.dead": event.reason}, event.error)
            case SinkDelivered():
                what: dict[str, AttributeValue] = {"messaging.batch.message_count": event.count}
                what["email_ingestion.result"] = event.result
                self._span(f"deliver {event.sink}", SpanKind.CLIENT, what, failed=event.result == "failed")

    def close(self) -> None:
        """Send what is left, if somebody takes it."""
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
        more: Mapping[str, AttributeValue],
        error: Exception | None = None,
        seconds: float = 0.0,
    ) -> None:
        what = {**_message(email_id, "process"), "email_ingestion.attempt": attempt, **more}
        if error:
            what["error.type"] = member(type(error).__name__, ERROR_TYPES)
        trace, span = _send_span(email_id)
        sent = Link(SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
        failed = error is not None or "email_ingestion.dead" in more
        self._span(f"process {STREAM}", SpanKind.CONSUMER, what, failed=failed, links=[sent], seconds=seconds)

    def _span(
        self,
        name: str,
        kind: SpanKind,
        what: Mapping[str, AttributeValue],
        *,
        failed: bool = False,
        links: Sequence[Link] = (),
        seconds: float = 0.0,
    ) -> None:
        """A span that ends now; a root of its own."""
        end = time.time_ns()
        begin = end - int(seconds * 1e9)
        span = self._tracer.start_span(name, Context(), kind, what, links, begin)
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)


class _Ids(RandomIdGenerator):
    """Random, but for the trace and the span that a thread begins while `chosen` has their ids."""

    def __init__(self) -> None:
        self._here = threading.local()

    @property
    def chosen(self) -> tuple[int, int] | None:
        found: tuple[int, int] | None = getattr(self._here, "ids", None)
        return found

    @chosen.setter
    def chosen(self, ids: tuple[int, int] | None) -> None:
        self._here.ids = ids

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
