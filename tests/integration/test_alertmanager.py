"""A real Alertmanager opens incidents over the ops port, is asked which alerts it has, and is silenced."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from email_ingestion.errors import OperationFailed
from email_ingestion.events import AlertReceived, Event
from email_ingestion.fleet.alertmanager import Alertmanager
from email_ingestion.incidents.incident_log import Incident, list_incidents
from email_ingestion.ops.admin import Admin, AdminActions
from email_ingestion.ops.http_server import serve
from email_ingestion.ops.incident_opener import IncidentOpener
from email_ingestion.ops.logs import LogLevel
from email_ingestion.ops.observers import open_ops
from email_ingestion.overrides import OperatorOverrides
from tests.servers.missing import program
from tests.servers.ports import free_port
from tests.servers.processes import until
from tests.servers.prometheus import CONFIG, _until_ready, faster
from tests.unit.ops.shown import PRODUCER, PRODUCER_NAMES

TOKEN = "a token that nobody guesses"
LABELS = {"alertname": "EmailIngestionNoWorkers", "severity": "critical", "priority": "P1"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in {"REDIS_URL": "redis://127.0.0.1:1/0", "IMAP_USER": "someone@example.com"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def seen() -> list[Event]:
    return []


@pytest.fixture
def producer(here: Path, seen: list[Event]) -> Iterator[str]:
    """The address of an ops port that takes orders."""
    ops = open_ops(PRODUCER, PRODUCER_NAMES, list)
    actions = AdminActions(pytest.fail, OperatorOverrides("producer"), LogLevel("INFO"), IncidentOpener(seen.append))
    (here / "logs").mkdir()
    admin = Admin(TOKEN, actions, here / "logs", "producer", seen.append)
    endpoints = serve(ops.status, ops.metrics, "127.0.0.1", 0, 0, admin=admin)
    yield endpoints.ops_url
    endpoints.close()


@pytest.fixture
def alertmanager(here: Path, producer: str) -> Iterator[str]:
    """One on our configuration, with what stands there as a comment."""
    binary = program("prometheus-alertmanager", "prometheus-alertmanager")
    (here / "data").mkdir(exist_ok=True)
    (here / "data" / "ops-token").write_text(TOKEN + "\n")
    folder = here / "config"
    folder.mkdir()
    config = faster((CONFIG / "alertmanager.yml").read_text(), 150)
    assert "# - url: http://localhost:8080/admin/incidents" in config
    config = config.replace("# - url: http://localhost:8080", f"- url: {producer}").replace(
        "#   http_config", "  http_config"
    )
    (folder / "alertmanager.yml").write_text(config)
    port = free_port()
    command = [binary, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={here / 'alertmanager'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    with (here / "alertmanager.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=here)
    try:
        _until_ready(f"http://127.0.0.1:{port}/-/ready", process, here / "alertmanager.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def post(url: str, body: object, token: str = "") -> tuple[int, str]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=90) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def incident(condition: Callable[[Incident], bool], what: str) -> Incident:
    found: list[Incident] = []

    def look() -> bool:
        found[:] = [each for each in list_incidents() if condition(each)]
        return bool(found)

    until(look, what, 120)
    return found[0]


def test_an_alert_opens_an_incident_with_its_evidence_and_its_end_is_noted(
    here: Path, alertmanager: str, seen: list[Event]
) -> None:
    rings = {"labels": LABELS, "annotations": {"summary": "No worker is running"}}
    assert post(f"{alertmanager}/api/v2/alerts", [rings])[0] == 200
    found = incident(lambda each: (each.folder / "initial.md").exists(), "the incident is written")
    assert (found.alert, found.severity, found.title) == (LABELS["alertname"], "P1", "No worker is running")
    assert AlertReceived(LABELS["alertname"], "P1", firing=True) in seen
    rows = Alertmanager(alertmanager).alerts()
    assert [(row["alert"], row["priority"], row["state"]) for row in rows] == [(found.alert, "P1", "firing")]
    over = rings | {"endsAt": datetime.now(UTC).isoformat()}
    assert post(f"{alertmanager}/api/v2/alerts", [over])[0] == 200
    incident(lambda each: f"the alert {found.alert} is over" in each.texts("note"), "its end is noted")
    assert len(list_incidents()) == 1


def test_what_is_no_alert_or_has_no_token_opens_nothing(here: Path, producer: str) -> None:
    url = f"{producer}/admin/incidents"
    body = {"version": "4", "alerts": [{"status": "firing", "labels": LABELS, "annotations": {}}]}
    assert post(url, body)[0] == 401
    assert post(url, body, "wrong")[0] == 401
    assert post(url, {"alerts": "none"}, TOKEN)[0] == 400
    watchdog = {"status": "firing", "labels": {"alertname": "EmailIngestionWatchdog", "severity": "none"}}
    assert json.loads(post(url, {"alerts": [watchdog]}, TOKEN)[1])["state"] == {"incidents": {}}
    assert list_incidents() == []


def test_an_incident_that_cannot_be_opened_is_asked_for_again(here: Path, producer: str) -> None:
    (here / "data").write_text("a file where a folder belongs")
    body = {"alerts": [{"labels": LABELS | {"alertname": "--help; rm -rf"}}]}
    code, text = post(f"{producer}/admin/incidents", body, TOKEN)
    assert (code, "no incident was opened for help__rm_-rf" in text) == (503, True)


def run(here: Path, alertmanager: str, *words: str) -> subprocess.CompletedProcess[str]:
    given = {"ALERTMANAGER_URL": alertmanager, "IMAP_USER": "someone@example.com"}
    command = [sys.executable, "-m", "email_ingestion", "alert", *words]
    return subprocess.run(command, cwd=here, env=given, capture_output=True, text=True, timeout=90, check=False)


def test_a_silence_is_made_there_too_and_ended(here: Path, alertmanager: str) -> None:
    quiet = {"labels": LABELS | {"severity": "warning", "alertname": "EmailIngestionNoWorkers"}}
    assert post(f"{alertmanager}/api/v2/alerts", [quiet])[0] == 200
    made = run(here, alertmanager, "silence", "NoWork*", "--ttl", "30m")
    assert (made.returncode, "silenced here and in Alertmanager until" in made.stdout) == (0, True), made.stderr
    listed = Alertmanager(alertmanager)
    until(lambda: [row["state"] for row in listed.alerts()] == ["suppressed"], "it is silenced there", 60)
    assert json.loads(run(here, alertmanager, "list", "--json").stdout)[0]["alert"] == LABELS["alertname"]
    assert run(here, alertmanager, "unsilence", "NoWork*").returncode == 0
    until(lambda: [row["state"] for row in listed.alerts()] == ["firing"], "it rings there", 60)


def test_an_alertmanager_that_is_away_is_said(here: Path) -> None:
    with pytest.raises(OperationFailed, match="Alertmanager of ALERTMANAGER_URL does not do it"):
        Alertmanager("http://127.0.0.1:1").alerts()
    done = run(here, "http://127.0.0.1:1", "silence", "X")
    assert (done.returncode, "does not do it" in done.stderr) == (2, True)
