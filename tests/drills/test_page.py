"""docs/drills.md says what the drills measured, failures included."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.drills.drill import Outcome
from tests.drills.page import main, page

PASSED = Outcome(
    "incident_response#21-redis-down", "2.1 Redis Down (P1)", detected=0.52, recovered=1.96, in_flight=7, messages=90
)


def test_a_row_has_the_times_of_a_drill_and_whether_its_alerts_rang():
    row = page([replace(PASSED, date="2026-01-31"), replace(PASSED, alerts=True)])
    assert (
        "| [2.1 Redis Down (P1)](runbooks/incident_response.md#21-redis-down) | 0.5 s | 2.0 s | 7 | 90 | as expected "
        "| passed | 2026-01-31 |"
    ) in row


def test_what_failed_is_said():
    shown = page([replace(PASSED, recovered=None, failure="no"), replace(PASSED, alerts=True, failure="no")])
    assert "| 0.5 s | - | - | 90 | **not as expected** | **failed** |" in shown


def test_the_page_says_how_literal_ports_were_had():
    assert "were had by substitution" in page([replace(PASSED, ports="by substitution: no unshare")])


def test_nothing_is_written_where_nothing_was_drilled(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), str(tmp_path / "page.md")]) == 1
    assert not (tmp_path / "page.md").exists()


def test_outcomes_left_by_drills_become_the_page(tmp_path: Path):
    (tmp_path / "one.json").write_text(json.dumps(PASSED.as_dict()))
    assert main([str(tmp_path), str(tmp_path / "page.md")]) == 0
    assert "2.1 Redis Down" in (tmp_path / "page.md").read_text()
