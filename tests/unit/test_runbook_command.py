"""`email-ingestion runbook`: the section of an alert by any of its names, and its commands one by one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from email_ingestion.incidents import runbook_pages
from email_ingestion.incidents.incident_log import find_incident, open_incident
from email_ingestion.incidents.runbook_pages import RUNBOOKS, RunbookStep, read_sections, search_sections
from tests.alerts.rules import alerts
from tests.drills.play import RUNBOOKS as PAGES
from tests.drills.runbook import pages

# As the runbooks of neighbouring systems call them.
ELSEWHERE = {
    "System Health Critical": "2.6",
    "Database connection failed": "2.17",
    "Redis connection failed": "2.1",
    "Celery Workers Critical": "2.6",
    "No Celery workers responding": "2.6",
    "Document Processing Critical": "2.5",
    "Document Processing Degraded": "2.5",
    "Task Queue Backlog Critical": "2.7",
    "Task Queue Backlog Warning": "2.7",
    "Long-Running Task Critical": "2.11",
    "Long-Running Task Warning": "2.11",
    "HighEmailProcessingErrorRate": "2.5",
    "EmailProviderDown": "2.2",
    "OOMKilled": "2.6",
    "circuit breaker": "2.4",
    "2.10": "2.10",
    "backup missed": "2.21",
}


@pytest.mark.parametrize("alert", [each["alert"] for each in alerts()])
def test_every_alert_finds_its_section_and_no_other(alert: str) -> None:
    (by_alert,) = search_sections(alert)
    assert search_sections(alert.removeprefix("EmailIngestion").lower()) == [by_alert]
    url = next(each["annotations"]["runbook_url"] for each in alerts() if each["alert"] == alert)
    assert url.rpartition("#")[2].startswith(by_alert.number.replace(".", "") + "-")


@pytest.mark.parametrize(("name", "number"), ELSEWHERE.items())
def test_a_name_that_others_use_finds_it_too(name: str, number: str) -> None:
    assert [each.number for each in search_sections(name)] == [number]


def test_other_pages_and_words_are_found_and_nonsense_is_not() -> None:
    assert [each.page for each in search_sections("dlq_management")] == ["dlq_management.md"]
    assert "2.9" in [each.number for each in search_sections("never FLUSHALL maxmemory-policy")]
    assert search_sections("xylophone orchestra") == []


def test_a_name_elsewhere_is_that_of_one_section() -> None:
    names = [name for section in read_sections() for name in section.other_names]
    assert len(names) == len(set(names)) > 40


def test_its_steps_are_those_that_the_drills_run() -> None:
    drilled = {
        (procedure.where.path.name, procedure.anchor.partition("-")[0]): procedure
        for page in pages(PAGES)
        for procedure in page.procedures
        if page.path.name == "incident_response.md"
    }
    sections = {(each.page, each.number.replace(".", "")): each for each in read_sections() if each.number}
    assert len(drilled) >= 24
    for key, procedure in drilled.items():
        expected = [(step.phase, step.text, step.fault.rc, step.fault.match) for step in procedure.steps]
        found = [(step.phase, step.command, step.rc, step.match) for step in sections[key].steps()]
        assert sorted(found, key=str) == sorted(expected, key=str), key
        assert "<!--" not in sections[key].text
        assert "<a id" not in sections[key].text


def test_a_result_is_compared_with_what_the_page_says() -> None:
    step = RunbookStep("x", "verify", "true", rc=1, match="down", no_match="up")
    assert step.lacks(1, "it is down") == ""
    assert step.lacks(0, "down") == "exit code 0, the page expects 1"
    assert step.lacks(1, "gone") == "nothing there matches 'down'"
    assert step.lacks(1, "up and down") == "something there matches 'up'"
    assert "did not end" in step.lacks(None, "down")


PAGE = """# Runbook

### 2.1 Something Broken (P2)

Alerts: `EmailIngestionBroken`

Also called: kaputt

**Diagnosis**

<!-- step: id=look phase=diagnosis rc=1 match=missing -->
```bash
ls data/there || { echo "missing, says ada@example.com"; exit 1; }
```

1. Mend it

   <!-- step: id=mend phase=mitigation -->
   ```bash
   touch data/there
   echo mended
   ```

2. Or like that: <!-- step: id=other run="touch data/other" phase=mitigation instead-of=mend -->

<!-- step: id=windows phase=diagnosis platform=windows -->
```powershell
Get-Item data
```

**Verification**

<!-- step: id=wait phase=verify retry=30 -->
```bash
test -e data/later || { (sleep 1; touch data/later) & exit 1; }
```

### 2.2 Another (P3)

Nothing to do.
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / RUNBOOKS).mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / RUNBOOKS / runbook_pages.INCIDENTS).write_text(PAGE)
    return tmp_path


def run(here: Path, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "email_ingestion", "runbook", *words]
    given = {"PATH": "/usr/bin:/bin", "IMAP_USER": "someone@example.com"}
    return subprocess.run(
        command, cwd=here, env=given, input=typed, capture_output=True, text=True, timeout=90, check=False
    )


def test_the_page_of_this_folder_is_printed_without_comments(here: Path) -> None:
    done = run(here, "kaputt")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "### 2.1 Something Broken (P2)")
    assert "<!--" not in done.stdout
    assert [each["section"] for each in json.loads(run(here, "--json").stdout)] == ["2.1", "2.2"]
    nothing = run(here, "nonsense")
    assert (nothing.returncode, "no section of the runbooks has 'nonsense'" in nothing.stderr) == (1, True)


def test_its_commands_are_run_one_by_one_and_the_transcript_is_the_incidents(here: Path) -> None:
    number = open_incident("broken", "P2", "ada").number
    done = run(here, "run", "2.1", "--step", typed="y\nhuh\nyes\ny\n")
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, f"the transcript goes into {number}: broken")
    assert "=> exit code 1, as the page says" in done.stdout
    assert "run it? [y]es [s]kip [q]uit: run it?" in done.stdout  # after a word that is no answer
    assert (here / "data" / "there").exists()
    found = find_incident(number)
    lines = [entry.text for entry in found.entries if entry.kind == "ran"]
    assert [line.partition(" `")[0] for line in lines] == [
        "runbook 2.1, diagnosis",
        "runbook 2.1, mitigation",
        "runbook 2.1, verify",
    ]
    transcript = (found.folder / "runbook-2-1.md").read_text()
    assert "$ touch data/there\necho mended\n" in transcript
    assert "missing, says <address>" in transcript
    assert "Not run: `touch data/other`: its alternative was run" in transcript
    assert "Not run: `Get-Item data`: it is for Windows" in transcript
    assert [json.loads(line)["result"] for line in (here / "logs" / "audit.log").read_text().splitlines()] == [
        "started",
        "done",
    ]


def test_of_several_incidents_that_of_the_section_gets_the_transcript(here: Path) -> None:
    numbers = [open_incident("x", "P2", "ada", alert).number for alert in ("EmailIngestionOther", "Broken", "")]
    done = run(here, "run", "2.1", "--step", typed="q\n")
    assert f"the transcript goes into {numbers[1]}" in done.stderr
    refused = run(here, "run", "2.2", "--step", typed="q\n")
    assert (refused.returncode, "several incidents are open" in refused.stderr) == (2, True)


def test_who_stops_has_verified_nothing(here: Path) -> None:
    open_incident("broken", "P2", "ada")
    done = run(here, "run", "Broken", "--step", typed="y\nq\n")
    assert (done.returncode, (here / "data" / "there").exists()) == (1, False)
    assert "ended before it" in (find_incident("001").folder / "runbook-2-1.md").read_text()
    assert run(here, "run", "2.1", "--step", typed="").returncode == 1
    open_incident("another", "P2", "ada")
    refused = run(here, "run", "2.1", "--yes")
    assert (refused.returncode, "name one with --incident" in refused.stderr) == (2, True)
    assert run(here, "run", "nonsense").returncode == 64
    listed = run(here, "run", "2.1")
    assert (listed.returncode, "(not run: it is for Windows)" in listed.stdout) == (0, True)
