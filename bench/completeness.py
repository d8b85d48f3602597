"""A webhook's receiver with a million messages of which some are missing: `python -m bench.completeness`.

The ledger and the receiver of examples/webhook-receiver are filled without the pipeline, 37 messages are removed from
the receiver, and `reconcile --sink webhook --resend` has to find exactly those. Full-text index and contents play no
part in that and stay empty; the rows have two kilobytes, for their length is what a scan costs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer

from bench.machine import describe
from email_ingestion.ledger.store import open_ledger

ROOT = Path(__file__).parents[1]
RECEIVER = ROOT / "examples" / "webhook-receiver" / "receiver.py"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of the specification's examples
BEGIN = datetime(2016, 1, 1, tzinfo=UTC)
DAYS = 3_650
TEXT = "a line of sixty characters as people write them in a mail.\n" * 25
EMAIL = (
    "INSERT INTO emails (email_id, account, mailbox, uidvalidity, uid, gm_msgid, labels, subject, to_addrs,"
    " internaldate, size, sha256, text, headers, defects, raw_ref, processed_at)"
    " VALUES (?, ?, 'INBOX', 1, ?, ?, '[]', 'A letter', '[]', ?, 2000, ?, ?, '[]', '[]', ?, ?)"
)
DELIVERY = "INSERT INTO deliveries VALUES (?, 'webhook', 'delivered', NULL, 1, NULL, ?)"


def main() -> None:
    """Fill both, remove some, compare, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--missing", type=int, default=37)
    parser.add_argument("--accounts", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        started = time.monotonic()
        fill(folder, given.messages, given.accounts)
        typer.echo(f"filled in {time.monotonic() - started:.0f} s")
        missing = set(random.Random(37).sample(range(given.messages), given.missing))  # noqa: S311 - not a secret
        wanted = sorted(identity(number, given.accounts) for number in missing)
        with closing(sqlite3.connect(folder / "kept.db", isolation_level=None)) as kept:
            kept.executemany("DELETE FROM mail WHERE email_id = ?", [(each,) for each in wanted])
        for command in (["--resend"], []):
            report = compare(folder, *command)
            typer.echo(json.dumps(report))
            if command and sorted(report.pop("missing_ids")) != wanted:
                sys.exit("it has not found exactly what is missing")
        typer.echo(describe())


def fill(folder: Path, messages: int, accounts: int) -> None:
    """Make the ledger's and the receiver's databases."""
    (folder / "data").mkdir()
    path = folder / "data" / "email_ingestion.db"
    open_ledger(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path, isolation_level=None)) as ledger:
        triggers = ledger.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (trigger,) in triggers:
            ledger.execute(f"DROP TRIGGER {trigger}")
        ledger.execute("PRAGMA synchronous = OFF")
        ledger.execute("BEGIN")
        at = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        for email_id, account, number, arrived, sha256 in mail(messages, accounts):
            ref = f"sha256:{sha256}"
            ledger.execute(EMAIL, (email_id, account, number, number, arrived, sha256, TEXT, ref, at))
            ledger.execute(DELIVERY, (email_id, at))
        ledger.execute("COMMIT")
    with closing(sqlite3.connect(folder / "kept.db", isolation_level=None)) as kept:
        kept.execute("CREATE TABLE mail (email_id TEXT PRIMARY KEY, sha256 TEXT, node TEXT)")
        kept.execute("PRAGMA synchronous = OFF")
        kept.execute("BEGIN")
        for email_id, account, _, arrived, sha256 in mail(messages, accounts):
            node = f"{account}/{arrived[:7]}/{arrived[8:10]}/{hashlib.sha256(email_id.encode()).hexdigest()}"
            kept.execute("INSERT INTO mail VALUES (?, ?, ?)", (email_id, sha256, node))
        kept.execute("CREATE INDEX mail_node ON mail (node, email_id, sha256)")
        kept.execute("COMMIT")


def identity(number: int, accounts: int) -> str:
    """Return the identity of a message."""
    return f"account-{number % accounts}:gm:{1_500_000_000_000_000_000 + number}"


def mail(messages: int, accounts: int) -> Iterator[tuple[str, str, int, str, str]]:
    """Yield identity, account, number, arrival and SHA-256, in the order of arrival."""
    step = timedelta(days=DAYS) / messages
    for number in range(messages):
        sha256 = hashlib.sha256(str(number).encode()).hexdigest()
        arrived = (BEGIN + number * step).isoformat()
        yield identity(number, accounts), f"account-{number % accounts}", number, arrived, sha256


def compare(folder: Path, *options: str) -> dict[str, object]:
    """Run the receiver and the command; return the report, with the seconds of the whole command."""
    environment = {**os.environ, "WEBHOOK_SECRET": SECRET, "SINKS": "webhook", "IMAP_USER": "someone@example.com"}
    command = [sys.executable, str(RECEIVER), "0"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as receiver:
        try:
            environment["WEBHOOK_URL"] = receiver.stdout.readline().strip() if receiver.stdout else ""
            environment["PYTHONPATH"] = str(ROOT / "src")
            order = [sys.executable, "-m", "email_ingestion", "reconcile", "--sink", "webhook", "--json", *options]
            load, started = os.getloadavg()[0], time.monotonic()
            done = subprocess.run(order, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            seconds = time.monotonic() - started
        finally:
            receiver.kill()
    if done.returncode not in {0, 1}:
        sys.exit(done.stderr)
    report = json.loads(done.stdout)
    names = ("complete", "owed", "missing", "in_flight", "resent", "exchanged_bytes", "seconds", "missing_ids")
    return {name: report[name] for name in names} | {"command_seconds": round(seconds, 1), "load_before": load}


if __name__ == "__main__":
    main()
