"""Orders over HTTP: who may give them, what becomes of them, and that each is written down."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from pydantic import BaseModel

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import ConfigurationError, OperationFailed, RedisConnectionError
from email_ingestion.events import Administered
from email_ingestion.ops.admin import Admin, AdminActions, ops_token
from email_ingestion.ops.api_models import (
    BreakerAnswer,
    LogLevelAnswer,
    MemoryAnswer,
    OverridesAnswer,
    RefusedAnswer,
    RevokedAnswer,
)
from email_ingestion.ops.http_server import Endpoints, serve
from email_ingestion.ops.logs import LogLevel
from email_ingestion.ops.observers import Ops
from email_ingestion.overrides import OperatorOverrides
from tests.servers.links import Heard

TOKEN = "0123456789abcdef-operator"


class Office:
    """A process that takes orders, and what becomes of them."""

    def __init__(self, folder: Path, worker: Ops) -> None:
        self.heard = Heard()
        self.folder = folder
        self.control = OperatorOverrides("worker")
        self.breaker = Breaker("redis", BreakerPolicy(), (RedisConnectionError,), self.heard)
        self.actions = AdminActions(self.find, self.control, LogLevel("INFO"))
        self.admin = Admin(TOKEN, self.actions, folder / "logs", "here-worker-1", self.heard)
        self.worker = worker

    def find(self, name: str) -> Breaker:
        if name not in {"redis", "files:/srv/mail"}:
            raise OperationFailed(f"there is no circuit breaker {name!r} here")
        return self.breaker

    def serve(self, host: str = "127.0.0.1") -> Endpoints:
        return serve(self.worker.status, self.worker.metrics, host, 0, 0, admin=self.admin)

    def audited(self) -> list[dict[str, object]]:
        path = self.folder / "logs" / "audit.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def office(tmp_path: Path, worker: Ops) -> Office:
    return Office(tmp_path, worker)


@pytest.fixture
def served(office: Office) -> Iterator[Endpoints]:
    endpoints = office.serve()
    yield endpoints
    endpoints.close()


def order(served: Endpoints, path: str, body: object = None, **headers: str) -> requests.Response:
    sent = {"X-Admin-Token": TOKEN, "X-Operator": "ada", **headers}
    return requests.post(f"{served.ops_url}/admin/{path}", json=body or {}, headers=sent, timeout=10)


def test_a_breaker_is_held_open_and_left_to_itself_again(office: Office, served: Endpoints) -> None:
    answer = order(served, "breakers/redis", {"state": "OPEN", "ttl_seconds": 60})
    state = answer.json()["state"]
    assert (answer.status_code, state["state"], state["forced"]) == (200, "OPEN", True)
    assert office.breaker.state == "OPEN"
    assert order(served, "breakers/redis", {"state": "AUTO"}).json()["state"]["forced"] is False
    assert office.breaker.closed


def test_closing_a_breaker_asks_the_dependency_first(office: Office, served: Endpoints) -> None:
    def away() -> None:
        raise RedisConnectionError("Redis does not answer")

    office.actions.pings["redis"] = away
    office.breaker.force("OPEN", 60)
    answer = order(served, "breakers/redis", {"state": "CLOSED"})
    assert answer.status_code == 409
    assert answer.json()["reasons"] == ["redis does not work, so its breaker stays as it is: Redis does not answer"]
    assert office.breaker.state == "OPEN"
    office.actions.pings["redis"] = lambda: None
    assert order(served, "breakers/redis", {"state": "CLOSED"}).status_code == 200
    assert office.breaker.snapshot().forced is True


def test_pause_resume_and_levels_reach_the_process(office: Office, served: Endpoints) -> None:
    assert order(served, "pause", {"ttl_seconds": 60}).json()["state"]["paused"] is True
    assert office.control.active_pause() is not None
    assert order(served, "resume").json()["state"]["paused"] is False
    assert order(served, "degrade", {"level": "MINIMAL"}).json()["state"]["level"] == "MINIMAL"
    assert office.control.level == "MINIMAL"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("breakers/redis", {"state": "AJAR"}),
        ("breakers/redis", {"state": "OPEN", "ttl_seconds": -1}),
        ("breakers/redis", {"state": "OPEN", "ttl_seconds": 10**9}),
        ("breakers/redis", {"state": "OPEN", "tll_seconds": 5}),
        ("pause", [1]),
        ("degrade", {"level": "none"}),
    ],
)
def test_an_order_nobody_can_mean_is_refused_with_its_reason(
    office: Office, served: Endpoints, path: str, body: object
) -> None:
    answer = order(served, path, body)
    assert (answer.status_code, answer.json()["status"]) == (400, "refused")
    assert office.breaker.closed
    assert office.audited()[-1]["result"] == "refused"


def test_a_refusal_says_what_would_do(served: Endpoints) -> None:
    (reason,) = order(served, "log-level", {"level": "debug"}).json()["reasons"]
    assert "'DEBUG'" in reason
    assert "'debug'" not in reason
    answer = requests.post(
        f"{served.ops_url}/admin/pause", data=b"ttl_seconds=60", headers={"X-Admin-Token": TOKEN}, timeout=10
    )
    assert answer.json()["reasons"] == ["the body is not JSON"]


def test_a_sink_whose_name_is_a_path_has_a_breaker_like_any_other(office: Office, served: Endpoints) -> None:
    assert order(served, "breakers/files:%2Fsrv%2Fmail", {"state": "OPEN"}).status_code == 200
    assert office.breaker.snapshot().forced is True


def test_an_unknown_breaker_and_a_process_without_messages_say_so(served: Endpoints) -> None:
    assert "no circuit breaker 'imap'" in order(served, "breakers/imap", {"state": "OPEN"}).json()["reasons"][0]
    assert "ask a worker" in order(served, "revoke", {"email_id": "default:gm:1"}).json()["reasons"][0]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-Admin-Token": ""}, 401),
        ({"X-Admin-Token": "0123456789abcdef-intruder"}, 401),
        ({"X-Admin-Token": "", "Authorization": "Bearer nonsense"}, 401),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
    ],
)
def test_who_may_not_give_orders_is_refused_counted_and_written_down(
    office: Office, served: Endpoints, headers: dict[str, str], code: int
) -> None:
    answer = order(served, "pause", {"ttl_seconds": 60}, **headers)
    assert (answer.status_code, answer.json()["status"]) == (code, "refused")
    assert office.control.active_pause() is None
    (event,) = office.heard.of(Administered)
    assert (event.action, event.outcome) == ("pause", "refused")
    (line,) = office.audited()
    assert {"action": "admin pause", "result": "refused", "user": "ada", "from": "127.0.0.1"}.items() <= line.items()
    office.worker.metrics(event)
    counted = 'email_ingestion_admin_actions_total{action="pause",result="refused"} 1.0'
    assert counted in office.worker.metrics.render().decode()
    assert "intruder" not in json.dumps(line)


def test_the_token_may_come_as_a_bearer_token(served: Endpoints) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.post(f"{served.ops_url}/admin/resume", headers=headers, timeout=10).status_code == 200


def test_what_was_done_is_written_down_with_who_and_what(office: Office, served: Endpoints) -> None:
    order(served, "pause", {"ttl_seconds": 60})
    (line,) = office.audited()
    assert {"user": "ada", "action": "admin pause", "ttl_seconds": 60, "result": "done"}.items() <= line.items()
    assert stat.S_IMODE((office.folder / "logs" / "audit.log").stat().st_mode) == 0o600


def test_an_operator_can_act_when_the_audit_log_cannot_be_written(office: Office, served: Endpoints) -> None:
    (office.folder / "logs").write_text("in the way")
    assert order(served, "pause", {"ttl_seconds": 60}).status_code == 200
    assert office.control.active_pause() is not None


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "", None])
def test_a_body_is_json_whatever_its_content_type_says(office: Office, served: Endpoints, kind: str | None) -> None:
    headers = {"X-Admin-Token": TOKEN} | ({} if kind is None else {"Content-Type": kind})
    answer = requests.post(f"{served.ops_url}/admin/pause", data=b'{"ttl_seconds": 60}', headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["state"]["paused"]) == (200, True)
    assert office.control.active_pause() is not None


@pytest.mark.parametrize(
    ("path", "body", "state"),
    [
        ("breakers/redis", {"state": "OPEN"}, BreakerAnswer),
        ("pause", {"ttl_seconds": 60}, OverridesAnswer),
        ("resume", {}, OverridesAnswer),
        ("degrade", {"level": "MINIMAL"}, OverridesAnswer),
        ("priority", {"min_priority": 5}, OverridesAnswer),
        ("order", {"name": "batch-size", "value": "7", "ttl_seconds": 60}, OverridesAnswer),
        ("memory", {"seconds": 0.1, "top": 3}, MemoryAnswer),
        ("log-level", {"level": "INFO"}, LogLevelAnswer),
        ("revoke", {"email_id": "default:gm:1"}, RevokedAnswer),
    ],
)
def test_an_order_is_answered_as_documented(
    office: Office, served: Endpoints, path: str, body: object, state: type[BaseModel]
) -> None:
    office.actions.revoke_message = lambda email_id: email_id != ""
    answer = order(served, path, body)
    assert answer.status_code == 200
    assert list(answer.json()) == ["status", "state"]
    assert state.model_validate(answer.json()["state"]).model_dump() == answer.json()["state"]
    assert list(answer.json()["state"]) == list(state.model_fields)
    refusal = order(served, path, body, **{"X-Admin-Token": ""})
    assert RefusedAnswer.model_validate(refusal.json()).model_dump() == refusal.json()


def test_strangers_do_not_fill_the_audit_log(office: Office, served: Endpoints) -> None:
    for _ in range(30):
        assert order(served, "pause", {"ttl_seconds": 60}, **{"X-Admin-Token": "guessed-0123456789"}).status_code == 401
    assert len(office.audited()) < 15
    assert len(office.heard.of(Administered)) == 30


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"ttl_seconds": 60' + b" " * 65_536 + b"}", b"[" * 60_000, b'{"ttl_seconds": ' + b"9" * 5_000 + b"}"),
        *(b'{"ttl_seconds": 1e999}', b'{"ttl_seconds": NaN}', b"\xff\xfe", b"{}{}", b"null"),
    ],
)
def test_a_body_made_to_hurt_is_refused(office: Office, served: Endpoints, body: bytes) -> None:
    headers = {"X-Admin-Token": TOKEN}
    answer = requests.post(f"{served.ops_url}/admin/pause", data=body, headers=headers, timeout=10)
    assert answer.status_code in {400, 413}
    assert office.control.active_pause() is None


def test_a_large_body_is_refused_before_it_is_sent(served: Endpoints) -> None:
    head = (
        f"POST /admin/pause HTTP/1.1\r\nHost: localhost\r\nX-Admin-Token: {TOKEN}\r\nContent-Length: 99999999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.ops_port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_another_machine_needs_the_token_too(office: Office) -> None:
    endpoints = office.serve("0.0.0.0")
    try:
        assert order(endpoints, "resume", **{"X-Admin-Token": ""}).status_code == 401
        assert order(endpoints, "resume", Host="mail-1:8080").status_code == 200
        assert order(endpoints, "resume", Host="mail-1.lan").status_code == 403
        assert order(endpoints, "resume", Origin="http://mail-1").status_code == 403
    finally:
        endpoints.close()


def test_the_token_is_made_once_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "data" / "ops-token"
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(ops_token(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert len(made[0]) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["ops-token"]


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff\xfe" * 20])
def test_a_token_that_keeps_nobody_out_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="OPS_TOKEN_FILE"):
        ops_token(path)


def test_where_no_token_can_be_made_nothing_is_served(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(ConfigurationError, match="OPS_TOKEN_FILE: cannot read or make"):
        ops_token(tmp_path / "data" / "ops-token")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch-size", "0"),
        ("batch-size", "many"),
        ("batch-size", "²"),
        ("feature:everything", "off"),
        ("sink:", "paused"),
        ("block:*", "blocked"),
        ("block:?@*", "blocked"),
        ("pause", "x"),
        ("level", "MAINTENANCE"),
    ],
)
def test_an_order_about_what_there_is_not_changes_nothing(
    office: Office, served: Endpoints, name: str, value: str
) -> None:
    answer = order(served, "order", {"name": name, "value": value})
    assert (answer.status_code, office.control.orders()) == (409, [])
    assert office.audited()[-1]["result"] == "refused"
