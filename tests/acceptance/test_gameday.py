"""A person practises: a fault on the sandbox's stack, the section to open, and the way back."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.daemon import running_pid
from email_ingestion.fleet.gameday_faults import FAULTS, RUNBOOK
from tests.drills.runbook import read
from tests.servers.commands import told, typed
from tests.servers.processes import ROOT, Place, place, until


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path / "demo", "unused", CB_RECOVERY_TIMEOUT=1, IMAP_POLL_SECONDS=1, IMAP_TIMEOUT_SECONDS=2) as made:
        for name in ("producer.py", "worker.py", "src/_venv.py"):
            target = made.folder / name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, target)
        del made.environment["REDIS_URL"]
        yield made


@pytest.fixture
def stack(bare: Place) -> Iterator[Place]:
    """The sandbox's stack, as the README's first command leaves it."""
    try:
        started = bare.run("-m", "email_ingestion", "start", "--sandbox", seconds=120)
        assert started.returncode == 0, started.stderr
        yield bare
    finally:
        bare.run("-m", "email_ingestion", "stop", seconds=120)


def ready(here: Place, stem: str = "producer") -> str:
    """The word of its /ready; empty when it does not answer."""
    path = here.folder / "pids" / f"{stem}.json"
    try:
        with urllib.request.urlopen(f"{json.loads(path.read_text())['ops_url']}/ready", timeout=5) as answer:
            return json.load(answer)["status"]
    except urllib.error.HTTPError as error:
        return json.load(error)["status"]
    except (OSError, ValueError):
        return ""


def test_each_fault_leads_to_a_section_that_a_drill_covers():
    (page,) = [each for each in [read(ROOT / RUNBOOK)] if each.procedures]
    drilled = {each.scenario: each.anchor for each in page.procedures}
    assert {name: fault.section for name, fault in FAULTS.items()} == {name: drilled[name] for name in FAULTS}


def test_a_stack_that_is_not_the_sandboxs_is_left_alone(bare: Place):
    refused = typed(bare, "gameday", "redis-down")
    assert (refused.returncode, "start.sh --sandbox" in refused.stderr) == (2, True)
    assert typed(bare, "gameday", "--undo").returncode == 1


@pytest.mark.parametrize("words", [(), ("redis-down", "--list"), ("nothing-like-it",), ("redis-down", "--ttl", "soon")])
def test_a_slip_of_the_pen_is_answered_with_what_there_is(bare: Place, words: tuple[str, ...]):
    assert typed(bare, "gameday", *words).returncode == 64


def test_the_catalogue_names_every_fault_and_its_section(bare: Place):
    listed = told(bare, "gameday", "--list")
    assert [(each["name"], each["open"]) for each in listed] == [
        (name, f"{RUNBOOK}#{fault.section}") for name, fault in FAULTS.items()
    ]


def practise(here: Place, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what it leaves running must not be ours."""
    return here.run("-m", "email_ingestion", "gameday", *words)


def test_a_killed_redis_comes_back_by_order_and_a_silent_mail_server_by_itself(stack: Place):
    begun = practise(stack, "redis-down")
    assert (begun.returncode, "#21-redis-down" in begun.stdout) == (0, True), begun.stderr
    until(lambda: ready(stack) == "not_ready", "the fault shows")
    second = practise(stack, "worker-crash")
    assert (second.returncode, "--undo" in second.stderr) == (2, True)
    assert practise(stack, "--undo").stdout == "mended: redis-down\n"
    until(lambda: ready(stack) == "ready", "it is over")
    assert not (stack.folder / "pids" / "gameday.pid").exists() or not running_pid(
        stack.folder / "pids" / "gameday.pid"
    )

    assert practise(stack, "imap-unreachable", "--ttl", "6s").returncode == 0
    until(lambda: ready(stack) == "degraded", "the fault shows")
    until(lambda: ready(stack) == "ready", "it is over")
    until(lambda: practise(stack, "--undo").returncode == 1, "nobody had to mend it")


@pytest.mark.soak
def test_workers_consents_and_letters_can_be_broken_too(stack: Place):
    for name, shows in {
        "worker-crash": lambda: not running_pid(stack.folder / "pids" / "worker.pid"),
        "token-expired": lambda: ready(stack) == "degraded",
        "breaker-open": lambda: ready(stack) == "degraded",
    }.items():
        assert practise(stack, name).returncode == 0
        until(shows, f"{name} shows")
        assert practise(stack, "--undo").returncode == 0
        until(lambda: (ready(stack), ready(stack, "worker")) == ("ready", "ready"), f"{name} is over")
    assert practise(stack, "dlq-growing").returncode == 0
    until(lambda: told(stack, "dlq", "stats")[0]["count"] == 20, "the dead letters are there")
