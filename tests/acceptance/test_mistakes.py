"""An operator's mistake is one sentence that says what to do, with exit code 64, 78 or 2, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from email_ingestion.cli.oauth2 import oauth2
from email_ingestion.cli.processes import producer, worker
from gmail_sandbox import RunningSandbox
from tests.integration.test_snapshot import fill
from tests.servers.commands import command, typed
from tests.servers.processes import ROOT, Place, Running, until
from tests.servers.redis import RedisServer


def _refused(here: Place, script: str, code: int, *words: str) -> None:
    _says(here.run(script), code, words)


def _says(result: subprocess.CompletedProcess[str], code: int, words: tuple[str, ...]) -> None:
    said = result.stderr.strip().splitlines()
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    sentence = said[-1]
    assert sentence.endswith((".", "!", "?")), sentence
    for word in words:
        assert word in sentence, sentence


@pytest.mark.parametrize(
    ("function", "settings", "words"),
    [
        (producer, {"REDIS_PORT": "abc"}, ("REDIS_PORT", "'abc'", "integer")),
        (worker, {"WORKER_BATCH_SIZE": "0"}, ("WORKER_BATCH_SIZE", "greater than or equal to 1")),
        (producer, {"REDIS_PROT": "6379"}, ("REDIS_PROT", "did you mean REDIS_PORT")),
        (producer, {"IMAP_USER": ""}, ("IMAP_USER",)),
        (producer, {"GOOGLE_TOKEN_FILE": "none.json"}, ("no token", "--auth-setup")),
        (producer, {"IMAP_AUTH": "password"}, ("IMAP_PASSWORD",)),
        (producer, {"IMAP_HOST": "mail.example.com"}, ("IMAP_TLS=false", "mail.example.com")),
        (producer, {"REDIS_PASSWORD_FILE": "/nowhere/password"}, ("REDIS_PASSWORD_FILE", "/nowhere/password")),
        (producer, {"IMAP_MAILBOX": "a,b,c,d"}, ("IMAP_MAILBOX names one to 3 mailboxes",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_setting_is_told_before_anything_begins(
    here: Place, function: Callable[..., int], settings: dict[str, str], words: tuple[str, ...]
):
    here.set(**settings)
    _says(command(here, function), 78, words)
    assert not (here.folder / "pids").exists()


@pytest.mark.parametrize(
    ("script", "settings", "words"),
    [
        ("producer.py", {"IMAP_MAILBOX": "Nowhere"}, ("'Nowhere' does not exist", "INBOX")),
        ("producer.py", {"REDIS_URL": "localhost:6379"}, ("REDIS_URL",)),
        ("producer.py", {"BLOB_URL": "ftp://somewhere"}, ("BLOB_URL",)),
        ("worker.py", {"DATABASE_URL": "mysql://somewhere/db"}, ("DATABASE_URL", "sqlite", "postgresql")),
        ("worker.py", {"DATABASE_URL": "sqlite:////proc/nowhere/mail.db"}, ("/proc/nowhere",)),
        ("worker.py", {"SINKS": "databse"}, ("databse", "database")),
        ("worker.py", {"SINKS": "database,webhook"}, ("WEBHOOK_URL",)),
        ("worker.py", {"SINKS": "python:no_such_module:handle"}, ("no_such_module", "SINKS")),
        ("worker.py", {"LOG_DIR": "/proc/nowhere"}, ("/proc/nowhere", "LOG_DIR")),
        ("worker.py", {"PID_DIR": "/proc/nowhere"}, ("/proc/nowhere", "PID_DIR")),
        ("worker.py", {"OPS_HOST": "203.0.113.7"}, ("203.0.113.7", "OPS_HOST")),
        (
            "worker.py",
            {"OPS_HOST": "0.0.0.0", "OPS_TOKEN_FILE": "/proc/nowhere/token"},
            ("OPS_TOKEN_FILE", "/proc/nowhere/token"),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_configuration_ends_with_78(here: Place, script: str, settings: dict[str, str], words: tuple[str, ...]):
    here.set(**settings)
    _refused(here, script, 78, *words)


def test_a_broken_settings_file_is_named(here: Place):
    (here.folder / "config").mkdir()
    (here.folder / "config" / "settings.toml").write_text("redis_port = [")
    _refused(here, "producer.py", 78, "config/settings.toml")


def test_an_unknown_name_in_the_dotenv_is_refused_with_its_place(here: Place):
    (here.folder / ".env").write_text("IMAP_USR=someone@example.com\n")
    _refused(here, "producer.py", 78, "IMAP_USR", ".env", "IMAP_USER")


@pytest.mark.parametrize("script", ["producer.py", "worker.py"])
def test_a_taken_port_names_its_owner(here: Place, script: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        here.set(OPS_PORT=port)
        _refused(here, script, 2, str(port), f"PID {os.getpid()}", "OPS_PORT")


@pytest.mark.parametrize("option", ["--nonsense", "--instance=none"])
def test_a_wrong_option_ends_with_64(here: Place, option: str):
    result = here.run("worker.py", option)
    assert result.returncode == 64
    assert "Traceback" not in result.stderr


UNKNOWN = {
    "reconcile --account wrok": "default",
    "reconcile --repair --account wrok": "default",
    "backfill --since 2024-01-01 --account wrok": "default",
    "import mail.mbox --account wrok": "default",
    "route test message.eml --account wrok": "default",
    "search --account wrok": "default",
    "dlq list --account wrok": "default",
    "dlq stats --account wrok": "default",
    "dlq replay --account wrok --dry-run": "default",
    "dlq export --account wrok": "default",
    "pending list --consumer wrok-1": "here-worker-1",
    "pending release --consumer wrok-1": "here-worker-1",
    "pending to-dlq --consumer wrok-1": "here-worker-1",
    "gameday wrok": "redis-down",
    "database downgrade --to wrok": "0.1.0",
    "dlq list --reason wrok": "permanent",
}


def test_a_name_that_is_not_there_ends_with_64_and_those_that_are(here: Place, own_redis: RedisServer):
    fill(own_redis, 1, 2, 1)
    for words, known in UNKNOWN.items():
        done = typed(here, *words.split())
        assert (done.returncode, done.stdout) == (64, ""), f"{words}: {done}"
        said = " ".join(re.sub("[│╭╮╰╯─]", "", done.stderr).split())
        assert known in said, words
        assert "wrok" in said or "--reason is one of" in said or "--to is a version" in said, words
    for function in (producer, oauth2):
        option = "--auth-setup" if function is producer else "--info"
        assert command(here, function, option, "--account", "wrok").returncode == 64
    assert typed(here, "dlq", "list", "--account", "default").returncode == 0


def test_an_account_that_was_configured_once_can_still_be_named(here: Place, own_redis: RedisServer):
    fill(own_redis, 0, 0, 1)
    (here.folder / "config").mkdir()
    (here.folder / "config" / "settings.toml").write_text('[[accounts]]\nname = "work"\nimap_user = "w@example.org"\n')
    assert typed(here, "dlq", "list", "--account", "default").returncode == 0
    assert typed(here, "dlq", "list", "--account", "work").returncode == 1
    assert typed(here, "dlq", "list", "--account", "home").returncode == 64


def _up(running: Running) -> Running:
    until(lambda: running.get("/health")[0] == 200, f"{running.stem} lives")
    return running


def test_a_second_copy_is_refused_and_the_first_lives_on(here: Place):
    producer, worker = _up(here.producer()), _up(here.worker())
    _refused(here, "producer.py", 2, "already running", str(producer.process.pid))
    _refused(here, "worker.py", 2, "already running", str(worker.process.pid))
    assert producer.alive
    assert worker.alive
    second = _up(here.worker(2))
    assert (here.folder / "pids" / "worker-2.pid").read_text().strip() == str(second.process.pid)
    assert second.status()["instance"].endswith("-worker-2")


def test_a_pid_file_left_by_a_kill_blocks_nothing(here: Place):
    first = _up(here.worker())
    first.kill()
    assert (here.folder / "pids" / "worker.pid").exists()
    _up(here.worker())


def _token(here: Place, option: str) -> tuple[int, str]:
    result = here.run("-m", "email_ingestion.cli.oauth2", option)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout + result.stderr


def test_the_token_command_tells_every_state_by_its_exit_code(here: Place, sandbox: RunningSandbox):
    path = Path(here.environment["GOOGLE_TOKEN_FILE"])
    assert _token(here, "--info")[0] == 2
    assert _token(here, "--refresh")[0] == 0
    code, text = _token(here, "--info")
    assert (code, "valid" in text) == (0, True)
    assert "ya29" not in text
    assert path.stat().st_mode & 0o777 == 0o600
    sandbox.arm_fault("token_503", count=None)
    assert _token(here, "--refresh")[0] == 2
    sandbox.clear_faults()
    sandbox.arm_fault("token_invalid_grant", count=None)
    assert _token(here, "--refresh")[0] == 3
    assert _token(here, "--info")[0] == 3
    path.write_text("{")
    assert _token(here, "--info")[0] == 4
    path.unlink()
    assert _token(here, "--info")[0] == 4
    assert _token(here, "--refresh")[0] == 4


def test_a_headless_consent_takes_the_pasted_address_and_the_producer_can_log_in(here: Place, sandbox: RunningSandbox):
    path = Path(here.environment["GOOGLE_TOKEN_FILE"])
    path.unlink()
    consent = subprocess.Popen(
        [sys.executable, str(ROOT / "producer.py"), "--auth-setup", "--no-browser"],
        cwd=here.folder,
        env=here.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert consent.stdin
    assert consent.stdout
    url = next(line for line in consent.stdout if line.startswith("http"))

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments):
            return None

    try:
        urllib.request.build_opener(Stay).open(url.strip())
    except urllib.error.HTTPError as answer:
        address = answer.headers["Location"]
    rest, _ = consent.communicate(address + "\n", timeout=60)
    assert consent.returncode == 0, rest
    assert path.stat().st_mode & 0o777 == 0o600
    sandbox.deliver(b"Subject: hello\r\n\r\nworld\r\n")
    assert here.run("producer.py", "--once").returncode == 0


def test_a_producer_told_to_wait_starts_without_a_consent_and_takes_the_one_that_comes(
    here: Place, sandbox: RunningSandbox
):
    token = Path(here.environment["GOOGLE_TOKEN_FILE"])
    consent = token.read_text()
    token.unlink()
    ended = here.run("producer.py")
    assert (ended.returncode, "--auth-setup" in ended.stderr) == (78, True)
    producer = here.producer("--wait-for-consent")

    def ready() -> dict:
        return json.loads(producer.get("/ready")[1])

    until(lambda: any("--auth-setup" in reason for reason in ready()["reasons"]), "it says what it waits for")
    assert producer.get("/health")[0] == 200
    assert ready()["status"] == "degraded"
    token.write_text(consent)
    until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "it has logged in")
