"""The runbooks hang together: every command is drilled or listed with a reason, every alert leads to one section."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from email_ingestion.ops import builtin_alerts
from email_ingestion.ops.contacts import read_contacts
from tests.drills.play import RUNBOOKS
from tests.drills.runbook import Fence, Procedure, pages
from tests.drills.scenarios import scenarios

ROOT = RUNBOOKS.parents[1]
INCIDENTS = RUNBOOKS / "incident_response.md"
ITALIAN = RUNBOOKS / "it" / "incident_response.md"
PREFIX = "EmailIngestion"
PARTS = ("Meaning.", "Impact.", "Symptoms", "Diagnosis", "Mitigation", "Verification", "Afterwards")
POWERSHELL = re.compile(r"\b(Get|Set|Start|Stop|New|Remove|Select|Where)-[A-Z]\w+|\.ps1\b")
LEAST_REASON = 15  # characters
PAGES = pages(RUNBOOKS)
PROCEDURES = [procedure for page in PAGES for procedure in page.procedures]
OF_INCIDENTS = [procedure for procedure in PROCEDURES if procedure.where.path == INCIDENTS]


def ledger() -> dict[tuple[str, str], str]:
    """Why a command is not drilled where it stands, by page and first line."""
    listed = tomllib.loads((RUNBOOKS / "ledger.toml").read_text())["command"]
    found = {(each["page"], each["text"]): each["reason"] for each in listed}
    assert len(found) == len(listed), "a command is listed twice"
    return found


def text_of(procedure: Procedure) -> str:
    """A section as it is written, without the comments."""
    lines = procedure.where.path.read_text().splitlines()[procedure.where.line :]
    end = next((at for at, line in enumerate(lines) if re.match(r"#{2,3} ", line)), len(lines))
    return re.sub(r"<!--.*?-->", "", "\n".join(lines[:end]), flags=re.DOTALL)


def run_by_drills() -> set[str]:
    """Every command that a drill runs, whole and in its parts."""
    texts = {step.text for each in PROCEDURES for step in each.steps if not step.skip}
    return texts | {part.partition(" #")[0].strip() for text in texts for part in re.split(r"&&|[;|\n]", text)}


def is_name(text: str) -> bool:
    """A program that is only mentioned."""
    return " " not in text and not text.startswith("./")


def undrilled() -> list[tuple[str, str]]:
    """Every command that no drill runs where it stands, by page and first line."""
    found, run = [], run_by_drills()
    for page in PAGES:
        found += [(page.path.name, _head(fence)) for fence in page.fences if fence.step is None]
        told = [inline.text for inline in page.inline if not is_name(inline.text)]
        found += [(page.path.name, text) for text in told if text not in run]
    return list(dict.fromkeys(found))


def _head(fence: Fence) -> str:
    return fence.text.strip().splitlines()[0]


def alerts() -> dict[str, str]:
    """Page and anchor of each alert."""
    groups = yaml.safe_load((ROOT / "config" / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    return {rule["alert"]: rule["annotations"]["runbook_url"].rpartition("/")[2] for rule in rules}


def test_every_command_is_drilled_or_listed_with_a_reason() -> None:
    assert sorted(undrilled()) == sorted(ledger())


def test_a_reason_is_a_reason() -> None:
    assert [key for key, reason in ledger().items() if len(reason) < LEAST_REASON] == []


def test_every_procedure_has_a_scenario() -> None:
    assert {each.scenario for each in PROCEDURES} <= scenarios().keys()


def test_every_alert_leads_to_the_section_that_names_it_and_to_no_other() -> None:
    named = [
        (f"{PREFIX}{alert}", f"{each.where.path.stem}#{each.anchor}") for each in PROCEDURES for alert in each.alerts
    ]
    assert sorted(named) == sorted(alerts().items())


@pytest.mark.parametrize("procedure", OF_INCIDENTS, ids=lambda each: each.anchor)
def test_a_reader_sees_the_alerts_of_a_section(procedure: Procedure) -> None:
    (line,) = re.findall(r"^Alerts: ((?:.+\n)+)", text_of(procedure), re.MULTILINE)
    assert set(re.findall(rf"`{PREFIX}(\w+)`", line)) == procedure.alerts


@pytest.mark.parametrize("procedure", OF_INCIDENTS, ids=lambda each: each.anchor)
def test_a_procedure_has_its_seven_parts_in_order(procedure: Procedure) -> None:
    assert tuple(re.findall(r"^\*\*([A-Z]\w+\.?)\*\*", text_of(procedure), re.MULTILINE)) == PARTS


@pytest.mark.parametrize("procedure", OF_INCIDENTS, ids=lambda each: each.anchor)
def test_a_procedure_is_looked_into_and_verified_by_commands(procedure: Procedure) -> None:
    phases = {step.phase for step in procedure.steps if not step.skip}
    assert {"diagnosis", "verify"} <= phases
    assert procedure.symptoms


def test_the_built_in_monitor_leads_to_sections_too() -> None:
    anchors = {rule.anchor for rule in builtin_alerts.ALERT_RULES}
    assert anchors
    assert anchors <= {each.anchor for each in OF_INCIDENTS}


def test_what_is_for_windows_is_marked_and_nothing_else() -> None:
    for page in PAGES:
        for fence in page.fences:
            windows = bool(fence.step and fence.step.skip == "a command for Windows")
            assert (fence.language == "powershell") == windows, str(fence.where)
            assert windows or not POWERSHELL.search(fence.text), str(fence.where)


def test_contacts_are_roles_and_those_of_the_runbook() -> None:
    contacts = tomllib.loads((ROOT / "config" / "contacts.example.toml").read_text())
    rows = re.findall(r"^\| (L\d|External) \| (.+?) \| (.+?) \|$", INCIDENTS.read_text(), re.MULTILINE)
    assert {level: (each["role"], each["when"]) for level, each in contacts.items() if "role" in each} == {
        level: (role, when) for level, role, when in rows
    }
    read = read_contacts(ROOT / "config" / "contacts.example.toml")
    assert [each.level for each in read.people] == ["L1", "L2", "L3", "External"]
    assert {each.level for each in read.told_of("P1")} == {"L1", "L2"}
    assert "https://www.google.com/appsstatus" in read.status_pages.values()
    assert not re.search(r"[\w.]+@[\w.]+|\+\d{6,}", (ROOT / "config" / "contacts.example.toml").read_text())


def test_response_times_are_those_of_the_severity_table() -> None:
    contacts = tomllib.loads((ROOT / "config" / "contacts.example.toml").read_text())["response_minutes"]
    minutes = {"min": 1, "h": 60, "day": 1440}
    rows = re.findall(r"^\| \*\*(P\d) . .+?\| (\d+) (min|h|day) \|", INCIDENTS.read_text(), re.MULTILINE)
    assert {priority: int(number) * minutes[unit] for priority, number, unit in rows} == contacts


# What people have in their fingers, and other programs in their scripts.
LITERAL = (
    "redis-cli -h $REDIS_HOST -p $REDIS_PORT ping",
    "ps aux | grep redis-server",
    "Get-Process redis-server",
    "tail -50 /var/log/redis/redis-server.log",
    "redis-cli ping",
    "systemctl restart redis",
    "redis-server /etc/redis/redis.conf",
    "redis-cli DBSIZE",
    "curl http://localhost:8080/ready",
    "openssl s_client -connect imap.gmail.com:993 -brief",
    "curl -s http://localhost:8080/status | python -m json.tool",
    "for cb in d.get('circuit_breakers',[]):",
    "print(f\\\"{cb['name']}: {cb['state']}  failures={cb['failure_count']}\\\")",
    "https://www.google.com/appsstatus",
    "telnet imap.gmail.com 993",
    "python -m src.auth.oauth2_gmail --info",
    "python -m src.auth.oauth2_gmail --refresh",
    "python producer.py --auth-setup",
    "curl -s http://localhost:9090/metrics | grep circuit_breaker",
    "cat pids/worker.pid && ps -p $(cat pids/worker.pid)",
    "tail -100 logs/worker.log",
    "python worker.py",
    "./scripts/start.sh",
    ".\\scripts\\start.ps1",
    "config/grafana_dashboard.json",
    "`http://localhost:8080/health`, `/ready`, `/status`",
    "`http://localhost:9090/metrics`",
    "`redis-cli -h $REDIS_HOST -p $REDIS_PORT`",
    "`logs/producer.log`, `logs/worker.log`",
    "`backups/` directory",
    "(XPENDING/XCLAIM)",
    "`XPENDING`",
    "(after `recovery_timeout`)",
    "(after `success_threshold` successes)",
    *("`email_ingestion_circuit_breaker_state` = 1 (OPEN)", "`email_ingestion_dlq_depth`", "max_retries"),
    "`email_ingestion_dlq_messages_total`",
    *("`RedisConnectionError`", "`IMAPConnectionError`", "`OAuth2AuthenticationError`", "`TokenRefreshError`"),
    "`CircuitBreakerError`",
)


@pytest.mark.parametrize("text", LITERAL)
def test_what_has_always_been_typed_stays(text: str) -> None:
    assert text in INCIDENTS.read_text()


def test_runbooks_name_nobody() -> None:
    for path in sorted(path for path in RUNBOOKS.rglob("*") if path.is_file()):
        assert set(re.findall(r"[\w.+-]+@([\w-]+\.[\w.]+)", path.read_text())) <= {"example.com"}, path


TRANSLATED = f"change {ITALIAN.relative_to(ROOT)} like {INCIDENTS.relative_to(ROOT)}, section"
COMMENT_OR_BLOCK = re.compile(r"<!--.*?-->|^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")


def headings(path: Path) -> list[tuple[str, str, str]]:
    """Level, number and severity of every section."""
    return re.findall(r"^(#{2,3}) ([\d.]+) [^(\n]*(?:\((P\d)\))?$", path.read_text(), re.MULTILINE)


def sections(path: Path) -> dict[str, str]:
    """The text of every section by its number, a chapter's up to its first section; the page's beginning has none."""
    beginning, *rest = re.split(r"^#{2,3} (?=\d)", path.read_text(), flags=re.MULTILINE)
    return {"": beginning, **{text.split()[0]: text for text in rest}}


def untranslatable(path: Path, number: str) -> dict[str, Any]:
    """What a section says in every language; where the order of words decides, sorted."""
    text = sections(path)[number]
    seen = COMMENT_OR_BLOCK.sub("", text)
    prose = re.sub(r"\]\([^)]*\)", "]", CODE.sub("", seen))
    links = re.findall(r"\]\(([^)#]*)(#[^)]*)?\)|<(https:[^>]*)>", seen)
    targets = [((path.parent / page).resolve() if page else "here", anchor or url) for page, anchor, url in links]
    return {
        "anchors": re.findall(r'<a id="([^"]*)">', text),
        "comments and blocks": COMMENT_OR_BLOCK.findall(text),
        "parts and points": re.findall(r"^(\*\*|\d\.|-|\|) ?", seen, re.MULTILINE),
        "alerts": re.findall(rf"\b{PREFIX}\w+", seen),
        "code": sorted(CODE.findall(seen)),
        "numbers": sorted(re.findall(r"\d+", prose)),
        "links": sorted((str(page), place) for page, place in targets if page not in {INCIDENTS, ITALIAN}),
    }


def test_both_languages_have_the_same_sections() -> None:
    assert headings(ITALIAN) == headings(INCIDENTS), f"{TRANSLATED} for section"


@pytest.mark.parametrize("number", sections(INCIDENTS))
def test_both_languages_say_to_do_the_same(number: str) -> None:
    assert untranslatable(ITALIAN, number) == untranslatable(INCIDENTS, number), f"{TRANSLATED} {number}"
