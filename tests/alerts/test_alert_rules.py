"""The alert rules: each fires in its own fault, is quiet again after it, and is silent in every other one's."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from email_ingestion.doctor import service_checks
from tests.alerts.faults import FAULTS, LONG
from tests.alerts.rules import ALERTS, alerts, recorded
from tests.alerts.series import BEFORE, Fault, series
from tests.servers.missing import program

WATCHDOG = {"EmailIngestionWatchdog": "P4"}
FIRING = 'group by (alertname, priority) (ALERTS{alertstate="firing"})'
SEVERITIES = {"P1": "critical", "P2": "critical", "P3": "warning", "P4": "info"}
RUNBOOK = "http://localhost:8080/runbooks/incident_response#"
PROCEDURES = """21-redis-down 22-imap-unreachable 23-oauth2-token-expired 24-circuit-breaker-open 25-dlq-growing
26-worker-crash-or-oom 27-backlog 28-slow-processing 29-memory 210-disk 211-stuck-message 212-mailbox-silent
213-throttled 214-duplicates 216-redis-data-loss 217-database-locked 218-webhook-down 219-security-incident
220-bad-deployment 221-backup-missed 222-notification-or-monitoring 223-loop-failing 224-quarantined-mail
225-clock-offset 226-unusual-mail 227-consumer-incomplete"""
# A minute costs 10 ms. What fires is looked at always; how slow burns end, and faults in which nothing fires, seldom.
QUICK = [
    replace(fault, clears=0) if fault.clears == LONG else fault
    for fault in FAULTS
    if fault.fires and fault.lasts < LONG
]


def firing(minute: int, expected: dict[str, str]) -> dict[str, object]:
    """Exactly these alerts fire at that minute, and no other."""
    samples = [
        {"labels": f'{{alertname="{name}", priority="{priority}"}}', "value": 1}
        for name, priority in (WATCHDOG | expected).items()
    ]
    return {"expr": FIRING, "eval_time": f"{minute}m", "exp_samples": samples}


def proves(fault: Fault, folder: Path) -> None:
    end = BEFORE + fault.lasts
    moments = [firing(BEFORE, {}), firing(end, fault.expected())]
    if fault.clears:
        moments.append(firing(end + fault.clears, {}))
    test = {"interval": "1m", "input_series": list(series(fault)), "promql_expr_test": moments}
    path = folder / "test.json"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    promtool = program("promtool", "prometheus")
    done = subprocess.run([promtool, "test", "rules", path], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_a_fault_fires_its_own_alerts_and_no_others_and_they_end_with_it(fault: Fault, tmp_path: Path) -> None:
    proves(fault, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in QUICK], ids=lambda fault: fault.name)
def test_a_slow_burn_ends_and_a_harmless_fault_fires_nothing(fault: Fault, tmp_path: Path) -> None:
    proves(fault, tmp_path)


def test_every_alert_has_a_fault_of_its_own() -> None:
    proved = {name for fault in FAULTS for name in fault.expected()} | set(WATCHDOG)
    assert proved == {alert["alert"] for alert in alerts()}


def test_every_alert_is_silent_in_faults_near_by() -> None:
    for alert in alerts():
        if alert["alert"] not in WATCHDOG:
            assert [fault for fault in FAULTS if alert["alert"] not in fault.expected()]


def test_promtool_finds_no_fault_in_the_rules() -> None:
    promtool = program("promtool", "prometheus")
    done = subprocess.run([promtool, "check", "rules", ALERTS], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_urgent_it_is_what_it_means_and_where_to_read_on(alert: dict) -> None:
    labels, notes = alert["labels"], alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert labels["severity"] == ("none" if alert["alert"] in WATCHDOG else SEVERITIES[labels["priority"]])
    assert notes["runbook_url"].startswith(RUNBOOK)
    assert notes["runbook_url"].removeprefix(RUNBOOK) in PROCEDURES.split()
    assert not notes["summary"].endswith(".")
    assert notes["description"].endswith(".")


def test_every_threshold_in_use_is_in_the_one_group_of_thresholds_and_the_other_way_round() -> None:
    text = ALERTS.read_text()
    used = set(re.findall(r"scalar\((email_ingestion:threshold:\w+)\)", text))
    pairs = (each for each in vars(service_checks).values() if isinstance(each, tuple))
    limits = {*itertools.chain(*pairs), service_checks.FEW, service_checks.BURST_SECONDS} - {*service_checks.BY_WEIGHT}
    used |= {f"email_ingestion:threshold:{name}" for name in limits}
    assert used == {name for name in recorded() if ":threshold:" in name}
