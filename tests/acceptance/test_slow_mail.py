"""Mail that takes long to parse does not hold up other mail, and is neither lost nor blamed for it."""

from __future__ import annotations

from pathlib import Path

import psutil

from gmail_sandbox import RunningSandbox
from tests.servers.poison import poisoned_python
from tests.servers.processes import Place, until

SLOW = 5


def letter(number: int, poison: str = "") -> bytes:
    head = f"X-Poison: {poison}\r\n" if poison else ""
    return f"{head}Subject: letter {number}\r\nMessage-ID: <{number}@example.org>\r\n\r\nhello\r\n".encode()


def test_five_endless_messages_delay_no_other_mail_and_come_when_they_can_be_read(
    here: Place, sandbox: RunningSandbox, tmp_path: Path
):
    clean = dict(here.environment)
    here.set(PYTHONPATH=poisoned_python(tmp_path / "site"), WORKER_HANDLE_TIMEOUT_SECONDS=3000)
    for number in range(60):
        sandbox.deliver(letter(number, "loop" if number % 12 == 5 else ""))
    worker, producer = here.worker(), here.producer()
    until(lambda: len(here.rows()) == 60 - SLOW, "all other mail is delivered")
    for number in range(60, 80):
        sandbox.deliver(letter(number))
    until(lambda: len(here.rows()) == 80 - SLOW, "mail that comes later, too")
    assert worker.metric("email_ingestion_slow_messages_total") == SLOW
    until(lambda: worker.status()["stream"]["depth"] == SLOW, "all other mail is out of the stream, and seen to be")
    assert worker.status()["stream"]["max_deliveries"] == 1
    assert worker.log().count("email_deferred") == 0
    assert producer.terminate() == 0
    parsers = psutil.Process(worker.process.pid).children()
    assert worker.terminate() == 0
    assert psutil.wait_procs(parsers, timeout=5)[1] == []

    here.environment = clean
    done = here.run("worker.py", "--drain")
    assert done.returncode == 0, done.stderr
    assert len(here.rows()) == 80
