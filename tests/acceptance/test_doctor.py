"""The doctor names the cause: each test breaks one thing in a set-up that is otherwise sound."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest

from email_ingestion.cli.diagnostics import doctor
from email_ingestion.doctor.checks import run_checks
from email_ingestion.ledger.fingerprint import ledger_fingerprint
from email_ingestion.ledger.store import open_ledger
from email_ingestion.stream import announce_presence
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.sandbox.test_sandbox_login import certificate
from tests.servers.commands import command
from tests.servers.links import link
from tests.servers.processes import Place, token_of
from tests.servers.redis import RedisServer

GMAIL_READONLY = "https://www.googleapis.com/auth/gmail.readonly"


@dataclass
class World:
    """A sound set-up, and what it stands on."""

    here: Place
    redis: RedisServer
    sandbox: RunningSandbox

    @property
    def token(self) -> Path:
        return Path(self.here.environment["GOOGLE_TOKEN_FILE"])

    def rewrite_token(self, **changes: object) -> None:
        self.token.write_text(json.dumps(token_of(self.sandbox) | changes))


@pytest.fixture
def world(here: Place, own_redis: RedisServer, sandbox: RunningSandbox) -> World:
    return World(here, own_redis, sandbox)


def findings(here: Place, code: int) -> dict[str, dict[str, Any]]:
    done = command(here, doctor, "--json")
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert done.returncode == code, done.stdout
    assert report["status"] == ("ok", "degraded", "failed")[code]
    assert all(each["cause"] for each in report["checks"])
    assert all(each["remedy"] for each in report["checks"] if each["verdict"] != "ok"), done.stdout
    return {each["check"]: each for each in report["checks"]}


def bad(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: each["cause"] for name, each in found.items() if each["verdict"] != "ok"}


def test_a_sound_set_up_is_called_sound(world: World):
    world.sandbox.deliver(b"Subject: hello\r\n\r\nworld")
    found = findings(world.here, 0)
    assert bad(found) == {}
    assert "1 messages" in found["account default login"]["cause"]
    said = command(world.here, doctor)
    assert said.returncode == 0
    assert said.stdout.splitlines()[-1] == "ok: nothing is wrong"


def test_a_redis_of_the_sandbox_is_started_by_the_script(world: World):
    (world.here.folder / "data").mkdir(exist_ok=True)
    (world.here.folder / "data" / "sandbox.env").write_text("")
    redis_away(world)
    assert "./scripts/start.sh" in findings(world.here, 2)["redis"]["remedy"]


def no_user(world: World) -> None:
    world.here.set(IMAP_USER="")


def unknown_setting(world: World) -> None:
    world.here.set(REDIS_PROT=1)


def no_client(world: World) -> None:
    world.token.unlink()
    world.here.set(GOOGLE_CLIENT_ID="", GOOGLE_CLIENT_SECRET="")


def no_token(world: World) -> None:
    world.token.unlink()


def redirect_refused(world: World) -> None:
    world.token.unlink()
    world.sandbox.arm_fault("redirect_refused")


def unknown_client(world: World) -> None:
    world.token.unlink()
    world.here.set(GOOGLE_CLIENT_ID="somebody-else")


def wrong_secret(world: World) -> None:
    world.here.set(GOOGLE_CLIENT_SECRET="mistyped")


def testing_status(world: World) -> None:
    world.rewrite_token(consented_at=datetime.fromtimestamp(time.time() - 7 * 86400, UTC).isoformat())
    world.sandbox.arm_fault("token_invalid_grant", count=None)


def consent_gone(world: World) -> None:
    world.sandbox.arm_fault("token_invalid_grant", count=None)


def wrong_scope(world: World) -> None:
    world.rewrite_token(scopes=[GMAIL_READONLY])


def wrong_scope_for_imap(world: World) -> None:
    world.sandbox.arm_fault("wrong_scope", count=None)


def token_endpoint_away(world: World) -> None:
    world.here.set(GOOGLE_TOKEN_URI="http://127.0.0.1:1/token")


def imap_disabled(world: World) -> None:
    world.sandbox.arm_fault("imap_disabled")


def imap_switched_off(world: World) -> None:
    world.sandbox.arm_fault("imap_disabled", domain=False)


def hidden_all(world: World) -> None:
    world.sandbox.arm_fault("hidden_all")


def browser_wanted(world: World) -> None:
    world.sandbox.arm_fault("web_login_required")


def ordinary_password(world: World) -> None:
    world.here.set(IMAP_AUTH="password", IMAP_PASSWORD="secret")


def no_password(world: World) -> None:
    world.here.set(IMAP_AUTH="password")


def no_such_mailbox(world: World) -> None:
    world.here.set(IMAP_MAILBOX="Nowhere")


def imap_away(world: World) -> None:
    world.here.set(IMAP_PORT=1)


def unknown_host(world: World) -> None:
    world.here.set(IMAP_HOST="mail.invalid", IMAP_TLS="true")


def plain_port(world: World) -> None:
    world.here.set(IMAP_TLS="true")


def open_to_others(world: World) -> None:
    own = [
        each.address
        for each in chain.from_iterable(psutil.net_if_addrs().values())
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    if not own:
        pytest.skip("this machine has no address but loopback")
    configured("protected-mode", "no")(world)
    configured("bind", f"127.0.0.1 {own[0]}")(world)


def redis_away(world: World) -> None:
    world.redis.kill()


def configured(name: str, value: str) -> Callable[[World], None]:
    def act(world: World) -> None:
        with world.redis.client() as client:
            client.config_set(name, value)

    return act


def evicting(world: World) -> None:
    configured("maxmemory", "1gb")(world)
    configured("maxmemory-policy", "allkeys-lru")(world)


def misconf(world: World) -> None:
    world.redis.fail_snapshots()


def replica(world: World) -> None:
    with world.redis.client() as client:
        client.replicaof("127.0.0.1", 1)


def port_taken(world: World) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    world.here.set(OPS_PORT=taken.getsockname()[1])
    world.here.started.append(Holding(taken))  # type: ignore[arg-type]


class Holding:
    """Something the place closes at its end."""

    alive = True

    def __init__(self, taken: socket.socket) -> None:
        self.kill = taken.close


def unwritable(world: World) -> None:
    world.here.set(LOG_DIR="/proc/nowhere")


def no_database(world: World) -> None:
    (world.here.folder / "data").mkdir()
    (world.here.folder / "data" / "email_ingestion.db").write_bytes(b"not SQLite at all" * 100)


def newer_database(world: World) -> None:
    path = world.here.folder / "data" / "email_ingestion.db"
    open_ledger(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as database, database:
        for table in ("alembic_version", "schema_revision"):
            database.execute(f"UPDATE {table} SET version_num = '9999'")


def no_blobs(world: World) -> None:
    world.here.set(BLOB_URL="ftp://somewhere")


def webhook_without_address(world: World) -> None:
    world.here.set(SINKS="webhook")


def wrong_route(world: World) -> None:
    (world.here.folder / "config").mkdir(exist_ok=True)
    (world.here.folder / "config" / "settings.toml").write_text("[[routes]]\nsubjekt = 'x'\n")


def another_database(world: World) -> None:
    open_ledger(f"sqlite:///{world.here.folder}/data/email_ingestion.db").close()
    open_ledger(f"sqlite:///{world.here.folder}/elsewhere.db").close()
    mark = ledger_fingerprint(f"sqlite:///{world.here.folder}/elsewhere.db")
    record = {"component": "worker", "instance": "there-worker-1", "pid": 1, "seen": time.time(), "ledger": mark}
    announce_presence(link(world.redis.url), record)


@pytest.mark.parametrize(
    ("break_it", "check", "words", "code"),
    [
        (unknown_setting, "settings", "did you mean REDIS_PORT", 2),
        (no_user, "account default settings", "IMAP_USER is not set", 2),
        (no_client, "account default client", "GOOGLE_CLIENT_ID is not set", 2),
        (no_token, "account default token", "no token", 2),
        (redirect_refused, "account default client", "refuses our redirect", 2),
        (unknown_client, "account default client", "does not know the OAuth client", 2),
        (wrong_secret, "account default token", "its secret is wrong", 2),
        (testing_status, "account default token", "Testing status", 2),
        (consent_gone, "account default token", "the consent is gone", 2),
        (wrong_scope, "account default token", "another scope", 2),
        (wrong_scope_for_imap, "account default login", "scope or user", 2),
        (token_endpoint_away, "account default token", "cannot be reached", 2),
        (imap_disabled, "account default login", "administrator has disabled IMAP", 2),
        (imap_switched_off, "account default login", "switched off for this account", 2),
        (hidden_all, "account default login", "is hidden", 2),
        (browser_wanted, "account default login", "sign in with a browser", 2),
        (ordinary_password, "account default login", "no ordinary password", 2),
        (no_password, "account default settings", "IMAP_PASSWORD is not set", 2),
        (no_such_mailbox, "account default login", "'Nowhere' does not exist", 2),
        (imap_away, "account default server", "Connection refused", 2),
        (unknown_host, "account default server", "mail.invalid is not known", 2),
        (plain_port, "account default server", "does not speak TLS", 2),
        (redis_away, "redis", "nothing listens", 2),
        (configured("requirepass", "changed"), "redis", "wants a password", 2),
        (evicting, "redis eviction", "throw the queue away", 2),
        (configured("maxmemory-policy", "volatile-lru"), "redis eviction", "keys may vanish", 1),
        (configured("appendonly", "no"), "redis persistence", "no append-only file", 1),
        (misconf, "redis writes", "cannot save its snapshot", 2),
        (open_to_others, "redis authentication", "serves whoever reaches it, without a password", 1),
        (configured("maxmemory", "1"), "redis writes", "over its maxmemory", 2),
        (replica, "redis writes", "read-only replica", 2),
        (port_taken, "ports of producer", "is taken by PID", 2),
        (unwritable, "folder LOG_DIR", "cannot be written", 2),
        (no_database, "database", "not an SQLite database", 2),
        (newer_database, "database", "does not know", 2),
        (no_blobs, "blobs", "BLOB_URL must be", 2),
        (webhook_without_address, "sink webhook", "set WEBHOOK_URL", 2),
        (wrong_route, "routes", "did you mean subject", 2),
        (another_database, "database agreement", "there-worker-1 uses another database", 2),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_broken_set_up_is_named(world: World, break_it: Callable[[World], None], check: str, words: str, code: int):
    break_it(world)
    found = findings(world.here, code)
    assert words in bad(found).get(check, ""), bad(found)


def test_a_clock_that_is_wrong_is_named(world: World):
    for ahead, verdict, words in ((3600.0, "failed", "3600 s ahead"), (-20.0, "degraded", "20 s behind")):
        with patch.dict("os.environ", world.here.environment, clear=True):
            found = {each.check: each for each in run_checks(lambda ahead=ahead: time.time() + ahead)}
        assert found["clock against Redis"].verdict == verdict
        assert words in found["clock against Redis"].cause


def test_a_certificate_that_nobody_signed_is_named(world: World, tmp_path: Path):
    with running_sandbox(SandboxSettings(tls_certificate=certificate(tmp_path))) as secure:
        world.here.set(IMAP_TLS="true", IMAP_PORT=secure.imap_port)
        assert "is not trusted" in bad(findings(world.here, 2))["account default server"]


def test_every_account_is_looked_at(world: World):
    (world.here.folder / "config").mkdir()
    (world.here.folder / "config" / "settings.toml").write_text(
        '[[accounts]]\nname = "one"\n[[accounts]]\nname = "two"\ngoogle_token_file = "none.json"\n'
    )
    found = findings(world.here, 2)
    assert found["account one login"]["verdict"] == "ok"
    assert found["account two token"]["verdict"] == "failed"


def test_looking_changes_nothing(world: World):
    with world.redis.client() as client:
        before = client.dbsize()
        token = world.token.read_text()
        findings(world.here, 0)
        assert client.dbsize() == before
    assert not list((world.here.folder / "data").glob("*.db"))
    assert json.loads(token)["refresh_token"] == json.loads(world.token.read_text())["refresh_token"]
