"""Orders through the API of a real web process: who may give them, what they do, and their lines in the audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from email_ingestion.ledger.api_tokens import Scope
from email_ingestion.ledger.store import open_ledger
from email_ingestion.ops.audit_log import read_audit
from email_ingestion.overrides import PAUSE
from email_ingestion.stream import Keys, SharedOverrides, open_link
from email_ingestion.stream.dead_letter_file import verify_file
from tests.servers.api import delivered, letter
from tests.servers.links import fill_dead_letters
from tests.servers.processes import Place, place, until
from tests.servers.redis import RedisServer

SINK = "ndjson:further.jsonl"


@pytest.fixture
def here(tmp_path: Path, redis_server: RedisServer) -> Iterator[Place]:
    """A place with a delivered message, three dead letters of one kind and two of another, and a web process."""
    fill_dead_letters(redis_server.url, "it does not fit")
    with place(tmp_path / "here", redis_server.url, SINKS=f"database,{SINK}") as it:
        delivered(it, [letter(7, b"From: a@example.org\r\nSubject: one\r\n\r\nhello")])
        it.web()
        yield it


class Orders:
    def __init__(self, here: Place, scope: Scope, account: str | None = None) -> None:
        self._url = here.started[0].url("web_url") + "/api/v1/"
        with closing(open_ledger(f"sqlite:///{here.folder}/data/email_ingestion.db")) as ledger:
            text, _ = ledger.api_tokens.create(scope, "a test", account, None)
        self._headers = {"Authorization": f"Bearer {text}"}

    def give(self, path: str, **body: Any) -> httpx.Response:
        """Post as `curl -d` does, which calls everything a form."""
        headers = self._headers | {"Content-Type": "application/x-www-form-urlencoded"}
        return httpx.post(self._url + path, content=json.dumps(body), headers=headers, timeout=60, trust_env=False)

    def done(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.give(path, **body)
        assert answer.status_code in {200, 202}, answer.text
        return dict(until(lambda: self._ended(answer.json()), "the order is done"))

    def _ended(self, order: dict[str, Any]) -> dict[str, Any] | None:
        if order.get("state") == "running":
            order = self.get(f"orders/{order['id']}").json()
        return order if order.get("state") != "running" else None

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self._url + path, headers=self._headers, timeout=60, trust_env=False)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def check_that_only_the_scope_operate_gives_orders(here: Place, redis_server: RedisServer) -> None:
    reader, of_account = Orders(here, "read"), Orders(here, "operate", "default")
    for path in ("pause", "breakers/redis", "dead-letters/purge", "parts"):
        body = {"component": "worker"} if path == "pause" else {"all": True} if "letters" in path else {}
        body = {"state": "OPEN"} if "breakers" in path else {"name": "batch-size"} if path == "parts" else body
        assert code(reader.give(path, **body)) == (403, "forbidden"), path
    assert code(of_account.give("pause", component="worker")) == (403, "forbidden")
    assert code(of_account.give("dead-letters/purge", account="work", all=True)) == (403, "forbidden")
    refused = [each for each in read_audit(here.folder / "logs") if each["result"] == "refused"]
    assert {each["action"] for each in refused} >= {"api /api/v1/pause", "api /api/v1/dead-letters/purge"}
    with redis_server.client() as client:
        assert client.xlen(Keys().dlq) == 5
        assert SharedOverrides(open_link(redis_server.url, "test")).read() == {}


def test_dead_letters_are_previewed_put_back_and_purged(here: Place, redis_server: RedisServer) -> None:
    check_that_only_the_scope_operate_gives_orders(here, redis_server)
    operator = Orders(here, "operate")
    preview = operator.give("dead-letters/replay", error_type="PermanentError", preview=True).json()
    assert (preview["matched"], preview["accounts"], len(preview["groups"])) == (3, {"default": 3}, 1)
    assert code(operator.give("dead-letters/replay")) == (400, "bad_request")
    assert code(operator.give("dead-letters/replay", al=True)) == (400, "bad_request")
    with redis_server.client() as client:
        assert client.xlen(Keys().dlq) == 5, "neither changed anything"
        order = operator.done("dead-letters/replay", fingerprint=preview["groups"][0]["fingerprint"])
        assert (order["state"], order["result"]) == ("done", "3 dead letters put back into the stream.")
        assert (client.xlen(Keys().stream), client.xlen(Keys().dlq)) == (3, 2)
        elsewhere = Orders(here, "operate", "default")
        assert code(elsewhere.get(f"orders/{order['id']}")) == (404, "not_found")
        assert elsewhere.give("dead-letters/purge", all=True, preview=True).json()["matched"] == 2
        assert "2 dead letters deleted" in operator.done("dead-letters/purge", all=True)["result"]
    (exported,) = (here.folder / "backups").glob("dlq-*.jsonl")
    assert len(verify_file(exported).letters) == 2
    records = [each for each in read_audit(here.folder / "logs") if each["action"].startswith("dlq")]
    assert {(each["via"], each["user"].split()[0]) for each in records} == {("api", "token")}
    assert [each["result"] for each in records if each["action"] == "dlq replay"] == ["started", "done"]
    assert (records[1]["matched"], records[1]["replayed"], records[1]["from"]) == (3, 3, "127.0.0.1")


def test_messages_are_sent_again_and_processes_obey(here: Place, redis_server: RedisServer) -> None:
    operator = Orders(here, "operate")
    ((identity, *_),) = here.rows()
    again = operator.give(f"emails/{identity}/resend", sink=SINK)
    assert again.json() == {"email_id": identity, "sink": SINK, "outcome": "owed"}
    assert code(operator.give(f"emails/{identity}/resend", sink="webhook")) == (409, "not_done")
    assert code(operator.give("emails/gm:1/resend", sink=SINK)) == (404, "not_found")
    assert code(operator.give("pause", component="worker")) == (409, "not_done")
    everywhere = operator.done("pause", component="producer", everywhere=True, ttl_seconds=60)
    assert "Written for all processes" in everywhere["result"]
    shared = SharedOverrides(open_link(redis_server.url, "test"))
    assert shared.read()[f"{PAUSE}:producer"].by.startswith("token ")
    operator.done("resume", component="producer", everywhere=True)
    assert shared.read() == {}
    worker = here.worker()
    until(lambda: worker.status()["status"] in {"ready", "degraded"}, "the worker is ready")
    for path, body in {
        "pause": {"component": "worker", "ttl_seconds": 60},
        "level": {"level": "MINIMAL"},
        "priority": {"min_priority": 8},
        "log-level": {"level": "DEBUG"},
        "parts": {"name": "batch-size", "value": "3"},
        "breakers/redis": {"state": "OPEN"},
    }.items():
        assert operator.done(path, **body)["result"] == "Done by worker.", path
    status = worker.status()
    control = status["control"]
    assert (control["paused"], control["level"], control["min_priority"]) == (True, "MINIMAL", 8)
    assert [(each["name"], each["value"]) for each in control["orders"]] == [("batch-size", "3")]
    assert control["pause"]["by"].startswith("token ")
    assert next(each for each in status["circuit_breakers"] if each["name"] == "redis")["forced"]
    assert code(operator.give("parts", name="sink:nothing", value="paused")) == (409, "not_done")
    assert code(operator.give("parts", name="batch-size", value="0")) == (409, "not_done")
    assert code(operator.give("breakers/nosuch", state="OPEN")) == (409, "not_done")
