"""Orders in a browser to a real worker, with who gave them; doctor's findings, backups and the audit log."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from email_ingestion.ops.audit_log import read_audit
from email_ingestion.overrides import LEVEL
from email_ingestion.settings import Settings
from email_ingestion.stream import SharedOverrides, open_link
from tests.servers.processes import Running, place, until
from tests.servers.redis import RedisServer
from tests.servers.web import SECONDS, Visitor, running_pages, web_settings

SINK = "ndjson:further.jsonl"


def _finished(visitor: Visitor, page: httpx.Response) -> str:
    deadline = time.monotonic() + SECONDS
    while 'http-equiv="refresh"' in page.text:
        assert time.monotonic() < deadline, "the order does not end"
        time.sleep(0.05)
        page = visitor.get(page.url)
    return page.text


def _with(page: httpx.Response, text: str) -> httpx.Response | None:
    return page if text in page.text else None


def _settings(folder: Path, redis_url: str) -> Settings:
    """Return settings of processes that run in `folder` with their defaults."""
    files = {"ops_token_file": folder / "data/ops-token", "log_dir": folder / "logs", "pid_dir": folder / "pids"}
    for name in ("log_dir", "pid_dir"):
        files[name].mkdir(parents=True, exist_ok=True)
    database_url = f"sqlite:///{folder}/data/email_ingestion.db"
    return web_settings(folder, redis_url, database_url=database_url, sinks=("database", SINK), **files)


def test_orders_reach_a_worker_and_its_death_is_seen(tmp_path: Path, own_redis: RedisServer) -> None:
    with place(tmp_path / "here", own_redis.url, SINKS=f"database,{SINK}") as here:
        worker = here.worker()
        until(lambda: worker.status()["status"] in {"ready", "degraded"}, "the worker is ready")
        settings = _settings(here.folder, own_redis.url)
        with running_pages(settings) as address, Visitor(address) as visitor:
            visitor.enter(settings, user="grace")
            page = visitor.get("/operate")
            done = _finished(visitor, visitor.submit(page, "/operate/pause", component="worker", ttl="5m"))
            assert "Done by worker." in done
            control = worker.status()["control"]
            assert control["paused"]
            assert control["pause"]["by"] == "grace"
            until(lambda: "paused</span> by grace" in visitor.get("/operate").text, "the page shows the pause")
            order = {"name": "redis", "state": "OPEN", "ttl": "5m"}
            done = _finished(visitor, visitor.submit(page, "/operate/breaker", **order))
            assert "Done by worker." in done
            assert next(each for each in worker.status()["circuit_breakers"] if each["name"] == "redis")["forced"]
            text = "circuit breaker redis of worker is OPEN, held by an operator"
            until(lambda: text in visitor.get("/").text, "the overview says so")
            refused = _finished(visitor, visitor.submit(page, "/operate/pause", component="producer"))
            assert "no process of this machine is a producer" in refused
            _orders_about_parts(visitor, page, worker)
            records = [each for each in read_audit(settings.log_dir) if each["action"].startswith("admin")]
            assert {each["user"] for each in records} == {"grace"}
            assert [each["action"] for each in records] == ["admin pause", "admin breaker", *["admin order"] * 4]
            assert (records[2]["name"], records[2]["value"], records[2]["ttl_seconds"]) == ("batch-size", "7", 900)
            assert here.run("scripts/backup.py").returncode == 0
            page = until(lambda: _with(visitor.get("/operate"), 'action="/operate/rehearse"'), "the backup is listed")
            assert "restores: equal to its manifest" in _finished(visitor, visitor.submit(page, "/operate/rehearse"))
            worker.kill()
            until(lambda: "is dead" in visitor.get("/").text, "it is missed")
            page = visitor.get("/").text
            assert "0 of 1 alive" in page
            assert "#26-worker-crash-or-oom" in page


def _orders_about_parts(visitor: Visitor, page: httpx.Response, worker: Running) -> None:
    def give(path: str, **fields: str) -> str:
        return _finished(visitor, visitor.submit(page, f"/operate/{path}", **fields))

    assert "Done by worker." in give("batch-size", size="7", ttl="15m")
    assert "Done by worker." in give("sink", name=SINK, ttl="1h")
    assert "Done by worker." in give("block", sender=" *@Flood.example ", ttl="4h")
    held = {each["name"]: (each["value"], each["by"]) for each in worker.status()["control"]["orders"]}
    wanted = {"batch-size": "7", f"sink:{SINK}": "paused", "block:*@flood.example": "blocked"}
    assert held == {name: (value, "grace") for name, value in wanted.items()}
    until(lambda: "batch-size=7 by grace" in visitor.get("/operate").text, "the page shows them")
    assert "Done by worker." in give("sink", name=SINK, undo="yes")
    assert f"sink:{SINK}" not in {each["name"] for each in worker.status()["control"]["orders"]}
    assert "no process of this machine is a producer" in give("feature", name="history", ttl="1h")
    assert "the pattern must say who is meant" in give("block", sender="*")
    assert "there is no sink" in give("sink", name="webhook")


def test_an_order_for_all_goes_through_redis_with_who_gave_it(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = web_settings(tmp_path, redis_server.url)
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings, user="grace")
        page = visitor.get("/operate")
        sent = visitor.submit(page, "/operate/level", level="MINIMAL", ttl="15m", everywhere="yes")
        assert "Written for all processes" in _finished(visitor, sent)
        override = SharedOverrides(open_link(redis_server.url, "test")).read()[LEVEL]
        assert (override.value, override.by) == ("MINIMAL", "grace")
        off = visitor.submit(page, "/operate/feature", name="history", ttl="4h", everywhere="yes")
        assert "Written for all processes" in _finished(visitor, off)
        held = SharedOverrides(open_link(redis_server.url, "test"))
        assert (held.read()["feature:history"].value, held.read()["feature:history"].by) == ("off", "grace")
        on = visitor.submit(page, "/operate/feature", name="history", everywhere="yes", undo="yes")
        assert "Written for all processes" in _finished(visitor, on)
        assert held.read().keys() == {LEVEL}
        record = next(each for each in read_audit(settings.log_dir) if each["result"] == "done" and "order" in each)
        wanted = {"user": "grace", "action": "fleet order", "value": "MINIMAL", "via": "web", "result": "done"}
        assert wanted.items() <= record.items()
        audit = visitor.get("/audit", params={"action": "fleet"}).text
        assert "order=level" in audit
        assert "web login" not in audit


def test_nothing_is_well_that_was_not_looked_at(tmp_path: Path) -> None:
    settings = web_settings(tmp_path)
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        page = visitor.get("/operate")
        assert "Not known: no process of this machine left a PID file here." in page.text
        assert "Not known: nobody has let it look" in page.text
        assert "There is none in the folder of BACKUP_DIR" in page.text
        settings.backup_dir.rmdir()
        assert "no process of this machine" in _finished(
            visitor, visitor.submit(page, "/operate/resume", component="worker")
        )
        refused = _finished(visitor, visitor.post("/operate/rehearse", data=_form(page.text, "../../etc/passwd")))
        assert 'class="problem"' in refused
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        assert "Not known: cannot read" in visitor.get("/operate").text, "a folder that cannot be read is not empty"


def _form(page: str, file: str) -> dict[str, str]:
    return {"csrf": page.split('name="csrf" value="')[1].split('"', maxsplit=1)[0], "file": file}


def test_a_reader_sees_orders_and_gives_none(tmp_path: Path) -> None:
    settings = web_settings(tmp_path)
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings, "reader")
        page = visitor.get("/operate")
        assert 'action="/operate/' not in page.text
        for path in ("pause", "resume", "level", "priority", "log-level", "breaker", "doctor", "rehearse", "sink"):
            assert visitor.post(f"/operate/{path}", data=_form(page.text, "x")).status_code == 403
