"""A sink that is added later gets the mail of before, from a command that is killed and given again."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from contextlib import closing

from email_ingestion.ledger.model import Marks
from email_ingestion.ledger.store import open_ledger
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender
from tests.servers.links import link, message
from tests.servers.processes import Place, Running, until
from tests.servers.redis import RedisServer
from tests.servers.webhook import SECRET, Receiver, receiving

COUNT = 40


def resend(here: Place, *options: str) -> subprocess.CompletedProcess[str]:
    done = here.run("-m", "email_ingestion", "resend", *options)
    assert "Traceback" not in done.stderr
    return done


def test_a_sink_added_later_gets_the_mail_of_before_behind_live_mail(here: Place, own_redis: RedisServer):
    appender = Appender(link(own_redis.url))
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    appender.append("default", "INBOX", Cursor(1, 0), COUNT, [message(uid) for uid in range(1, COUNT + 1)])
    assert here.run("worker.py", "--drain").returncode == 0
    refused = resend(here, "--sink", "webhook", "--all")
    assert (refused.returncode, "SINKS names only the database" in refused.stderr) == (64, True)

    ids = [message(uid).envelope.email_id for uid in range(1, COUNT + 1)]
    with receiving() as receiver:
        here.set(SINKS="webhook", WEBHOOK_URL=receiver.url, WEBHOOK_SECRET=SECRET, WEBHOOK_EVENTS="all")
        tried = resend(here, "--sink", "webhook", "--all", "--dry-run")
        assert (tried.returncode, tried.stdout) == (
            0,
            f"webhook would get {COUNT} messages: 0 again, {COUNT} for the first time\n",
        )
        begun = json.loads(resend(here, "--sink", "webhook", "--all", "--json").stdout)
        assert (begun["owed"], begun["left"]) == (COUNT, COUNT)
        worker = here.worker()
        until(lambda: set(receiver.taken) == set(ids), "the webhook has all of it")
        until(lambda: worker.metric("email_ingestion_sink_resends_waiting_messages") == 0, "and that is told")

        lost = resend(here, "--sink", "webhook", "--id", ids[3], "--follow")
        assert lost.returncode == 0, lost.stderr
        assert lost.stdout.startswith("webhook gets 1 messages: 1 again, 0 for the first time\n1 wait to be sent again")
        until(lambda: Counter(receiver.taken)[ids[3]] == 2, "the same message under the same identity")
        _is_told_of_changes(here, worker, receiver, ids[:2])
        assert worker.terminate() == 0
    assert '"action": "resend"' in (here.folder / "logs" / "audit.log").read_text()
    assert not list((here.folder / "data" / "resend").iterdir())


def _is_told_of_changes(here: Place, worker: Running, receiver: Receiver, ids: list[str]) -> None:
    """Of mail it got; one change it refuses, and is told again by order."""

    def told() -> list[tuple[str, str]]:
        bodies = (body for name, body in receiver.bodies.items() if name.startswith("change:"))
        return [(body["type"], body["data"]["email_id"]) for body in bodies]

    receiver.answer = lambda name: (400 if name.startswith("change:") else 204, {})
    with closing(open_ledger(f"sqlite:///{here.folder}/data/email_ingestion.db")) as ledger:
        ledger.server_state.update_marks("INBOX", {ids[0]: Marks(("Work",))})
        until(lambda: worker.metric("email_ingestion_sink_changes_refused") == 1, "a change is refused")
        receiver.work()
        ledger.server_state.note_deleted("INBOX", [ids[1]])
        until(lambda: told() == [("email.deleted", ids[1])], "it blocks no other")
    listed = resend(here, "--sink", "webhook", "--changes", "--dry-run")
    assert (listed.returncode, listed.stdout) == (0, "webhook would be told 1 changes again that it refused\n")
    assert f"relabelled {ids[0]}: the webhook answers 400" in listed.stderr
    assert resend(here, "--sink", "webhook", "--changes").returncode == 0
    until(lambda: told()[1:] == [("email.relabelled", ids[0])], "it is told again")
    assert worker.metric("email_ingestion_sink_changes_total") is not None


def test_orders_that_cannot_be_meant_are_refused(here: Place, own_redis: RedisServer):
    here.set(SINKS="ndjson")
    for options in (
        ("--sink", "nowhere", "--all"),
        ("--sink", "ndjson", "--all", "--since", "7d"),
        ("--sink", "ndjson", "--since", "1d", "--until", "7d"),
        ("--sink", "ndjson", "--cancel", "--all"),
        ("--sink", "ndjson", "--changes", "--all"),
        ("--sink", "ndjson", "--account", "nobody"),
    ):
        done = resend(here, *options)
        assert done.returncode == 64, (options, done.stdout, done.stderr)
    nothing = resend(here, "--sink", "ndjson")
    assert (nothing.returncode, nothing.stdout.splitlines()[0][:1]) == (0, "0")
