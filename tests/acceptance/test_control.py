"""Commands that act on the live processes: their effect seen from outside, with Redis there and with Redis away."""

from __future__ import annotations

import io
import json
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.servers.commands import at_terminal, told, typed
from tests.servers.pair import Pair, running_pair
from tests.servers.processes import Running, place, until


class Live(Pair):
    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return typed(self.here, *words)

    def asked(self, *words: str) -> list[dict[str, Any]]:
        return told(self.here, *words)

    def breaker(self, process: Running, name: str) -> dict[str, Any]:
        return next(each for each in process.status()["circuit_breakers"] if each["name"] == name)

    def deliver(self, subject: str, head: str = "") -> None:
        head += f"Subject: {subject}\r\nMessage-ID: <{subject}@example.org>\r\n"
        self.sandbox.deliver(f"{head}\r\nhello\r\n".encode())

    def stored(self, subject: str) -> bool:
        return (subject,) in self.here.rows("SELECT subject FROM emails")

    def waiting(self) -> int | None:
        return self.worker.status()["stream"]["waiting"]

    def queued(self) -> int | None:
        """Those included that were given back."""
        return self.worker.status()["stream"]["depth"]

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.here.folder / "logs" / "audit.log").read_text().splitlines()]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    settings = {"CB_RECOVERY_TIMEOUT": 1, "SINKS": "database,ndjson:further.jsonl"}
    with running_pair(Live, tmp_path_factory.mktemp("control"), **settings) as made:
        yield made


@pytest.fixture
def live(system: Live) -> Iterator[Live]:
    """The system, in order again after each test."""
    yield system
    system.settled()


@pytest.fixture
def cut_off(live: Live) -> Iterator[Live]:
    """The system without its Redis."""
    live.redis.kill()
    for process in (live.producer, live.worker):
        until(lambda process=process: process.get("/ready")[0] == 503, "the outage is noticed")
    yield live
    live.redis.start()


def test_a_breaker_held_open_is_shown_and_returns_by_itself(live: Live) -> None:
    (row,) = live.asked("breaker", "open", "imap", "--ttl", "3s")
    assert (row["process"], row["state"], row["forced"]) == ("producer", "OPEN", True)
    shown = live.breaker(live.producer, "imap")
    assert (shown["state"], shown["forced"]) == ("OPEN", True)
    live.deliver("held back")
    until(lambda: not live.breaker(live.producer, "imap")["forced"], "the hold is over")
    until(lambda: live.stored("held back"), "mail flows again")
    assert live.breaker(live.producer, "imap")["state"] == "CLOSED"


def test_a_breaker_held_open_for_long_lets_mail_through_as_soon_as_it_is_left_to_itself(live: Live) -> None:
    assert len(live.asked("breaker", "open", "redis", "--ttl", "1h")) == 2
    until(lambda: live.worker.get("/ready")[0] == 503, "the worker does not use Redis")
    live.deliver("after auto")
    rows = live.asked("breaker", "auto", "redis")
    assert [row["forced"] for row in rows] == [False, False]
    until(lambda: live.stored("after auto"), "mail flows again")


def test_closing_a_breaker_is_refused_while_its_dependency_is_away(cut_off: Live) -> None:
    refused = cut_off.command("breaker", "close", "redis")
    assert refused.returncode == 2
    assert "worker refuses: redis does not work, so its breaker stays as it is: Redis does not answer" in refused.stderr
    assert cut_off.breaker(cut_off.worker, "redis")["forced"] is False
    assert cut_off.audit()[-1]["result"] == "refused"


def test_breakers_are_listed_and_closed_where_the_dependency_works(live: Live) -> None:
    listed = live.asked("breaker", "list")
    assert {(row["process"], row["name"]) for row in listed} == {
        ("producer", "redis"),
        ("producer", "imap"),
        ("producer", "oauth2"),
        ("worker", "redis"),
        ("worker", "database"),
        ("worker", "ndjson:further.jsonl"),
    }
    for name in ("imap", "redis"):
        rows = live.asked("breaker", "close", name, "--ttl", "5s")
        assert {(row["state"], row["forced"]) for row in rows} == {("CLOSED", True)}
    unknown = live.command("breaker", "open", "postgres")
    assert (unknown.returncode, "no process here has a circuit breaker" in unknown.stderr) == (64, True)
    assert live.command("breaker", "open", "imap", "--ttl", "soon").returncode == 64


def test_an_order_finds_processes_whose_pid_files_were_deleted(live: Live) -> None:
    pids = live.here.folder / "pids"
    pids.rename(pids.with_name("elsewhere"))
    try:
        (row,) = live.asked("pause", "worker", "--ttl", "1h")
        assert (row["process"], row["paused"]) == ("worker", True)
        (row,) = live.asked("resume", "worker")
        assert row["paused"] is False
    finally:
        pids.with_name("elsewhere").rename(pids)


def test_a_paused_producer_fetches_nothing_and_goes_on_when_told(live: Live) -> None:
    (row,) = live.asked("pause", "producer", "--ttl", "1h")
    assert (row["paused"], row["scope"]) == (True, "process")
    code, body = live.producer.get("/ready")
    assert (code, json.loads(body)["status"]) == (200, "degraded")
    assert any(reason.startswith("paused: ") for reason in json.loads(body)["reasons"])
    live.deliver("while paused")
    until(lambda: "fetching held, paused by an operator" in live.producer.get("/ready")[1], "the watcher holds")
    assert live.producer.get("/health")[0] == 200
    assert not live.stored("while paused")
    assert live.producer.metric("email_ingestion_paused") == 1
    assert live.asked("resume", "producer")[0]["paused"] is False
    until(lambda: live.stored("while paused"), "mail flows again")


def test_a_paused_worker_takes_nothing_and_goes_on_by_itself(live: Live) -> None:
    live.asked("pause", "worker", "--ttl", "4s")
    live.deliver("queued")
    until(lambda: live.waiting() == 1, "the message waits in the stream")
    assert live.worker.get("/ready")[0] == 200
    until(lambda: live.stored("queued"), "the pause is over")
    assert live.worker.status()["control"]["paused"] is False


def test_local_orders_need_no_redis(cut_off: Live) -> None:
    assert cut_off.asked("pause", "worker")[0]["paused"] is True
    assert cut_off.asked("resume", "worker")[0]["paused"] is False
    assert {row["level"] for row in cut_off.asked("degrade", "MINIMAL", "--ttl", "5m")} == {"MINIMAL"}
    assert cut_off.worker.metric("email_ingestion_degradation_level") == 2
    assert {row["level"] for row in cut_off.asked("degrade", "NORMAL")} == {"NORMAL"}
    assert {row["min_priority"] for row in cut_off.asked("priority", "8")} == {8}
    assert cut_off.worker.metric("email_ingestion_min_priority") == 8
    assert {row["min_priority"] for row in cut_off.asked("priority", "0")} == {0}
    everywhere = cut_off.command("pause", "worker", "--all")
    assert everywhere.returncode == 2
    assert "without --all the processes of this machine are told directly" in everywhere.stderr


def test_a_watch_shows_every_change_until_it_is_interrupted(live: Live) -> None:
    watch, screen = at_terminal(live.here, "status", "--watch")
    shown = io.FileIO(screen)

    def read_up_to(words: bytes) -> None:
        seen = b""
        while words not in seen:
            seen += shown.read(4096)

    read_up_to(b"worker")
    live.asked("pause", "worker")
    read_up_to(b"paused")
    live.asked("resume", "worker")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(60) == 0
    shown.close()


def test_what_runs_is_seen_and_its_breakers_obey_without_redis(cut_off: Live) -> None:
    shown = cut_off.command("status", "--json")
    states = [(each["component"], each["status"]) for each in json.loads(shown.stdout)]
    assert (shown.returncode, states) == (1, [("producer", "not_ready"), ("worker", "not_ready")])
    listed = cut_off.command("breaker", "list", "--json")
    assert {row["process"] for row in json.loads(listed.stdout)} == {"producer", "worker"}
    (held,) = cut_off.asked("breaker", "open", "imap", "--ttl", "5m")
    assert (held["state"], held["forced"]) == ("OPEN", True)
    assert cut_off.breaker(cut_off.producer, "imap")["forced"] is True
    assert [row["forced"] for row in cut_off.asked("breaker", "auto", "imap")] == [False]
    assert cut_off.breaker(cut_off.producer, "imap")["forced"] is False
    assert {row["level"] for row in cut_off.asked("log-level", "DEBUG", "--ttl", "5m")} == {"DEBUG"}
    assert {row["level"] for row in cut_off.asked("log-level", "INFO")} == {"INFO"}
    revoked = cut_off.command("revoke", "default:gm:1")
    assert (revoked.returncode, "REDIS_HOST" in revoked.stderr) == (2, True)


def test_orders_for_all_reach_every_process_and_those_that_start_later(live: Live) -> None:
    rows = live.asked("pause", "worker", "--all", "--ttl", "1h")
    assert [row["paused"] for row in rows] == [True]
    assert live.producer.status()["control"]["paused"] is False
    second = live.here.worker(2)
    until(lambda: second.status()["control"]["paused"], "a new process obeys too")
    mixed = live.command("resume", "worker")
    assert mixed.returncode == 2
    assert "another order holds" in mixed.stderr
    assert [row["paused"] for row in live.asked("resume", "worker", "--all")] == [False, False]
    assert second.status()["control"]["paused"] is False
    second.terminate()


def test_maintenance_pauses_everything_and_ends_by_itself(live: Live) -> None:
    rows = live.asked("degrade", "MAINTENANCE", "--ttl", "4s", "--all")
    assert {(row["paused"], row["level"]) for row in rows} == {(True, "MAINTENANCE")}
    status = live.producer.status()
    assert (status["control"]["level"], status["status"]) == ("MAINTENANCE", "degraded")
    assert live.producer.metric("email_ingestion_degradation_level") == 3
    until(lambda: live.producer.status()["control"]["level"] == "NORMAL", "it is over")


def test_in_an_incident_urgent_mail_alone_is_taken_and_the_rest_waits_untouched(live: Live) -> None:
    assert [row["min_priority"] for row in live.asked("priority", "7", "--all", "--ttl", "1h")] == [7]
    assert live.worker.status()["control"]["min_priority"] == 7
    assert "only mail of priority 7" in live.worker.get("/ready")[1]
    live.deliver("can wait")
    live.deliver("cannot wait", "Importance: high\r\n")
    until(lambda: live.stored("cannot wait"), "what is urgent is delivered")
    until(lambda: live.queued() == 1, "the rest waits in the stream")
    assert not live.stored("can wait")
    live.asked("pause", "worker")
    live.deliver("nor can this", "Importance: high\r\n")
    assert live.asked("priority", "0", "--all")[0]["min_priority"] == 0
    until(lambda: live.queued() == 2, "it is queued")
    done = live.here.run("worker.py", "--instance", "2", "--drain", "--min-priority", "7")
    assert (done.returncode, live.stored("nor can this"), live.stored("can wait")) == (0, True, False), done.stderr
    live.asked("resume", "worker")
    until(lambda: live.stored("can wait"), "nothing is dropped")


def test_at_minimal_the_database_alone_is_served_and_the_others_get_theirs_later(live: Live) -> None:
    further = live.here.folder / "further.jsonl"
    live.asked("degrade", "MINIMAL", "--ttl", "1h")
    live.deliver("for the database")
    until(lambda: live.stored("for the database"), "the database has it")
    live.deliver("and another")
    until(lambda: live.stored("and another"), "the database has that too")
    assert "for the database" not in (further.read_text() if further.exists() else "")
    assert json.loads(live.worker.get("/ready")[1])["status"] == "degraded"
    live.asked("degrade", "NORMAL")
    until(lambda: "for the database" in further.read_text(), "the other sink gets what it is owed")


def test_the_log_can_be_made_to_tell_more_for_a_while(live: Live) -> None:
    assert {row["level"] for row in live.asked("log-level", "DEBUG", "--ttl", "1m")} == {"DEBUG"}
    live.deliver("told in detail")
    until(lambda: "email_delivered" in live.worker.log(), "the worker tells of each message")
    assert {row["level"] for row in live.asked("log-level", "INFO")} == {"INFO"}


def test_who_may_not_give_orders_is_refused_counted_and_logged(live: Live) -> None:
    token_file = live.here.folder / "data" / "ops-token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    token = token_file.read_text().strip()
    url = f"{live.worker.url()}/admin/pause"
    before = len(live.audit()) if (live.here.folder / "logs" / "audit.log").exists() else 0
    for headers, code in (
        ({}, 401),
        ({"X-Admin-Token": "wrong" * 8}, 401),
        ({"X-Admin-Token": token, "Origin": "https://evil.example"}, 403),
        ({"X-Admin-Token": token, "Host": "rebound.example"}, 403),
    ):
        assert requests.post(url, json={}, headers=headers, timeout=10).status_code == code
    assert live.worker.status()["control"]["paused"] is False
    counted = 'email_ingestion_admin_actions_total{action="pause",result="refused"}'
    (line,) = [line for line in live.worker.get("/metrics")[1].splitlines() if line.startswith(counted)]
    assert float(line.rsplit(" ", 1)[1]) >= 4
    recorded = [line["result"] for line in live.audit()[before:]]  # of strangers a few a minute, so that no log fills
    assert set(recorded) == {"refused"}
    assert 2 <= len(recorded) <= 4
    assert '"event": "admin_action", ' in live.worker.log()
    assert token not in live.worker.log() + json.dumps(live.audit())


def test_without_running_processes_commands_say_so(tmp_path: Path) -> None:
    with place(tmp_path / "empty", "redis://127.0.0.1:1/0") as nowhere:
        done = typed(nowhere, "pause", "worker")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("no process of this machine is a worker; nothing runs here")
