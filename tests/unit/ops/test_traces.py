"""Spans, as a collector gets them over a real socket."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from email_ingestion import errors, events
from email_ingestion.ops.traces import Traces
from tests.servers.receiver import Receiver, http_receiver
from tests.unit.ops.shown import PRODUCER, WORKER


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with http_receiver(read=ExportTraceServiceRequest.FromString) as receiver:
        yield receiver


def exported(collector: Receiver, who, *seen: events.Event) -> list[Span]:
    """The spans a process sends of these events."""
    traces = Traces(f"http://127.0.0.1:{collector.port}", who)
    for event in seen:
        traces(event)
    before = len(collector.posted)
    traces.close()
    requests = collector.posted[before:]
    return [
        span
        for request in requests
        for each in request.resource_spans
        for scope in each.scope_spans
        for span in scope.spans
    ]


def attributes(span: Span) -> dict[str, object]:
    return {it.key: it.value.string_value or it.value.int_value or it.value.bool_value for it in span.attributes}


def test_a_worker_links_its_span_to_that_of_the_producer_though_nothing_travels_with_the_message(
    collector: Receiver,
) -> None:
    ids = ("default:gm:1", "default:gm:2")
    sent = exported(collector, PRODUCER, events.Published("default", "INBOX", ids, 2, 100))
    delivered = events.Delivered(ids[1], 1, duplicate=False, duration=0.5, queue_wait=0.0, end_to_end=1.0)
    done = exported(collector, WORKER, delivered)
    assert [(span.name, attributes(span)["messaging.message.id"]) for span in sent] == [
        ("send email_ingestion", ids[0]),
        ("send email_ingestion", ids[1]),
    ]
    (process,) = done
    assert process.name == "process email_ingestion"
    assert [(link.trace_id, link.span_id) for link in process.links] == [(sent[1].trace_id, sent[1].span_id)]
    assert len({span.trace_id for span in (*sent, process)}) == 3
    assert process.end_time_unix_nano - process.start_time_unix_nano == 500_000_000


def test_failures_are_marked_with_their_class_and_nothing_personal(collector: Receiver) -> None:
    spans = exported(
        collector,
        WORKER,
        events.Deferred("default:gm:1", 1, errors.SinkUnavailable("ada@example.com is full"), 2.0),
        events.DeadLettered("default:gm:1", "max_retries", 6, ZeroDivisionError("Dear Ada")),
        events.DeadLettered("default:gm:2", "poison", 3, None),
        events.SinkDelivered("webhook", "failed", 5),
        events.SinkDelivered("database", "delivered", 5),
    )
    assert [span.name for span in spans][3:] == ["deliver webhook", "deliver database"]
    assert [span.status.code for span in spans] == [2, 2, 2, 2, 0]
    kinds = [attributes(span).get("error.type") for span in spans[:3]]
    assert kinds == ["SinkUnavailable", "_OTHER", None]
    assert b"Ada" not in b"".join(span.SerializeToString() for span in spans)
    assert b"example.com" not in b"".join(span.SerializeToString() for span in spans)


def test_a_collector_that_is_not_there_holds_nobody_up() -> None:
    traces = Traces("http://127.0.0.1:9", WORKER)
    traces(events.SinkDelivered("database", "delivered", 5))
    begun = time.monotonic()
    traces.close()
    assert time.monotonic() - begun < 20
