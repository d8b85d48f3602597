"""Every command while Redis is away: what needs it says so in one sentence and changes nothing, the rest works.

Those that act on running processes are given to them in test_control.py; here nothing runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer

from email_ingestion.blobs import open_blobs
from email_ingestion.cli.backup import backup, restore_backup
from email_ingestion.cli.main import COMMANDS, app
from email_ingestion.cli.oauth2 import oauth2
from email_ingestion.ledger.store import open_ledger
from email_ingestion.stream import GROUP, Keys
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.contract.ledgers import letters, raw_of
from tests.integration.test_snapshot import fill
from tests.servers.commands import command, told, typed
from tests.servers.processes import Place, gmail_settings, place, until
from tests.servers.redis import RedisServer, running_redis

KEYS = Keys()
MONTH = 31 * 86400

# An access token may be refreshed and a lock taken; what the database holds is read from it, not from its files.
MUTABLE = re.compile(r"audit\.log|token\.json|.*\.lock|email_ingestion\.db.*")

# What reaches into Redis or goes through it.
REFUSED = (
    "start",
    "blobs collect",
    "pending list",
    "pending release --all",
    "pending to-dlq --all",
    "consumers list",
    "consumers prune",
    "consumers prune --release",
    "revoke default:gm:1001",
    "drain --output another.jsonl",
    "refill queue.jsonl",
    "dlq list",
    "dlq show 1-1",
    "dlq stats",
    "dlq export --all --output letters.jsonl",
    "dlq replay --all",
    "dlq purge --all --yes",
    "reconcile",
    "reconcile --repair",
    "backfill --since 2020-01-01",
    "import mail.mbox",
    "loadtest --emails 5",
    "pause worker --all",
    "resume worker --all",
    "degrade MINIMAL --all",
    "priority 8 --all",
    "feature off audit --all",
)

# What does without: how it ends, and what it says then.
WORKING = {
    "stop": (0, "nothing was running"),
    "status": (1, "nothing runs here"),
    "doctor": (2, "redis: "),
    "search Hello": (0, "default:gm:2"),
    "export default:gm:1 --eml -o one.eml": (0, ""),
    "database check": (0, "ok"),
    "database compact": (0, "bytes"),
    "logs --since 1h": (0, "something_failed"),
    "errors": (1, "something_failed"),
    "config show": (0, "REDIS_URL"),
    "evidence collect --out incident": (0, "incident"),
    "route test message.eml": (0, "database"),
    "gameday --list": (0, "redis-down"),
    "parse message.eml": (0, ""),
    "database downgrade --to 0.1.0": (0, ""),
}

# What acts on running processes: there are none here, and that is all it finds wrong.
FOR_PROCESSES = (
    "breaker list",
    "breaker open redis",
    "breaker close redis",
    "breaker auto redis",
    "pause producer",
    "resume worker",
    "degrade MINIMAL",
    "priority 8",
    "log-level DEBUG",
    "set batch-size 5",
    "set default batch-size",
    "feature off history",
    "feature on history",
    "route block --sender *@flood.example",
    "route unblock --sender *@flood.example",
)

# Where the others are tried without a Redis.
ELSEWHERE = {
    "redis-cli": "below: its words go past ours",
    **{
        f"alert {name}": "tests/unit/ops/test_builtin_alerts.py"
        for name in ("test", "send", "list", "ack", "silence", "unsilence")
    },
    "sandbox": "tests/sandbox/test_sandbox_state.py",
    "runbook": "tests/unit/test_runbook_command.py",
    "backup": "below, as the script of that name",
    "restore": "below, as the script of that name",
    "auth": "below, as the program src.auth.oauth2_gmail",
    "producer": "below, as the program of that name",
    "worker": "below, as the program of that name",
    **dict.fromkeys(
        ("web login-link", "tokens create", "tokens list", "tokens revoke"), "tests/integration/test_web_api.py"
    ),
    **dict.fromkeys(
        (
            *("init", "check", "reparse", "resend", "erase", "database copy"),
            *("retention run", "retention hold", "audit list", "audit verify"),
        ),
        "in tests of their own",
    ),
    **{
        f"accounts {name}": "tests/contract/test_stored_accounts.py"
        for name in ("add", "change", "list", "pause", "resume", "remove")
    },
    "quality": "tests/contract/test_mail_statistics.py",
    "memory": "tests/acceptance/test_run_time_orders.py",
    "starts": "tests/unit/ops/test_start_journal.py",
    **dict.fromkeys(("restart", "feature list", "sink pause", "sink resume"), "test_run_time_orders.py"),
    **dict.fromkeys(
        ("blobs verify", "quarantine list", "quarantine retry", "quarantine accept"), "in tests of their own"
    ),
    **{
        f"incident {name}": "tests/integration/test_incidents.py"
        for name in (
            *("open", "ack", "note", "update", "resolve", "list"),
            *("summary", "statuspage", "postmortem", "verify", "checklist"),
        )
    },
}


@dataclass
class Stranded:
    """A place with work in it, whose Redis was killed."""

    here: Place
    redis: RedisServer
    held: dict[str, Any]

    @property
    def archive(self) -> Path:
        (path,) = (self.here.folder / "backups").glob("*.tar")
        return path

    def outside(self) -> dict[str, Any]:
        """All that is to be seen of it without Redis: every file, and what the database holds."""
        files = [path for path in self.here.folder.rglob("*") if path.is_file() and not MUTABLE.match(path.name)]
        digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return digests | {"delivered": self.here.rows()}


def held(server: RedisServer) -> dict[str, Any]:
    with server.client() as client:
        return {
            "stream": client.xrange(KEYS.stream),
            "pending": client.xpending(KEYS.stream, GROUP),
            "dead": client.xrange(KEYS.dlq),
            "keys": sorted(client.keys()),
        }


@pytest.fixture(scope="module")
def stranded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranded]:
    folder = tmp_path_factory.mktemp("stranded")
    with (
        running_redis(folder / "redis") as redis,
        running_sandbox(SandboxSettings()) as sandbox,
        place(folder / "here", redis.url, **gmail_settings(sandbox, folder / "here")) as here,
    ):
        fill(redis, 3, 0, 0)
        assert told(here, "drain", "--output", "queue.jsonl")[0]["taken_out"] == 3
        fill(redis, 6, 2, 2)
        _furnish(here)
        made = Stranded(here, redis, held(redis))
        redis.kill()
        yield made


def _furnish(here: Place) -> None:
    """What an operator has lying about when Redis goes away."""
    assert command(here, backup).returncode == 0
    (here.folder / "message.eml").write_bytes(raw_of(1))
    (here.folder / "mail.mbox").write_bytes(b"From someone@example.com Thu Jan  1 00:00:00 2026\n" + raw_of(3))
    blobs = open_blobs(f"file:{here.folder}/data/blobs")
    blobs.put(b"nobody knows yet whether anything refers to this")
    for path in (here.folder / "data" / "blobs").glob("??/??/*"):
        os.utime(path, (time.time() - MONTH,) * 2)
    with closing(open_ledger(f"sqlite:///{here.folder}/data/email_ingestion.db")) as ledger:
        ledger.record(letters(1, 2))
    record = {"timestamp": datetime.now(UTC).isoformat(), "level": "ERROR", "event": "something_failed"}
    (here.folder / "logs" / "worker.log").write_text(json.dumps(record | {"component": "worker"}) + "\n")


def _one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith("."), sentence
    return sentence


@pytest.mark.parametrize("words", REFUSED)
def test_what_needs_redis_says_what_to_do_and_changes_nothing(stranded: Stranded, words: str):
    before = stranded.outside()
    sentence = _one_sentence(typed(stranded.here, *words.split()))
    assert "Redis does not answer" in sentence
    assert any(cure in sentence for cure in ("REDIS_HOST", "without --all")), sentence
    assert stranded.outside() == before


@pytest.mark.parametrize(
    "options", [(backup,), (restore_backup,), (restore_backup, "--dry-run"), (restore_backup, "--force")]
)
def test_neither_a_backup_nor_a_restore_begins(stranded: Stranded, options: tuple[Any, ...]):
    before = stranded.outside()
    function, *words = options
    named = ["--file", str(stranded.archive)] if function is restore_backup else ["--retention-days", "0"]
    sentence = _one_sentence(command(stranded.here, function, *named, *words))
    assert "REDIS_HOST" in sentence
    assert stranded.outside() == before


@pytest.mark.parametrize("words", WORKING)
def test_what_needs_no_redis_works(stranded: Stranded, words: str):
    code, said = WORKING[words]
    done = typed(stranded.here, *words.split())
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
    assert stranded.here.rows("SELECT count(*) FROM emails") == [(2,)]


@pytest.mark.parametrize(
    ("function", "words", "said"),
    [
        (backup, "--list", "email-ingestion-"),
        (restore_backup, "--list", "email-ingestion-"),
        (restore_backup, "--rehearse --file", "nothing was changed"),
        (oauth2, "--refresh", "refreshed"),
        (oauth2, "--info", "state:"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_scripts_that_need_no_redis_work(stranded: Stranded, function: Callable[..., Any], words: str, said: str):
    named = [str(stranded.archive)] if words.endswith("--file") else []
    done = command(stranded.here, function, *words.split(), *named)
    assert said in done.stdout, done.stderr
    assert done.returncode in ({0, 2} if words == "--info" else {0})  # 2: nobody has refreshed the token yet


@pytest.mark.parametrize("words", FOR_PROCESSES)
def test_an_order_without_anybody_to_obey_it_says_so(stranded: Stranded, words: str):
    assert "nothing runs here" in _one_sentence(typed(stranded.here, *words.split()))


def test_the_client_of_redis_ends_as_it_does(stranded: Stranded):
    assert typed(stranded.here, "redis-cli", "PING").returncode == 1


def test_no_command_is_left_out():
    names = set(_names())
    tried = {_name(words, names) for words in (*REFUSED, *WORKING, *FOR_PROCESSES)}
    assert tried | ELSEWHERE.keys() == names


def _names() -> Iterator[str]:
    """Every command of the table, with those of its groups."""
    table: Any = typer.main.get_command(app)
    for name in COMMANDS:
        group = getattr(table.get_command(None, name), "commands", {})
        yield from (f"{name} {each}" for each in group) if group else [name]


def _name(words: str, names: set[str]) -> str:
    """The command among `words`: one of a group is two of them."""
    return next(name for name in (" ".join(words.split()[:2]), words.split(maxsplit=1)[0]) if name in names)


def test_a_redis_that_comes_back_has_all_it_had(stranded: Stranded):
    stranded.redis.start()
    try:
        assert held(stranded.redis) == stranded.held
        assert told(stranded.here, "refill", "queue.jsonl")[0]["added"] == 3
    finally:
        stranded.redis.kill()


def test_one_pass_without_redis_fails_and_a_drain_waits_for_it(here: Place, own_redis: RedisServer):
    here.set(CB_RECOVERY_TIMEOUT=1)
    fill(own_redis, 3, 0, 0)
    own_redis.kill()
    draining = here.worker(1, "--drain")
    once = here.run("producer.py", "--once")
    assert once.returncode == 2
    assert "REDIS_HOST" in once.stderr.splitlines()[-1]
    until(lambda: "RedisConnectionError" in draining.log(), "the worker waits")
    own_redis.start()
    assert draining.ended() == 0
    assert len(here.rows()) == 3
