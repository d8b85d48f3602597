"""Every command of README, CONTRIBUTING, docs and examples does on a live system what a reader expects.

`documented.toml` lists those that are run elsewhere, or by nobody, with the reason. A command that is new on a page is
run here unless it stands there. The runbooks have drills of their own.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.errors import PermanentError
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.stream.dead_letters import dead_letter_fields
from tests.acceptance.documented import Listed, commands, listed, pages, to_run
from tests.servers.commands import typed
from tests.servers.links import link, message
from tests.servers.missing import program
from tests.servers.pair import Pair, running_pair
from tests.servers.ports import free_port
from tests.servers.processes import ROOT, until
from tests.unit.test_docs import ids

LEAST_REASON = 15  # characters
EXCEPTIONS = listed()
PAGES = [path for path in pages() if to_run(path, EXCEPTIONS)]
# What stands on a page for something of the reader's.
EXAMPLES = {
    "default:gm:1790000000000000001": "{id}",
    "17900000": "{id}",
    "1767225600000-0": "{first}",
    "1767225600001-0": "{second}",
    "1f0c9a6be2d4": "{fingerprint}",
    "mail-1-worker-2": "{worker}",
    " NUMBER": " 001",
    " TEXT": " 'the worker runs again'",
    "[--kind action|factor|lucky]": "--kind action",
    "--cause … --fix …": "--cause memory --fix restarted",
    " UID…": " 4711",
    "ada@example.com": "a@example.org",
    " ID…": " {first}",
    " ID": " {id}",
    " EMAIL_ID": " {id}",
    " WORD…": " PING",
    " DIR": " evidence",
    " F ": " $(ls backups/*.tar | tail -n 1) ",
    "[--release]": "--release",
    "[--follow] [--component worker]": "--component worker",
    "--account work": "--account default",
    "invoice.eml": "message.eml",
    "All mail Including Spam and Trash.mbox": "mail.mbox",
    "archive.mbox": "mail.mbox",
    "FILE.mbox": "mail.mbox",
    "NAME": "redis",
    "make ": f"make -n -C {ROOT} ",
    ".venv-test-3.13/bin/python -m pytest ": f"python -m pytest -q -c {ROOT}/pyproject.toml {ROOT}/",
}
# What ends otherwise than with 0: nothing is there to be found, or somebody would be disturbed.
ANSWERS = {
    r"email-ingestion doctor.*": {0, 1, 2},
    r"email-ingestion (pending|revoke|errors|logs) ?.*": {0, 1},
    r"email-ingestion dlq .*--older-than.*": {1},
    r"email-ingestion audit (list --action dlq .*|verify --head .*)": {1},  # not on this system
    r"email-ingestion reconcile --against .*|email-ingestion incident verify .*": {0, 1},
    r"email-ingestion check .*": {0, 1, 2, 3},
    r"email-ingestion export \S+ (--json )?-o .*": {0, 2},  # the file of the time before
    r"email-ingestion dlq show \S+ --raw .*": {0, 2},
    r"email-ingestion dlq export .*--output .*": {0, 2},
    r"email-ingestion evidence collect .*": {0, 2},
    r"python scripts/restore\.py --file .* --dry-run": {1},  # producer and worker run
    r"email-ingestion quarantine .*": {0, 1},
    r"grep .*": {0, 1},
}
PIP = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip's spelling of yes
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


# Orders that would be in force on the next page too.
HOLDS = re.compile(r"\b(pause|degrade|priority|breaker)\b|/admin/")


class Live(Pair):
    held = False  # whether a page may have left such an order

    def email_id(self) -> str:
        return str(self.here.rows("SELECT email_id FROM emails ORDER BY email_id")[0][0])

    def letters(self) -> list[Any]:
        """Two dead letters at least: commands of a page may have taken the ones before away."""
        dead_letters = DeadLetterQueue(link(self.redis.url))
        for number in range(2 - dead_letters.depth()):
            fields = dead_letter_fields("permanent", 1, PermanentError("no"), "", "here-worker-1")
            dead_letters.add(message(900_000 + number, raw=MAIL % (900 + number, 900 + number)), fields)
        return list(dead_letters.letters())

    def free(self) -> None:
        """End what the orders of another page hold; those of this machine first, for which the others would wait."""
        (self.here.folder / ".env").unlink(missing_ok=True)
        if not self.held:
            return
        for words in ("resume {}", "resume {} --all"):
            for kind in ("producer", "worker"):
                typed(self.here, *words.format(kind).split())
        for words in ("degrade NORMAL", "degrade NORMAL --all", "priority 0", "priority 0 --all", "breaker auto imap"):
            typed(self.here, *words.split())
        self.held = False


MAIL = b"From: a@example.org\r\nSubject: receipt %d\r\nMessage-ID: <%d@example.org>\r\n\r\ninvoice 2026\r\n"


def report() -> bytes:
    """What the examples of a search look for."""
    made = EmailMessage()
    made["From"], made["Subject"], made["Message-ID"] = "Anna <anna@example.org>", "quarterly report", "<q@example.org>"
    made["X-Priority"] = "1"
    made.set_content("invoice\n")
    made.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename="report.pdf")
    return made.as_bytes()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running_pair(Live, tmp_path_factory.mktemp("documented")) as made:
        for number in range(3):
            made.sandbox.deliver(MAIL % (number, number))
        made.sandbox.deliver(report(), labels=("Receipts",))
        until(lambda: len(made.here.rows("SELECT email_id FROM emails")) == 4, "mail is delivered")
        _furnish(made.here.folder)
        yield made


def _furnish(folder: Path) -> None:
    """Make the live system's folder look like the project's, and as if its reader had some files."""
    (folder / "message.eml").write_bytes(MAIL % (9, 9))
    (folder / "mail.mbox").write_bytes(b"From a@example.org Thu Jan  1 00:00:00 2026\n" + MAIL % (8, 8))
    (folder / "ids.txt").write_text("<1@example.org>\n")
    (folder / "data").mkdir(exist_ok=True)
    tools = folder / "tools"
    tools.mkdir()
    for name in ("email-ingestion", "python", "python3", "pip"):
        program = Path(sys.executable).with_name(name if name != "python3" else "python")
        (tools / name).write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        (tools / name).chmod(0o755)
    for name in ("src", "scripts", "config", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))


@pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))
def test_every_command_of_a_page_works_as_written(live: Live, path: Path):
    live.free()
    refused = []
    for command in to_run(path, EXCEPTIONS):
        live.held |= bool(HOLDS.search(command))
        done = run(live, command)
        words = command.removeprefix(".venv/bin/")
        expected = next((codes for text, codes in ANSWERS.items() if re.fullmatch(text, words)), {0})
        if done.returncode not in expected or "Traceback" in done.stderr:
            refused.append(f"{command}: {done.returncode} {done.stderr}{done.stdout[:300]}")
        elif "--json" in words and "|" not in words and done.stdout.strip():
            _check_json(words, done.stdout)
    assert not refused, "\n".join(refused)


def _check_json(words: str, printed: str) -> None:
    """What `--json` prints has the shape that docs/cli.md promises: one value, but for `logs` one in each line."""
    texts = printed.splitlines() if words.startswith("email-ingestion logs") else [printed]
    assert all(isinstance(json.loads(text), dict | list) for text in texts), words


def run(live: Live, command: str) -> subprocess.CompletedProcess[str]:
    letters = live.letters() if " dlq " in command else []
    known = {
        "id": live.email_id(),
        "first": letters[0].id if letters else "1767225600000-0",
        "second": letters[1].id if letters else "1767225600001-0",
        "fingerprint": letters[0].fingerprint if letters else "1f0c9a6be2d4",
        "worker": live.worker.status()["instance"],
    }
    command = re.sub(r"(?<![\w-])\.venv/bin/", "", command)
    for example, real in EXAMPLES.items():
        command = f"{command} ".replace(example, real.format(**known)).strip()
    if command.startswith("email-ingestion ") and not re.search(r"[|>*]|^email-ingestion export", command):
        return typed(live.here, *shlex.split(command)[1:])
    for port, url in {
        "8080": live.producer.url(),
        "8081": live.worker.url(),
        "9090": live.producer.url("metrics_url"),
        "9091": live.worker.url("metrics_url"),
    }.items():
        command = command.replace(f"localhost:{port}", url.removeprefix("http://"))
    command = command.replace("curl ", "curl -sS --fail-with-body ")
    folder = live.here.folder
    environment = live.here.environment | PIP | {"PIP_TARGET": str(folder / "installed")}
    environment["PATH"] = f"{folder / 'tools'}:{environment['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_order_of_the_table_is_taken_by_a_process(live: Live):
    live.free()
    live.held = True
    rows = re.findall(
        r"^\| `([a-z/A-Z-]+)` \| (none|`\{.*?\}`.*?) \|$", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 9
    token = (live.here.folder / "data" / "ops-token").read_text().strip()
    for path, shown in rows:
        text = shown.replace(r"\|", "|").strip("`").partition("`")[0]
        bodies = ["{}"] if shown == "none" else _bodies(text)
        for body in bodies:
            for process in (live.worker,) if path == "revoke" else (live.producer, live.worker):
                request = urllib.request.Request(
                    f"{process.url()}/admin/{path.replace('NAME', 'redis')}",
                    json.dumps(json.loads(body)).encode(),
                    {"X-Admin-Token": token},
                )
                with urllib.request.urlopen(request, timeout=30) as answer:
                    assert "state" in json.load(answer), path
    live.free()


def _bodies(text: str) -> list[str]:
    """A body for each of its alternatives: `{"state": "OPEN" | "CLOSED"}`."""
    choice = re.search(r'"[A-Z]+"(?: \| "[A-Z]+")+', text)
    return [text.replace(choice[0], each) for each in choice[0].split(" | ")] if choice else [text]


def test_prometheus_and_alertmanager_start_as_the_page_says(live: Live, tmp_path: Path):
    page = ROOT / "docs" / "monitoring.md"
    wanted = [command for command in commands(page) if command.startswith("prometheus")]
    assert len(wanted) == 2
    ports = {"9690": str(free_port()), "9693": str(free_port()), "9694": str(free_port())}
    for path in (live.here.folder / "config").glob("*.yml"):
        path.write_text(_with_ports(path.read_text(), ports))
    with ExitStack() as stack:
        for command in wanted:
            words = shlex.split(_with_ports(command, ports))
            log = stack.enter_context((tmp_path / f"{words[0]}.log").open("wb"))
            words[0] = program(words[0], words[0])
            process = subprocess.Popen(words, cwd=live.here.folder, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        for port in ("9690", "9693"):
            until(lambda port=port: _asked(f"http://127.0.0.1:{ports[port]}/-/ready") is not None, f"{port} is up")

        def seen() -> bool:
            targets = json.loads(_asked(f"http://127.0.0.1:{ports['9690']}/api/v1/targets") or "{}")
            return [each["health"] for each in targets["data"]["activeTargets"]] == ["up", "up"]

        until(seen, "Prometheus reads both processes")
        managers = json.loads(_asked(f"http://127.0.0.1:{ports['9690']}/api/v1/alertmanagers") or "{}")
        assert [each["url"] for each in managers["data"]["activeAlertmanagers"]] == [
            f"http://127.0.0.1:{ports['9693']}/api/v2/alerts"
        ]


def _with_ports(text: str, ports: dict[str, str]) -> str:
    for usual, free in ports.items():
        text = text.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{free}")
    return text


def _asked(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return None


@pytest.mark.parametrize("each", EXCEPTIONS, ids=lambda each: f"{each.page} {each.text}")
def test_what_is_not_run_here_is_run_by_a_test_there_is_or_has_a_reason(each: Listed):
    found = [command for page in pages() for command in commands(page) if each.matches(page, command)]
    assert found, "no page has it any more"
    assert bool(each.run_by) != bool(each.reason)
    if each.run_by:
        path, _, name = each.run_by.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), each.run_by
    else:
        assert len(each.reason) >= LEAST_REASON


def test_a_new_block_cannot_pass_unseen(tmp_path: Path):
    page = tmp_path / "new.md"
    page.write_text(
        "A page.\n\n```bash\nnobody-knows --this \\\n  --at-all # really\nX=1\n```\n\n    curl localhost:1/new\n\n"
        "```\nsudo systemctl start something\nplain text\n```\n\nType `docker compose down` or `./scripts/new.sh`.\n"
    )
    expected = [
        *("nobody-knows --this    --at-all", "X=1", "curl localhost:1/new", "sudo systemctl start something"),
        *("docker compose down", "./scripts/new.sh"),
    ]
    assert to_run(page, EXCEPTIONS)[:4] == expected[:4]
    assert commands(page) == expected
    other = tmp_path / "other.md"
    other.write_text("```fish\nset x 1\n```\n")
    with pytest.raises(AssertionError, match="what is a block of 'fish'"):
        commands(other)
