"""`reconcile --sink` as a command: what it says, how it ends, and that exactly what was found is sent again."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from email_ingestion.app.consumer_proof import ConsumerProofs, ConsumerProver
from email_ingestion.cli.main import app
from email_ingestion.errors import EmailIngestionError, OperationFailed, SinkUnavailable
from email_ingestion.events import ConsumerCompared, ConsumerNotCompared, ConsumersProved
from email_ingestion.ledger.store import open_ledger
from email_ingestion.records import SinkMessage
from email_ingestion.settings import load_settings
from email_ingestion.sinks.webhook import open_sink
from tests.contract.edited_sinks import EditedSink
from tests.servers.links import Heard, link
from tests.servers.processes import until
from tests.servers.redis import RedisServer
from tests.servers.webhook import SECRET, receiving

EXAMPLE = Path(__file__).parents[2] / "examples" / "webhook-receiver" / "receiver.py"


@pytest.fixture
def sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer) -> Iterator[EditedSink]:
    monkeypatch.chdir(tmp_path)
    with closing(open_ledger("sqlite:///data/email_ingestion.db")) as ledger:
        made = EditedSink(ledger, tmp_path, "files", 11)
        settings = {"IMAP_USER": "someone@example.com", "REDIS_URL": redis_server.url, "SINKS": f"{made.name},ndjson"}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield made


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["reconcile", *arguments], standalone_mode=False)
    if isinstance(result.exception, EmailIngestionError):
        raise result.exception
    assert result.exception is None, result.exception
    return result.return_value, result.stdout


def test_a_gap_is_told_filled_and_then_on_its_way(sink: EditedSink, redis_server: RedisServer) -> None:
    ids = sink.deliver(range(20))
    assert run("--sink", "files")[0] == 0
    sink._records = {}
    sink._remove(ids[3])
    code, said = run("--sink", "files")
    assert (code, f"missing there: {ids[3]}" in said, "--resend sends exactly these again" in said) == (1, True, True)
    proof = ConsumerProofs(link(redis_server.url)).read()[sink.name]
    assert (proof.missing, proof.altered, time.time() - proof.at < 60) == (1, 0, True)
    code, said = run("--sink", sink.name, "--resend", "--json")
    report = json.loads(said)
    assert (code, report["missing_ids"], report["resent"], report["complete"]) == (0, [ids[3]], 1, False)
    assert sink.ledger.resends.left(sink.name) == 1
    code, said = run("--sink", "files", "--resend", "--json")
    report = json.loads(said)
    assert (code, report["missing"], report["resent"], report["in_flight"]) == (0, 0, 0, 1)
    assert '"action": "reconcile resend"' in Path("logs/audit.log").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sink", "nowhere"),
        ("--sink", "database", "--resend"),
        ("--sink", "files", "--repair"),
        ("--resend",),
        ("--presence",),
    ],
)
def test_orders_that_cannot_be_meant_are_refused(sink: EditedSink, arguments: tuple[str, ...]) -> None:
    sink.deliver(range(1))
    assert CliRunner().invoke(app, ["reconcile", *arguments]).exit_code == 2  # 64 as a program


def test_nobody_says_complete_of_what_cannot_be_looked_at(sink: EditedSink, redis_server: RedisServer) -> None:
    with pytest.raises(OperationFailed, match="nobody can look"):
        run("--sink", "ndjson")
    sink.deliver(range(2))
    with pytest.raises(OperationFailed, match="--against FILE"):
        run("--sink", "ndjson")
    sink.path.rename(sink.path.with_name("unmounted"))
    with pytest.raises(SinkUnavailable, match="is its disk mounted"):
        run("--sink", "files")
    assert ConsumerProofs(link(redis_server.url)).read() == {}


def test_the_database_is_a_sink_too(sink: EditedSink) -> None:
    ids = sink.deliver(range(5))
    assert run("--sink", "database")[0] == 0
    sink.sql("UPDATE emails SET account = 'another' WHERE email_id = :id", id=ids[0])
    code, said = run("--sink", "database", "--json")
    assert (code, json.loads(said)["altered_ids"]) == (1, [ids[0]])


def test_the_example_receiver_proves_what_it_has(
    sink: EditedSink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SINKS", "webhook")
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    sink.name = "webhook"
    command = [sys.executable, str(EXAMPLE), "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stdout
            monkeypatch.setenv("WEBHOOK_URL", receiver.stdout.readline().strip())
            with closing(open_sink(load_settings())) as webhook:
                made = list(sink.mail(range(90)))
                sink.ledger.record([sink._stored(email, raw) for email, raw in made])
                for email, raw in made:
                    webhook.deliver([SinkMessage(email, raw)])
                sink.settle()
            assert run("--sink", "webhook")[0] == 0
            lost = sorted(email.email_id for email, _ in made)[::9]
            with closing(sqlite3.connect(tmp_path / "kept.db", isolation_level=None)) as kept:
                for email_id in lost:
                    kept.execute("DELETE FROM mail WHERE email_id = ?", (email_id,))
            code, said = run("--sink", "webhook", "--resend", "--json")
            report = json.loads(said)
            assert (code, sorted(report["missing_ids"]), report["resent"]) == (0, lost, len(lost))
            assert report["exchanged_bytes"] > 0
        finally:
            receiver.kill()
    with pytest.raises(SinkUnavailable, match="cannot be reached"):
        run("--sink", "webhook")


@pytest.mark.parametrize(("status", "words"), [(404, "offers no digest"), (500, "answers 500"), (200, "is no JSON")])
def test_a_receiver_without_a_digest_is_not_complete(
    sink: EditedSink, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    sink.deliver(range(2))
    with receiving() as receiver:
        receiver.digest = status
        for name, value in {
            "SINKS": "webhook",
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_URL": f"{receiver.url}?token=x",
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(EmailIngestionError, match=words):
            run("--sink", "webhook")
        assert receiver.requests == ["/hook/digest?token=x&node="]


def test_a_worker_has_each_sink_compared_and_shows_what_is_missing(
    sink: EditedSink, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = sink.deliver(range(5))
    sink._records = {}
    sink._remove(ids[0])
    monkeypatch.setenv("RECONCILE_SINKS_SECONDS", "1")
    heard = Heard()
    provers = [ConsumerProver(load_settings(), link(redis_server.url), heard) for _ in range(2)]
    for prover in provers:
        prover.start()
    try:
        shown = until(
            lambda: [each for each in heard.of(ConsumersProved) if len(each.found or ()) == 2], "both are proved"
        )
        found = shown[0].found or {}
        assert (found[sink.name][0], found["database"][0]) == (1, 0)
        sink.path.rename(sink.path.with_name("unmounted"))
        until(
            lambda: [each for each in heard.of(ConsumerNotCompared) if "is its disk mounted" in each.reason],
            "it says why not",
        )
    finally:
        for prover in provers:
            prover.close()
    assert {each.sink for each in heard.of(ConsumerCompared)} == {sink.name, "database"}
