"""Every command of README and docs does on a live system what a reader expects: it is understood, and it works.

The runbooks have drills of their own, and `docs/gmail-sandbox.md` a test beside the sandbox.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.cli.main import COMMANDS
from tests.servers.commands import typed
from tests.servers.pair import Pair, running_pair
from tests.servers.processes import ROOT, until
from tests.unit.test_docs import PAGES, code, ids

MAIL = b"From: a@example.org\r\nSubject: receipt %d\r\nMessage-ID: <%d@example.org>\r\n\r\ninvoice 2026\r\n"
COMMAND = re.compile(r"(?:\.venv/bin/)?(email-ingestion (?!-)[a-z]|curl |python (?:scripts/|-m src\.))")
SHORT = re.compile(rf"({'|'.join(COMMANDS)}) [^/]")  # how a table of docs/operating.md names them
TOLD_ELSEWHERE = ("gmail-sandbox.md",)  # tests/sandbox
# What is not run here, and where it is.
ELSEWHERE = {
    r"email-ingestion (start|stop)\b": "tests/acceptance/test_start_stop.py",
    r"email-ingestion logs .*--follow": "tests/acceptance/test_rescue.py",
    r"email-ingestion gameday (?!--list)": "tests/acceptance/test_gameday.py",
    r"email-ingestion loadtest": "tests/acceptance/test_loadtest.py",
    r"email-ingestion (import|drain|refill)\b": "tests/acceptance/test_import.py, test_rescue.py",
    r"email-ingestion alert test": "tests/unit/ops/test_builtin_alerts.py",
    r"email-ingestion sandbox": "tests/sandbox",
    r"python scripts/(backup|restore)\.py": "tests/acceptance/test_backup.py",
    r"python scripts/(structure|cli_reference)\.py": "tests/unit/test_structure.py, test_docs.py",
    r"email-ingestion database downgrade": "tests/acceptance/test_rollback.py",
    r"email-ingestion (parse|redis-cli|export|search|route test|dlq (show|replay)|pending release)$": "only named",
}
EXAMPLES = {
    "default:gm:1790000000000000001": "{id}",
    "17900000": "{id}",
    " ID…": " 1767225600000-0",
    " ID": " {id}",
    " EMAIL_ID": " {id}",
    " WORD…": " PING",
    " DIR": " evidence",
    "[--release]": "--release",
    "--account work": "--account default",
    "invoice.eml": "message.eml",
    "NAME": "redis",
}
ANSWERS = {"email-ingestion doctor": {0, 1, 2}}


class Live(Pair):
    def email_id(self) -> str:
        return str(self.here.rows("SELECT email_id FROM emails")[0][0])

    def free(self) -> None:
        """End what the orders of another page hold."""
        for words in ("resume {} --all", "resume {}"):
            for kind in ("producer", "worker"):
                typed(self.here, *words.format(kind).split())
        for words in ("degrade NORMAL --all", "degrade NORMAL", "priority 0 --all", "priority 0", "breaker auto imap"):
            typed(self.here, *words.split())


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running_pair(Live, tmp_path_factory.mktemp("documented")) as made:
        for number in range(3):
            made.sandbox.deliver(MAIL % (number, number))
        until(lambda: len(made.here.rows("SELECT email_id FROM emails")) == 3, "mail is delivered")
        folder = made.here.folder
        (folder / "message.eml").write_bytes(MAIL % (9, 9))
        (folder / "data").mkdir(exist_ok=True)
        tools = folder / "tools"
        tools.mkdir()
        (tools / "email-ingestion").symlink_to(Path(sys.executable).with_name("email-ingestion"))
        (tools / "python").symlink_to(sys.executable)
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        yield made


def documented(path: Path) -> list[str]:
    found = []
    for text in code(path):
        for line in text.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#.*", "", line.strip())
            if path.name == "operating.md" and SHORT.match(command):
                command = f"email-ingestion {command}"
            if COMMAND.match(command) and not any(re.search(each, command) for each in ELSEWHERE):
                found.append(command.removeprefix(".venv/bin/"))
    return list(dict.fromkeys(found))


WITH_COMMANDS = [
    path for path in PAGES if "runbooks" not in path.parts and path.name not in TOLD_ELSEWHERE and documented(path)
]


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=ids(WITH_COMMANDS))
def test_every_command_of_a_page_works_as_written(live: Live, path: Path):
    live.free()
    refused = []
    for command in documented(path):
        done = run(live, command)
        if done.returncode not in ANSWERS.get(command, {0, 1}) or "Traceback" in done.stderr:
            refused.append(f"{command}: {done.returncode} {done.stderr}{done.stdout[:300]}")
    assert not refused, "\n".join(refused)


def run(live: Live, command: str) -> subprocess.CompletedProcess[str]:
    for example, real in EXAMPLES.items():
        command = command.replace(example, real.format(id=live.email_id()))
    if command.startswith("email-ingestion ") and not re.search(r"[|>]|^email-ingestion export", command):
        return typed(live.here, *shlex.split(command)[1:])
    for port, url in {
        "8080": live.producer.url(),
        "8081": live.worker.url(),
        "9090": live.producer.url("metrics_url"),
        "9091": live.worker.url("metrics_url"),
    }.items():
        command = command.replace(f"localhost:{port}", url.removeprefix("http://"))
    command = command.replace("curl ", "curl -sS --fail-with-body ")
    environment = live.here.environment | {"PATH": f"{live.here.folder / 'tools'}:{live.here.environment['PATH']}"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=live.here.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
