"""Orders about a part of the work, and a rolling restart, on live processes while mail keeps arriving."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.servers.commands import told, typed
from tests.servers.pair import Pair, running_pair
from tests.servers.processes import until

FURTHER = "ndjson:further.jsonl"


class Live(Pair):
    def deliver(self, subject: str, sender: str = "ada@example.org") -> None:
        text = f"From: {sender}\r\nSubject: {subject}\r\nMessage-ID: <{subject}@example.org>\r\n\r\nhello\r\n"
        self.sandbox.deliver(text.encode())

    def subjects(self) -> set[str]:
        return {subject for (subject,) in self.here.rows("SELECT subject FROM emails")}

    def further(self) -> int:
        path = self.here.folder / "further.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def order(self, *words: str) -> list[dict[str, Any]]:
        return told(self.here, *words)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running_pair(Live, tmp_path_factory.mktemp("orders"), SINKS=f"database,{FURTHER}") as made:
        yield made


def test_a_paused_sink_waits_alone_and_gets_everything_afterwards(live: Live) -> None:
    rows = live.order("sink", "pause", FURTHER, "--ttl", "1h")
    assert {row["value"] for row in rows} == {"paused"}
    before = live.further()
    live.deliver("while-it-waits")
    until(lambda: "while-it-waits" in live.subjects(), "the database has it")
    assert (live.further(), live.worker.metric("email_ingestion_sink_paused")) == (before, 1)
    live.order("sink", "resume", FURTHER)
    until(lambda: live.further() == before + 1, "the sink has got it")
    refused = typed(live.here, "sink", "pause", "database")
    assert (refused.returncode, "pause worker" in refused.stderr) == (64, True)


def test_mail_of_a_blocked_sender_is_put_aside_whole_and_comes_when_it_is_replayed(live: Live) -> None:
    live.order("route", "block", "--sender", "*@flood.example", "--ttl", "1h", "--all")
    live.deliver("flood", "Eve@Flood.example")
    live.deliver("welcome")
    until(lambda: live.worker.metric("email_ingestion_dlq_depth") == 1, "it is put aside")
    until(lambda: "welcome" in live.subjects(), "other mail comes")
    assert "flood" not in live.subjects()
    (letter,) = live.order("dlq", "list", "--reason", "operator")
    assert typed(live.here, "reconcile").returncode == 0
    live.order("route", "unblock", "--sender", "*@flood.example", "--all")
    assert typed(live.here, "dlq", "replay", letter["id"]).returncode == 0
    until(lambda: "flood" in live.subjects(), "it is delivered")


def test_a_batch_size_and_a_feature_hold_for_a_while_and_are_shown(live: Live) -> None:
    (row,) = live.order("set", "batch-size", "7", "--ttl", "1h")
    assert (row["process"], row["value"], row["scope"]) == ("worker", "7", "process")
    (row,) = live.order("feature", "off", "history", "--ttl", "1h")
    assert (row["process"], row["value"]) == ("producer", "off")
    shown = {(row["process"], row["name"], row["value"]) for row in live.order("feature", "list")}
    assert shown == {("producer", "feature:history", "off"), ("worker", "batch-size", "7")}
    (row,) = live.order("set", "default", "batch-size")
    assert row["value"] is None
    live.order("feature", "on", "history")
    assert typed(live.here, "feature", "off", "everything").returncode == 64


def test_the_memory_of_live_processes_is_watched(live: Live) -> None:
    reports = live.order("memory", "--for", "1s", "--top", "3")
    assert {each["process"] for each in reports} == {"producer", "worker"}
    assert all(each["rss_bytes"] > 1_000_000 and len(each["objects"]) == 3 for each in reports)


def test_workers_are_restarted_one_after_the_other_while_mail_is_delivered(live: Live) -> None:
    over, numbers = threading.Event(), count()

    def arrive() -> None:
        while not over.wait(0.1):
            live.deliver(f"rolling-{next(numbers)}")

    thread = threading.Thread(target=arrive)
    thread.start()
    before = json.loads((live.here.folder / "pids" / "worker.json").read_text())["pid"]
    try:
        done = live.here.run("-m", "email_ingestion", "restart", "worker", "--rolling")
    finally:
        over.set()
        thread.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "worker-2 delivers meanwhile" in done.stdout
    assert json.loads((live.here.folder / "pids" / "worker.json").read_text())["pid"] != before
    assert not (live.here.folder / "pids" / "worker-2.pid").exists()
    sent = {f"rolling-{number}" for number in range(next(numbers))}
    until(lambda: sent <= live.subjects(), "all of it is delivered")
    assert "emails_delivered" in (live.here.folder / "logs" / "worker-2.log").read_text()
    assert typed(live.here, "stop").returncode == 0
    ends = [(row["process"], row["exit"], row["end"]) for row in live.order("starts")]
    assert ends.count(("worker", 0, "SIGTERM")) == 2
    assert ("worker-2", 0, "SIGTERM") in ends


def test_nothing_to_restart_is_said(tmp_path: Path, live: Live) -> None:
    del tmp_path
    missing = typed(live.here, "restart", "worker", "--rolling")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "email-ingestion start" in missing.stderr
