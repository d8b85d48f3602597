"""docs/gmail-sandbox.md: its commands run, its example passes, its tables tell of every option, fault and member."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from gmail_sandbox import running_sandbox
from gmail_sandbox.cli import parser
from gmail_sandbox.faults import CATALOGUE
from tests.servers.missing import program
from tests.servers.ports import free_port

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "gmail-sandbox.md").read_text()
DEFAULT_PORTS = ("1143", "1180", "1181")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_its_shell_commands_do_what_it_says(tmp_path):
    program("curl", "curl")
    script = "\n".join(
        ["set -euo pipefail", "trap 'kill $! 2>/dev/null || true' EXIT", "echo ==\n".join(blocks("bash")), "wait"]
    )
    ports = [str(free_port()) for _ in DEFAULT_PORTS]
    for default, port in zip(DEFAULT_PORTS, ports, strict=True):
        script = script.replace(f":{default}", f":{port}")
    options = "--imap-port {} --oauth-port {} --control-port {}".format(*ports)
    script = script.replace("python -m gmail_sandbox", f"python -m gmail_sandbox {options}")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    started, header, delivered, faults, shown, stopped = done.stdout.split("==\n")
    assert "300 messages" in started
    assert "Message-ID: <" in header
    first, second, listed = map(json.loads, delivered.splitlines())
    assert (first["labels"], second["labels"]) == (["Work", "\\Inbox"], ["Later", "Work"])
    assert (listed["total"], len(listed["messages"])) == (302, 2)
    armed, acted, table, *cleared = map(json.loads, faults.splitlines())
    assert (armed["name"], acted["name"], cleared) == (
        "throttled",
        "session_expiry",
        [{"cleared": "throttled"}, {"cleared": "all"}],
    )
    assert table["armed"] == [armed], "session_expiry acted at once"
    sessions, stats, account = map(json.loads, shown.splitlines())
    assert (sessions, stats["logins"], stats["deliveries"]) == ([], 1, 2)
    assert "[Gmail]/Alle Nachrichten" in account["mailboxes"]
    assert stopped == ""


def test_its_example_passes(pytester):
    conftest, example = blocks("python")
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_reader=example)
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error").assert_outcomes(passed=2)


def test_it_names_every_option():
    table = [line for line in PAGE.splitlines() if line.startswith("| `--")]
    known = {option for option in parser()._option_string_actions if option.startswith("--")}
    assert set(re.findall(r"--[a-z-]+", "".join(table))) == known - {"--help"}


def test_its_table_of_faults_is_the_catalogue():
    table = [line for line in PAGE[PAGE.index("## Faults") :].splitlines() if line.startswith("| `")]
    assert table == [_row(name) for name in CATALOGUE]


def _row(name: str) -> str:
    kind = CATALOGUE[name]
    count = "until cleared" if kind.count is None else kind.count
    options = [f"`{option}`{_default(value)}" for option, value in kind.options.items()]
    return f"| `{name}` | {count} | {', '.join(options) or 'none'} | {kind.description} |"


def _default(value: object) -> str:
    return "" if value is None or value == "" else f" {json.dumps(value)}"


def test_the_members_it_names_exist():
    table = PAGE[PAGE.index("| Member |") : PAGE.index("`gmail_sandbox_session` is")]
    named = [name for line in table.splitlines() if line for name in re.findall(r"`(\w+)", line.split("|")[1])]
    with running_sandbox() as sandbox:
        assert [name for name in named if not hasattr(sandbox, name)] == []
