"""The game of a night: an alert opens an incident, and a person leads it to a post-mortem with a true timeline."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gmail_sandbox import RunningSandbox
from tests.servers.processes import ROOT, Place, until
from tests.servers.receiver import http_receiver

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

LETTER = b"Subject: hello\r\n\r\nworld\r\n"
PAGE = Path("docs/runbooks/incident_response.md")
OF_WORKER = '$(python -c \'import json; print(json.load(open("pids/worker.json"))["ops_url"])\')'


def test_an_alert_at_night_becomes_an_incident_that_a_person_leads_to_its_end(
    here: Place, sandbox: RunningSandbox
) -> None:
    with http_receiver() as somebody:
        here.set(
            ALERT_CHANNELS=f"json://127.0.0.1:{somebody.port}/",
            ALERT_SECONDS=1,
            INCIDENT_FROM_ALERTS="P1",
            PATH=f"{Path(sys.executable).parent}:{here.environment.get('PATH', '/usr/bin:/bin')}",
        )
        (here.folder / "worker.py").symlink_to(ROOT / "worker.py")
        page = here.folder / PAGE  # the worker's port is one that the system chose
        page.parent.mkdir(parents=True)
        page.write_text((ROOT / PAGE).read_text().replace("http://localhost:8081", OF_WORKER))
        here.producer()
        worker = here.worker()
        sandbox.deliver(LETTER)
        until(lambda: len(here.rows()) == 1, "mail flows")

        worker.kill()
        sandbox.deliver(LETTER)
        (found,) = until(lambda: incidents(here), "the alert opens an incident", 120)
        number = found["number"]
        assert (found["severity"], found["alert"], found["state"]) == ("P1", "NoWorkers", "open")
        evidence = here.folder / "data" / "incidents" / number / "evidence" / "manifest.json"
        until(evidence.exists, "evidence is kept")
        assert any("[P1] no worker runs" in each["title"] for each in somebody.posted)

        assert command(here, "incident", "ack", number).returncode == 0
        listed = json.loads(command(here, "alert", "list", "--json").stdout)
        assert {each["alert"]: each["state"] for each in listed}["NoWorkers"] == "acknowledged"
        checked = command(here, "check", "workers")
        assert (checked.returncode, checked.stdout[:8]) == (2, "CRITICAL")
        assert "Worker Crash" in command(here, "runbook", "NoWorkers").stdout
        try:
            ran = command(here, "runbook", "run", "2.6", "--step", typed="y\n" * 12)
            assert ran.returncode == 0, ran.stdout + ran.stderr
            until(lambda: len(here.rows()) == 2, "what waited is delivered")
            until(lambda: command(here, "alert", "list").returncode == 1, "nothing rings any more")
            until(lambda: any("over: NoWorkers" in each["message"] for each in somebody.posted), "people hear the end")
            ended = command(
                here, "incident", "resolve", number, "--cause", "the worker was killed", "--fix", "restarted"
            )
            assert ended.stdout.startswith(f"**{number} RESOLVED")
            verified = command(here, "incident", "verify", number).stdout
            assert "- [x] OK workers: producer, worker run and are ready" in verified
            assert "- [x] OK queue" in verified
            written = command(here, "incident", "postmortem", number).stdout
        finally:
            with suppress(OSError, ValueError, psutil.Error):
                psutil.Process(int((here.folder / "pids" / "worker.pid").read_text())).kill()

    tells_what_happened(written)
    done = json.loads(command(here, "incident", "checklist", number, "--json").stdout)
    assert [item["done"] for item in done[:6]] == [True, True, False, True, True, True], done[:6]
    actions = {each["action"] for each in json.loads(command(here, "audit", "list", "--json").stdout)}
    assert {"incident open", "runbook run", "incident resolve"} <= actions


def tells_what_happened(written: str) -> None:
    """The post-mortem has everything in its order."""
    story = re.findall(r"^\| (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) \| (.+?) \| (.+?) \|$", written, re.MULTILINE)
    assert [when for when, _, _ in story] == sorted(when for when, _, _ in story)
    told = [
        *("process_started", "process_started", "alert_received alert=NoWorkers", "opened: P1"),
        *("ack: acknowledged", "ran: runbook 2.6, diagnosis", "ran: runbook 2.6, mitigation", "process_started"),
        *("ran: runbook 2.6, verify", "resolved: the worker was killed"),
    ]
    rest = iter(text for _, _, text in story)
    for part in told:
        assert any(re.match(part, text) for text in rest), (part, story)
    texts = [text for _, _, text in story]
    over = next(at for at, text in enumerate(texts) if text == "note: the alert NoWorkers is over")
    assert texts.index("ack: acknowledged") < over < texts.index("resolved: the worker was killed -> restarted")
    assert "alert_received alert=NoWorkers priority=P1" in texts  # not firing any more
    assert "**0-1 h**" in written


def incidents(here: Place) -> list[dict]:
    done = command(here, "incident", "list", "--json")
    return json.loads(done.stdout) if done.returncode == 0 else []


def command(here: Place, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [here.python, "-m", "email_ingestion", *words],
        cwd=here.folder,
        env=here.environment,
        input=typed,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
