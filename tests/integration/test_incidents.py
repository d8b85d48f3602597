"""The life of an incident, as an on-call engineer leads it."""

from __future__ import annotations

import json
import re
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from email_ingestion.cli.main import app
from email_ingestion.incidents import assessment
from email_ingestion.incidents.incident_log import find_incident, open_incident
from email_ingestion.ledger.store import open_ledger
from email_ingestion.ops.alert_silences import read_silences
from email_ingestion.ops.audit_log import write_audit
from email_ingestion.settings import load_settings
from tests.contract.ledgers import mail, stored
from tests.servers.redis import RedisServer


@pytest.fixture
def here(tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in {"REDIS_URL": own_redis.url, "OPS_PORT": "0", "IMAP_USER": "someone@example.com"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["incident", *words], standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, result.output


def test_numbers_are_given_once_whoever_opens_at_the_same_time(here: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        numbers = [found.number for found in pool.map(open_incident, ["x"] * 12, ["P2"] * 12, ["ada"] * 12)]
    assert len(set(numbers)) == 12
    assert sorted(int(number[-3:]) for number in numbers) == list(range(1, 13))


def test_an_incident_from_its_opening_to_its_post_mortem(here: Path) -> None:
    record = {"timestamp": "2999-01-01T00:00:00Z", "event": "x"}
    (here / "logs").mkdir()
    code, printed = run("open", "--severity", "P1", "--from-alert", "EmailIngestionNoWorkers", "no worker is alive")
    number = printed.splitlines()[0]
    assert re.fullmatch(r"INC-\d{8}-001", number)
    assert "nothing runs here" in printed
    assert (code, find_incident("001").state) == (0, "open")
    record = {
        "timestamp": datetime.now(UTC).isoformat(),
        "level": "INFO",
        "event": "process_started",
        "instance": "w-1",
    }
    (here / "logs" / "worker.log").write_text(json.dumps(record) + "\n")
    write_audit(here / "logs", {"user": "ada", "action": "admin pause", "result": "done"})
    for _ in range(3):  # each process writes down what it was ordered
        write_audit(here / "logs", {"user": "ada", "action": "admin degrade", "result": "done", "level": "MINIMAL"})
    assert run("ack", number)[0] == 0
    run("note", "001", "restarted the worker")
    run("note", "001", "--kind", "action", "give it more memory")
    assert "UPDATE" in run("update", number, "it runs again")[1]
    code, resolved = run("resolve", number, "--cause", "killed for its memory", "--fix", "restarted")
    assert "Cause: killed for its memory" in resolved
    assert "no mail that arrived between" in resolved
    page = run("statuspage", number)[1]
    assert page.startswith("Resolved: e-mail is processed late")
    assert "memory" not in page
    assert "worker" not in page
    assert "killed for its memory" in run("summary", number)[1]
    postmortem = run("postmortem", number)[1]
    for words in (
        "restarted the worker",
        "- [ ] give it more memory",
        "process_started",
        "admin pause done",
        "admin degrade done level=MINIMAL (3 times)",
        "| ada |",
    ):
        assert words in postmortem
    assert "TODO" not in postmortem
    assert not re.search(r"<[a-z]|\[\.\.\.\]|____", postmortem)
    code, verification = run("verify", number)
    assert (code, "- [ ] CRITICAL workers" in verification) == (1, True)
    (listed,) = json.loads(run("list", "--json")[1])
    assert (listed["number"], listed["state"], listed["alert"]) == (number, "resolved", "EmailIngestionNoWorkers")
    kept = {path.name for path in find_incident(number).folder.iterdir()}
    assert {"initial.md", "update.md", "resolved.md", "postmortem.md", "verification.md", "evidence"} <= kept


def test_what_an_incident_did_is_told_when_all_is_well_again(here: Path) -> None:
    found = open_incident("mail is late", "P2", "ada")
    now = datetime.now(UTC)
    with closing(open_ledger(load_settings().database_url)) as ledger:
        for number, (account, minutes) in enumerate((("sales", 8.0), ("sales", 0.1), ("depot", 0.5))):
            arrived = now - timedelta(minutes=minutes)
            letter = mail(number + 1, account=account)
            ledger.record([stored(replace(letter, envelope=replace(letter.envelope, internaldate=arrived)))])
    for number, (level, scope) in enumerate((("OK", "no account is late"), ("CRITICAL", "account sales: late"))):
        made = assessment.Assessment(
            (now - timedelta(minutes=1)).isoformat(), level, [f"{level} workers: x"], [scope], ["7 messages wait"]
        )
        name = f"assessment-{number + 2}.json"
        (found.folder / name).write_text(json.dumps(made.as_dict()))
    (found.folder / "assessment-9.json").write_text('{"cut off')
    run("resolve", "001", "--cause", "c", "--fix", "f")
    for command in ("summary", "postmortem"):
        told = run(command, "001")[1]
        assert re.search(r"account sales: of 2 delivered messages, .*, 1 came more than 5 min late", told), told
        assert re.search(r"account depot: of 1 delivered messages, .*, 0 came more than 5 min late", told)
        for words in ("UTC: CRITICAL workers: x", "UTC: account sales: late", "UTC: 7 messages wait", "now: "):
            assert words in told


def test_an_incident_of_a_clock_that_was_two_days_ahead_says_what_is_not_known(here: Path) -> None:
    number = open_incident("the clock is off", "P3", "ada").number
    record = find_incident(number).folder / "incident.json"
    fields = json.loads(record.read_text())
    record.write_text(json.dumps(fields | {"opened_at": (datetime.now(UTC) + timedelta(days=2)).isoformat()}))
    assert run("ack", number)[0] == 0
    assert "for an unknown time (the clock was set back meanwhile)" in run("update", number, "it is set")[1]
    run("resolve", number, "--cause", "c", "--fix", "f")
    postmortem = run("postmortem", number)[1]
    assert "an unknown time" in postmortem
    assert "| ack: acknowledged |" in postmortem
    assert not re.search(r"-\d{3,} (min|h)", postmortem + run("list")[1])
    assert json.loads(run("list", "--json")[1])[0]["state"] == "resolved"


@pytest.mark.parametrize(
    ("stream", "scope"),
    [
        ({"depth": 1, "oldest_age_seconds": 3.0}, "no account is late: default"),
        ({"depth": 7, "oldest_age_seconds": 7200.0}, "mail of any account may be late: the oldest of 7 messages waits"),
        ({"depth": None, "oldest_age_seconds": None}, "whether mail that was fetched is late is not known"),
    ],
)
def test_mail_that_waits_for_a_worker_is_late_though_its_mailbox_is_looked_at(stream: dict, scope: str) -> None:
    accounts = [{"name": "default", "last_success_age_seconds": 1.0}]
    (found,) = assessment._scope({"accounts": accounts, "stream": stream})
    assert found.startswith(scope)


def test_an_account_that_waits_for_a_person_is_named_at_once() -> None:
    body = {
        "status": "not_ready",
        "reasons": ["redis: gone", "account sales: the consent is gone", "account depot-2: x", "account other: y"],
        "accounts": [{"name": name, "last_success_age_seconds": 3.0} for name in ("sales", "depot")],
        "stream": {"depth": 0, "oldest_age_seconds": None},
    }
    assert assessment._scope(body) == ["account sales: last looked at 3 s ago; the consent is gone"]
    assert assessment._scope(body | {"reasons": ["redis: gone"]})[0] == "all accounts: the producer is not_ready"


def test_an_alert_opens_one_incident_however_often_it_fires_until_that_is_resolved(here: Path) -> None:
    words = ("open", "--no-evidence", "--unless-open", "--from-alert", "EmailIngestionErrorRateMajority")
    number = run(*words)[1].splitlines()[0]
    found = find_incident("ErrorRateMajority")
    assert (found.number, found.severity, found.state) == (number, "P1", "open")
    assert run(*words, "again")[1].splitlines()[0] == number
    assert [entry.text for entry in find_incident(number).entries if entry.kind == "note"] == [
        "the alert EmailIngestionErrorRateMajority fires again: again"
    ]
    run("ack", number)
    assert [(each.pattern, each.kind) for each in read_silences()] == [("EmailIngestionErrorRateMajority", "ack")]
    run("resolve", number, "--cause", "x", "--fix", "y")
    assert run(*words)[1].splitlines()[0] != number


def test_an_incident_is_described_by_what_rings(here: Path) -> None:
    now = datetime.now(UTC).isoformat()
    rows = [{"alert": "SinkLate/webhook", "priority": "P3", "text": "sink webhook has not got a message for 6 min"}]
    (here / "data").mkdir()
    (here / "data" / "active-alerts.json").write_text(json.dumps({"looked_at": now, "alerts": rows}))
    run("open", "--no-evidence", "--from-alert", "EmailIngestionSinkLate")
    found = find_incident("001")
    assert (found.title, found.severity) == ("sink webhook has not got a message for 6 min", "P3")
    refused = CliRunner().invoke(app, ["incident", "open"])
    assert "TITLE says what is wrong" in str(refused.exception) or refused.exit_code


def test_the_texts_say_who_is_told_and_the_checklist_what_is_left(here: Path) -> None:
    (here / "config").mkdir()
    (here / "config" / "contacts.toml").write_text(
        '[response_minutes]\nP1 = 15\n[L1]\nrole = "On-call engineer"\nreach = "the rota"\n'
        '[L2]\nrole = "Team lead"\ntold_of = ["P2"]\n'
    )
    printed = run("open", "--no-evidence", "--severity", "SEV1", "mail is late")[1]
    assert "Told: L1 On-call engineer: the rota. An answer within 15 min." in printed
    code, listed = run("checklist", "001")
    assert (code, "- [ ] 1. acknowledge it" in listed) == (0, True)
    run("ack", "001")
    code, listed = run("checklist", "001", "--done", "7")
    assert "- [x] 1. acknowledge it" in listed
    assert "- [x] 7. is any mail missing?" in listed
    done = {item["number"] for item in json.loads(run("checklist", "001", "--json")[1]) if item["done"]}
    assert done == {1, 7}
    path = find_incident("001").folder / "incident.json"
    path.write_text(path.read_text().replace('"opened_at": "2', '"opened_at": "1'))
    assert run("checklist", "001")[0] == 1


def test_what_cannot_be_is_one_sentence(here: Path) -> None:
    for words in (("ack", "007"), ("note", "INC-20260101-001", "x")):
        result = CliRunner().invoke(app, ["incident", *words], standalone_mode=False)
        assert "no incident ends in" in str(result.exception)
    run("open", "--no-evidence", "one")
    run("ack", "001")
    again = CliRunner().invoke(app, ["incident", "ack", "001"], standalone_mode=False)
    assert "acknowledged already" in str(again.exception)


def test_an_acknowledgement_is_for_the_accounts_that_ring_and_no_others(here: Path) -> None:
    now = datetime.now(UTC).isoformat()
    row = {"priority": "P2", "state": "firing", "since": now, "text": "it cannot be reached"}
    rows = [row | {"alert": f"ImapUnreachable/{account}"} for account in ("work", "sales")]
    (here / "data").mkdir()
    (here / "data" / "active-alerts.json").write_text(json.dumps({"looked_at": now, "alerts": rows}))
    run("open", "--no-evidence", "--from-alert", "ImapUnreachable", "no mail")
    run("ack", "001")

    def is_silent(key: str) -> bool:
        return any(each.matches(key) for each in read_silences())

    assert is_silent("ImapUnreachable/work")
    assert is_silent("ImapUnreachable/sales")
    assert not is_silent("ImapUnreachable/support")
    done = CliRunner().invoke(app, ["alert", "unsilence", "ImapUnreachable"], standalone_mode=False)
    assert done.return_value == 0
    assert not is_silent("ImapUnreachable/work")
    done = CliRunner().invoke(app, ["alert", "ack", "ImapUnreachable/sales"], standalone_mode=False)
    assert (is_silent("ImapUnreachable/sales"), is_silent("ImapUnreachable/work")) == (True, False)


def test_a_ticket_is_made_in_the_form_of_a_github_issue(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[tuple[str | None, dict]] = []

    class Tracker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posted.append((self.headers["Authorization"], body))
            self.send_response(201)
            self.end_headers()
            self.wfile.write(b'{"html_url": "https://tracker.example.com/7"}')

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Tracker) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("INCIDENT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/issues")
        monkeypatch.setenv("INCIDENT_WEBHOOK_TOKEN", "s3cret")
        printed = run("open", "--no-evidence", "mail is late")[1]
        server.shutdown()
    ((authorization, body),) = posted
    assert (authorization, body["labels"]) == ("Bearer s3cret", ["incident", "P2"])
    assert "ticket: https://tracker.example.com/7" in printed
    assert find_incident("001").ticket == "https://tracker.example.com/7"
    assert "s3cret" not in (here / "data").read_text() if (here / "data").is_file() else True
    monkeypatch.setenv("INCIDENT_WEBHOOK", "http://127.0.0.1:1/")
    code, printed = run("open", "--no-evidence", "again")
    assert (code, "no ticket was made" in printed) == (0, True)
