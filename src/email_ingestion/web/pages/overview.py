"""The overview: the flow as a picture with live numbers, what hurts and where help stands, accounts, the last hour."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.alert_thresholds import alert_thresholds
from email_ingestion.stream.dead_letters import count_letters
from email_ingestion.web.flow_judgement import (
    DATABASE,
    FlowProblem,
    Stage,
    State,
    WorkerCount,
    accounts_of,
    find_problems,
    graph_link,
    metric_of,
    stage_states,
)
from email_ingestion.web.live_system import FlowSample, LiveSystem, SystemReading
from email_ingestion.web.pages.runbooks import section_link
from email_ingestion.web.rendering import UNKNOWN, format_number, page_headers, render, render_part
from email_ingestion.web.sessions import CurrentUser, WebEntry

PUSH_SECONDS = 2.0
REFRESH_SECONDS = 15  # without JavaScript
MAX_STREAMS = 50  # browsers that are told of every change; the others load the page again
CHART_WIDTH, CHART_HEIGHT = 300.0, 60.0
GAP_SECONDS = 30.0  # between two samples, above which a line is broken

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class FlowNode:
    """A box of the picture."""

    stage: Stage
    title: str
    lines: tuple[str, ...]
    state: State
    link: str


@dataclass(frozen=True, slots=True)
class HourChart:
    """A line of the last hour; `lines` are the points of its unbroken parts."""

    title: str
    now: str
    maximum: str
    lines: tuple[str, ...]


@router.get("/")
def overview(request: Request, user: CurrentUser) -> Response:
    """Show the state of everything."""
    system: LiveSystem = request.app.state.live_system
    content = overview_content(system.read(), request.app.state.entry)
    return render(request, "overview.html", user, refresh=REFRESH_SECONDS, **content)


@router.get("/events/overview")
async def overview_events(request: Request, _user: CurrentUser) -> Response:
    """Send the moving part of the page whenever it changes, until the session ends."""
    state = request.app.state
    if state.overview_streams >= MAX_STREAMS:
        return Response(status_code=204)  # which ends an EventSource for good
    return StreamingResponse(_events(request), media_type="text/event-stream", headers=page_headers())


async def _events(request: Request) -> AsyncIterator[str]:
    state = request.app.state
    state.overview_streams += 1
    last = ""
    try:
        while state.entry.user_of(request, touch=False) and not await request.is_disconnected():
            part = await run_in_threadpool(_live_part, state.live_system, state.entry)
            if part != last:
                last = part
                yield f"data: {json.dumps(part)}\n\n"
            else:
                yield 'data: ""\n\n'  # the page must see that somebody is there
            await asyncio.sleep(PUSH_SECONDS)
    finally:
        state.overview_streams -= 1


def _live_part(system: LiveSystem, entry: WebEntry) -> str:
    return render_part("overview_live.html", **overview_content(system.read(0.0), entry))


def overview_content(reading: SystemReading, entry: WebEntry) -> dict[str, Any]:
    """Return what the template shows."""
    try:
        thresholds = alert_thresholds()
    except ConfigurationError as error:
        found, workers = (
            [FlowProblem("producer", "unknown", f"not known, what is too much: {error}")],
            WorkerCount(None, None),
        )
    else:
        found, workers = find_problems(reading, entry.settings, thresholds)
    gauges, grafana = reading.redis.value, entry.settings.grafana_url
    shown = {each.text: each for each in reversed(found)}.values()  # one cause may hurt in several stages
    return {
        "nodes": _nodes(reading, found, workers, entry),
        "problems": [
            (each, section_link(each.section) if each.section else "", graph_link(grafana, each.section))
            for each in reversed(shown)
        ],
        "grafana": graph_link(grafana),
        "gauges": gauges,
        "workers": workers,
        "oldest": reading.at - gauges.oldest if gauges and gauges.oldest else None,
        "accounts": _accounts(reading),
        "processes_problem": reading.processes.problem,
        "charts": _charts(reading.samples, reading.at),
        "since": reading.samples[0].at if reading.samples else None,
    }


def _nodes(
    reading: SystemReading, problems: list[FlowProblem], workers: WorkerCount, entry: WebEntry
) -> list[FlowNode]:
    states = stage_states(problems)
    links = {each.stage: section_link(each.section) for each in reversed(problems) if each.section}
    accounts, gauges = accounts_of(reading), reading.redis.value
    backlogs = [each["backlog"] for each in accounts]
    backlog = None if not backlogs or None in backlogs else sum(backlogs)
    last = reading.samples[-1] if reading.samples else None
    waiting = metric_of(reading, "worker", "sink_waiting_messages")
    further = len(entry.settings.sinks) - 1
    owed = f"{format_number(sum(waiting.values()))} owed to {further} more" if waiting else f"{further} more: {UNKNOWN}"
    count = len(accounts) or len(entry.settings.all_accounts)
    lines: dict[Stage, tuple[str, tuple[str, ...]]] = {
        "mailboxes": (
            "Mailboxes",
            (f"{count} account{'' if count == 1 else 's'}", _counted(backlog, "to fetch", "backlog")),
        ),
        "producer": ("Producer", (_state_of(reading, "producer"), _per_minute(last.fetched if last else None))),
        "stream": (
            "Stream",
            (
                _counted(gauges.depth if gauges else None, "queued", "queue"),
                count_letters(gauges.dlq_depth) if gauges else "dead letters not known",
            ),
        ),
        "workers": (
            "Workers",
            (
                UNKNOWN if workers.alive is None else f"{workers.alive} of {workers.expected} alive",
                _per_minute(last.delivered if last else None),
            ),
        ),
        "sinks": ("Sinks", (_database_state(reading, problems), *([owed] if further else []))),
    }
    return [FlowNode(stage, title, text, states[stage], links.get(stage, "")) for stage, (title, text) in lines.items()]


def _state_of(reading: SystemReading, component: str) -> str:
    named = [
        str(each.body["status"]) for each in reading.processes.value or () if each.body and each.component == component
    ]
    return ", ".join(sorted(set(named))) or "state not known"


def _database_state(reading: SystemReading, problems: list[FlowProblem]) -> str:
    if any(each.section == DATABASE for each in problems):  # a worker may have found that before us
        return "database does not serve"
    if reading.database.value is None:
        return "database not known"
    return "database " + ("serves" if "takes writes" in reading.database.value else "not made yet")


def _counted(number: float | None, what: str, whole: str) -> str:
    """Return how many of something there are; of what is not known only its name is said."""
    return f"{whole} {UNKNOWN}" if number is None else f"{format_number(number)} {what}"


def _per_minute(rate: float | None) -> str:
    return "rate not known" if rate is None else f"{format_number(rate)} a minute"


def _accounts(reading: SystemReading) -> list[dict[str, Any]]:
    """Return a row for each account: what of it is not delivered yet, and how its history gets on."""
    until = metric_of(reading, "producer", "delivered_until_timestamp_seconds")
    recent = [each.fetched for each in reading.samples if reading.at - each.at < 300 and each.fetched is not None]  # noqa: PLR2004
    rate = sum(recent) / len(recent) if recent else None
    return [
        {
            "name": each["name"],
            "watch": each["watch"],
            "last_look": each["last_success_age_seconds"],
            "backlog": each["backlog"],
            "undelivered": max(0.0, reading.at - until[each["name"]]) if each["name"] in until else None,
            "token": each["token_state"],
            "reauthorize": each["reauth_required"],
            "quarantined": len(each["quarantined"]),
            "history": each["history"],
            "rate": rate,
        }
        for each in accounts_of(reading)
    ]


def _charts(samples: Sequence[FlowSample], now: float) -> list[HourChart]:
    return [
        _chart("In the queue", [(each.at, each.queue) for each in samples], now),
        _chart("Dead letters", [(each.at, each.dead) for each in samples], now),
        _chart("Fetched a minute", [(each.at, each.fetched) for each in samples], now),
        _chart("Delivered a minute", [(each.at, each.delivered) for each in samples], now),
    ]


def _chart(title: str, points: Sequence[tuple[float, float | None]], now: float) -> HourChart:
    known = [value for _, value in points if value is not None]
    top = max([*known, 1])
    lines: list[list[str]] = [[]]
    before = 0.0
    for at, value in points:
        if value is None or at - before > GAP_SECONDS:
            lines.append([])
        if value is not None:
            x = CHART_WIDTH * (1 - (now - at) / 3600)
            y = CHART_HEIGHT - (CHART_HEIGHT - 4) * value / top
            lines[-1].append(f"{x:.1f},{y:.1f}")
            before = at
    latest = points[-1][1] if points else None
    return HourChart(
        title,
        format_number(latest),
        format_number(max(known)) if known else UNKNOWN,
        tuple(" ".join(line) for line in lines if line),
    )
