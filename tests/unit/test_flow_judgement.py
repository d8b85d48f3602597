"""What the overview judges of what the processes say: each red thing has help, and nothing unknown is well."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.ops.alert_thresholds import alert_thresholds
from email_ingestion.ops.runbook_routes import runbook_body
from email_ingestion.settings import Settings
from email_ingestion.web import flow_judgement
from email_ingestion.web.flow_judgement import OF_REASON, FlowProblem, find_problems, stage_states
from email_ingestion.web.live_system import LiveProcess, SystemReading
from email_ingestion.web.readings import Reading
from tests.servers.web import web_settings

NOW = 1_000_000.0
UNANSWERED = Reading(None, "it does not answer", None, failed=True)


def _body(component: str, **changes: Any) -> dict[str, Any]:
    account = {
        "name": "work",
        "reauth_required": False,
        "last_success_age_seconds": 1.0,
        "quarantined": [],
    }
    body: dict[str, Any] = {
        "component": component,
        "instance": f"here-{component}",
        "pid": 1,
        "status": "ready",
        "reasons": [],
        "checks": [],
        "circuit_breakers": [],
        "accounts": [account] if component == "producer" else [],
    }
    accounts = [account | changes.pop("account", {})] if component == "producer" else []
    return body | {"accounts": accounts} | changes


def _reading(*bodies: dict[str, Any], **changes: Any) -> SystemReading:
    processes = [LiveProcess(body["component"], 1, body) for body in bodies]
    values: dict[str, Any] = {
        "at": NOW,
        "processes": Reading(processes, "", NOW),
        "redis": UNANSWERED,
        "database": Reading("SQLite takes writes", "", NOW),
        "samples": (),
    }
    return SystemReading(**(values | changes))


@pytest.fixture
def judge(tmp_path: Path) -> Callable[[SystemReading], list[FlowProblem]]:
    settings: Settings = web_settings(tmp_path)
    return lambda reading: find_problems(reading, settings, alert_thresholds())[0]


def test_every_section_is_in_the_runbook() -> None:
    page = runbook_body("incident_response")
    named = [value for value in vars(flow_judgement).values() if isinstance(value, str)]
    sections = [each for each in named if re.fullmatch(r"2\d+-[a-z0-9-]+", each)] + [each for _, each in OF_REASON]
    assert len(sections) > 20
    for section in sections:
        assert f'<a id="{section}"></a>' in page, section


@pytest.mark.parametrize(
    ("component", "changes", "stage", "section"),
    [
        ("producer", {"account": {"reauth_required": True}}, "mailboxes", "23-oauth2-token-expired"),
        ("producer", {"account": {"last_success_age_seconds": 9999.0}}, "mailboxes", "212-mailbox-silent"),
        ("worker", {"status": "not_ready", "reasons": ["loop consume has not turned for 90 s"]}, "workers", "223-"),
        ("worker", {"status": "not_ready", "reasons": ["something new"]}, "workers", "26-worker-crash-or-oom"),
        ("worker", {"checks": [("database", "it is locked")]}, "sinks", "217-database-locked"),
        ("worker", {"checks": [("webhook", "refused")]}, "sinks", "218-webhook-down"),
        ("producer", {"checks": [("imap:work", "refused")]}, "mailboxes", "22-imap-unreachable"),
        ("producer", {"checks": [("redis", "refused")]}, "stream", "21-redis-down"),
    ],
)
def test_what_hurts_is_red_where_it_is_and_leads_to_help(
    judge: Callable[[SystemReading], list[FlowProblem]],
    component: str,
    changes: dict[str, Any],
    stage: str,
    section: str,
) -> None:
    checks = [
        {"name": name, "status": "unhealthy", "critical": True, "error": error, "error_type": None}
        for name, error in changes.get("checks", ())
    ]
    found = judge(_reading(_body(component, **(changes | {"checks": checks}))))
    (problem,) = [each for each in found if each.state == "bad" and "Redis cannot be read" not in each.text]
    assert problem.stage == stage
    assert problem.section.startswith(section)


def test_what_cannot_be_asked_is_unknown_and_never_well(judge: Callable[[SystemReading], list[FlowProblem]]) -> None:
    waiting = Reading(None, "it has not answered for 1.0 s", None)
    found = judge(_reading(processes=waiting, redis=waiting, database=waiting))
    assert set(stage_states(found).values()) == {"unknown"}
    found = judge(_reading(processes=UNANSWERED, redis=UNANSWERED, database=UNANSWERED))
    assert "ok" not in stage_states(found).values()
    assert stage_states(found)["stream"] == stage_states(found)["sinks"] == "bad"


def test_a_silent_worker_beside_a_well_producer_is_not_hidden(
    judge: Callable[[SystemReading], list[FlowProblem]],
) -> None:
    processes = [LiveProcess("producer", 1, _body("producer")), LiveProcess("worker", 2, None)]
    states = stage_states(judge(_reading(processes=Reading(processes, "", NOW))))
    assert states["producer"] == states["mailboxes"] == "ok"
    assert states["workers"] == "bad"
    assert states["sinks"] == "unknown"
