"""The commands for a bad day, against live processes: nothing pending is dropped, and what they tell is true."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from email_ingestion.stream import GROUP, Keys
from tests.servers.commands import told, typed
from tests.servers.pair import Pair, running_pair
from tests.servers.poison import poisoned_python
from tests.servers.processes import until

KEYS = Keys()
SECRETS = ("sandbox-secret", "quarterly figures", "@example.org", "of no concern")


class Live(Pair):
    """Its parser loops for ever over some messages."""

    def command(self, *words: str, ends: int = 0) -> subprocess.CompletedProcess[str]:
        done = typed(self.here, *words)
        assert done.returncode == ends, done.stderr + done.stdout
        return done

    def asked(self, *words: str, ends: int = 0) -> list[dict[str, Any]]:
        return told(self.here, *words, ends=ends)

    def deliver(self, subject: str, poison: str = "") -> None:
        head = f"X-Poison: {poison}\r\n" if poison else ""
        text = f"{head}Subject: {subject}\r\nMessage-ID: <{subject}@example.org>\r\n\r\nquarterly figures\r\n"
        self.sandbox.deliver(text.encode())

    def stored(self) -> set[str]:
        return {row[0] for row in self.here.rows("SELECT subject FROM emails")}

    def depth(self) -> int:
        with self.redis.client() as client:
            return int(client.xlen(KEYS.stream))

    def dead(self) -> list[dict[bytes, bytes]]:
        with self.redis.client() as client:
            return [fields for _, fields in client.xrange(KEYS.dlq)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("rescue")
    settings = {"PYTHONPATH": poisoned_python(folder / "site"), "WORKER_HANDLE_TIMEOUT_SECONDS": 600}
    with running_pair(Live, folder, **settings) as made:
        yield made


def test_a_message_stuck_in_its_handler_is_revoked_and_the_rest_flows(live: Live) -> None:
    live.deliver("stuck", poison="loop")
    (row,) = until(lambda: _pending(live), "the worker hangs over it")
    assert row["consumer"].endswith("worker-1")
    live.deliver("behind it")
    (revoked,) = live.asked("revoke", row["email_id"])
    assert (revoked["worker"], revoked["email_id"]) == ("worker", row["email_id"])
    until(lambda: "behind it" in live.stored(), "mail flows again")
    (letter,) = [each for each in live.dead() if each[b"dead_reason"] == b"operator"]
    assert letter[b"dead_instance"].endswith(b"worker-1")
    assert "stuck" not in live.stored()
    assert "no worker has this message" in live.command("revoke", row["email_id"], ends=1).stderr
    live.command("dlq", "purge", "--all", "--yes")


def test_what_a_dead_worker_left_is_seen_released_and_its_name_pruned(live: Live) -> None:
    live.command("pause", "worker", "--ttl", "10m")
    live.deliver("abandoned")
    until(lambda: _queued(live) == 1, "it is queued")
    with live.redis.client() as client:  # as a worker of another machine that died has it
        client.xreadgroup(GROUP, "gone-worker-9", {KEYS.stream: ">"}, count=1)
    consumers = {each["name"]: each for each in live.asked("consumers", "list")}
    assert (consumers["gone-worker-9"]["pending"], consumers["gone-worker-9"]["alive"]) == (1, False)
    refused = live.command("consumers", "prune", ends=1)
    assert "has entries pending" in refused.stderr
    (entry,) = live.asked("pending", "list", "--consumer", "gone-worker-9")
    assert live.asked("pending", "release", entry["id"])[0]["released"] == 1
    live.command("resume", "worker")
    until(lambda: "abandoned" in live.stored(), "the living worker took it over")
    assert {"consumer": "gone-worker-9", "pruned": True} in live.asked("consumers", "prune")
    assert "gone-worker-9" not in {each["name"] for each in live.asked("consumers", "list")}


def test_a_gone_name_is_pruned_once_the_living_worker_has_taken_over(live: Live) -> None:
    live.command("pause", "worker", "--ttl", "10m")
    live.deliver("handed over")
    until(lambda: _queued(live) == 1, "it is queued")
    with live.redis.client() as client:
        client.xreadgroup(GROUP, "gone-worker-7", {KEYS.stream: ">"}, count=1)
    live.command("resume", "worker")
    assert {"consumer": "gone-worker-7", "pruned": True} in live.asked("consumers", "prune", "--release")
    until(lambda: "handed over" in live.stored(), "it is delivered")


def test_a_pending_message_can_be_put_aside(live: Live) -> None:
    live.command("pause", "worker", "--ttl", "10m")
    live.deliver("put aside")
    until(lambda: _queued(live) == 1, "it is queued")
    with live.redis.client() as client:
        client.xreadgroup(GROUP, "gone-worker-8", {KEYS.stream: ">"}, count=1)
    assert live.command("pending", "to-dlq", ends=64).stdout == ""
    (row,) = live.asked("pending", "to-dlq", "--consumer", "gone-worker-8")
    assert row["letter"]
    assert live.depth() == 0
    assert ("dead letters", "operator") in {(each["source"], each["event"]) for each in live.asked("errors", ends=1)}
    live.command("resume", "worker")
    live.command("dlq", "replay", "--reason", "operator")
    until(lambda: "put aside" in live.stored(), "it came back")
    live.command("consumers", "prune")


def test_the_queue_goes_into_a_file_and_comes_back_once(live: Live) -> None:
    live.command("pause", "worker", "--ttl", "10m")
    subjects = {f"drained {number}" for number in range(40)}
    for subject in subjects:
        live.deliver(subject)
    until(lambda: _queued(live) == 40, "they are queued")
    (row,) = live.asked("drain", "--output", "queue.jsonl")
    assert (row["written"], row["taken_out"], row["left"], live.depth()) == (40, 40, 0, 0)
    path = live.here.folder / "queue.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    nothing = live.command("drain", "--output", "again.jsonl", "--json", ends=1)
    assert (nothing.stdout, "the queue is empty" in nothing.stderr) == ("[]\n", True)
    (live.here.folder / "half.jsonl").write_bytes(path.read_bytes()[:-200])
    assert "is damaged" in live.command("refill", "half.jsonl", ends=2).stderr
    assert live.depth() == 0
    assert [live.asked("refill", "queue.jsonl")[0]["added"] for _ in range(2)] == [40, 0]
    live.command("resume", "worker")
    until(lambda: subjects <= live.stored(), "all is delivered")
    assert len(live.here.rows("SELECT subject FROM emails WHERE subject LIKE 'drained%'")) == 40


def test_the_logs_and_what_went_wrong_are_found_without_redis(live: Live) -> None:
    live.redis.kill()
    try:
        until(lambda: "RedisConnectionError" in live.worker.log(), "the outage is logged")
        found = [json.loads(line) for line in live.command("logs", "--level", "ERROR", "--json").stdout.splitlines()]
        assert {"RedisConnectionError"} <= {record.get("error_type") for record in found}
        assert {record["level"] for record in found} <= {"ERROR", "CRITICAL"}
        assert [record["timestamp"] for record in found] == sorted(record["timestamp"] for record in found)
        only = live.command("logs", "--component", "producer").stdout
        assert " producer process_started" in only
        assert " worker " not in only
        summed = live.command("errors", "--json", ends=1)
        assert "the dead letters are not among these" in summed.stderr
        assert "RedisConnectionError" in {row["error_type"] for row in json.loads(summed.stdout)}
        live.command("config", "show", "--set")
        assert live.asked("log-level", "INFO", "--ttl", "1s")
        for words in (("pending", "list"), ("consumers", "list"), ("drain", "--output", "x.jsonl"), ("revoke", "a")):
            assert "see that Redis runs" in live.command(*words, ends=2).stderr
        (row,) = live.asked("evidence", "collect", "--out", "outage")
        manifest = json.loads((live.here.folder / "outage" / "manifest.json").read_text())
        assert (row["missing"], list(manifest["missing"])) == (1, ["redis.json"])
    finally:
        live.redis.start()
        until(lambda: live.worker.get("/ready")[0] == 200, "all is well")


def test_the_log_can_be_followed(live: Live) -> None:
    command = [sys.executable, "-m", "email_ingestion", "logs", "--follow", "--since", "1h"]
    output = live.here.folder / "followed"
    with output.open("wb") as file:
        following = subprocess.Popen(
            command,
            cwd=live.here.folder,
            env=live.here.environment,
            stdout=file,
        )
    try:
        until(lambda: "process_started" in output.read_text(), "what was logged before")
        before = output.read_text().count("emails_delivered")
        live.deliver("followed")
        until(lambda: output.read_text().count("emails_delivered") > before, "what is logged now")
    finally:
        following.send_signal(signal.SIGINT)
    assert following.wait(30) == 0


def test_settings_are_shown_with_their_origin_and_without_secrets(live: Live) -> None:
    shown = {row["name"]: row for row in live.asked("config", "show")}
    assert shown["GOOGLE_CLIENT_SECRET"] == {
        "name": "GOOGLE_CLIENT_SECRET",
        "value": "***",
        "origin": "the environment",
    }
    assert shown["WORKER_BATCH_SIZE"] == {"name": "WORKER_BATCH_SIZE", "value": "100", "origin": "default"}
    assert "GOOGLE_CLIENT_ID" in live.command("config", "show", "--set").stdout


def test_the_stacks_of_all_threads_are_logged_on_a_signal(live: Live) -> None:
    os.kill(live.worker.process.pid, signal.SIGUSR1)
    until(lambda: '"event": "stacks_dumped"' in live.worker.log(), "the stacks are in the log")
    (record,) = [json.loads(line) for line in live.worker.log().splitlines() if '"event": "stacks_dumped"' in line]
    assert "thread body:" in record["stacks"]


def test_evidence_holds_everything_and_nothing_secret(live: Live) -> None:
    live.deliver("of no concern to anybody")
    until(lambda: "of no concern to anybody" in live.stored(), "it is delivered")
    (row,) = live.asked("evidence", "collect", "--out", "incident")
    folder = live.here.folder / "incident"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (row["missing"], manifest["missing"]) == (0, {})
    assert {
        "config.json",
        "doctor.json",
        "machine.json",
        "redis.json",
        "logs/worker.log",
        "logs/audit.log",
    } <= manifest["files"].keys()
    assert {"status/producer.json", "status/worker.json", "metrics/worker.txt"} <= manifest["files"].keys()
    kept = json.loads((live.here.folder / "token.json").read_text())["refresh_token"]
    secrets = (*SECRETS, kept, (live.here.folder / "data" / "ops-token").read_text().strip())
    for name, described in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (described["bytes"], described["sha256"])
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert not [secret for secret in secrets if secret in content.decode()], name
    assert json.loads((folder / "status" / "worker.json").read_text())["component"] == "worker"
    sums = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in sums} == {*manifest["files"], "manifest.json"}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for digest, name in sums)
    assert "is not empty" in live.command("evidence", "collect", "--out", "incident", ends=2).stderr


def _queued(live: Live) -> int:
    """How many wait that no worker has taken."""
    with live.redis.client() as client:
        return live.depth() - client.xpending(KEYS.stream, GROUP)["pending"]


def _pending(live: Live) -> list[dict[str, Any]]:
    done = typed(live.here, "pending", "list", "--json")
    return json.loads(done.stdout) if done.returncode == 0 else []
