"""The dashboard: what Grafana's own linter asks for, and that it answers the questions in order."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.alerts.dashboard import VALUES, dashboard, filled, panels, targets
from tests.alerts.rules import alerts
from tests.servers.missing import program

QUESTIONS = [
    "Is mail flowing?",
    "What is broken?",
    "Where does it queue?",
    "What failed?",
    "What does it cost?",
    "Who reads, and what is unusual?",
]
SELECTOR = re.compile(r"\b([a-z_][a-z0-9_]*)\{([^}]*)\}")
METRIC = re.compile(r"\b(?:email_ingestion|process)_[a-z0-9_]+|\bup\b")


def named(panel: dict) -> str:
    return panel["title"]


def test_it_can_be_imported_and_nobody_edits_it_in_place() -> None:
    found = dashboard()
    assert found["uid"] == "email-ingestion"
    assert found["editable"] is False
    assert found["schemaVersion"] >= 36
    assert "id" not in found  # Grafana gives it
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)


def test_its_rows_answer_the_questions_in_order() -> None:
    assert [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"] == QUESTIONS


def test_no_panel_lies_over_another() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_its_variables_choose_the_data_source_job_instance_and_account() -> None:
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "account"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("job", "instance", "account"):
        assert variables[name]["datasource"]["uid"] == "${datasource}"
        assert variables[name]["refresh"] == 2  # when the time range changes
        assert re.fullmatch(rf"label_values\(\w+(\{{[^}}]*\}})?, {name}\)", variables[name]["definition"])


@pytest.mark.parametrize("panel", panels(), ids=named)
def test_a_panel_says_what_it_shows_in_which_unit_and_where_to_read_on(panel: dict) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    known = {alert["annotations"]["runbook_url"] for alert in alerts()}
    assert [link["url"] for link in panel["links"] if link["url"] not in known] == []
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["legendFormat"]


@pytest.mark.parametrize(("title", "expression"), targets())
def test_a_query_follows_the_rules(title: str, expression: str) -> None:
    selected = dict(SELECTOR.findall(expression))
    assert METRIC.findall(expression) == [name for name, _ in SELECTOR.findall(expression) if name != "ALERTS"]
    for name, matchers in selected.items():
        if name != "ALERTS":
            assert matchers.startswith('job=~"$job", instance=~"$instance"'), title
    assert set(re.findall(r"\[([^]]+)\]", expression)) <= {"$__rate_interval", "$__range"}
    for name in selected:
        if name.endswith(("_total", "_bucket")):
            assert re.search(rf"(rate|increase)\({name}\{{", expression), title
    if "_bucket" in expression:
        assert "sum by (le)" in expression
    assert set(re.findall(r"\$\w+", expression)) <= set(VALUES)


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": filled(expr)} for number, (_, expr) in enumerate(targets())]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool = program("promtool", "prometheus")
    done = subprocess.run([promtool, "check", "rules", path], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
