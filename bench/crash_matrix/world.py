"""Brings the real system up and says what is where: a Gmail sandbox, Redis with AOF, a database, producers, workers.

It also plays the supervisor: what a fault kills is started again, and what dies by itself is remembered.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import redis

from bench.crash_matrix.databases import SQLITE, Database, Unanswered, running_database
from bench.crash_matrix.law import Copy, Found
from bench.crash_matrix.relay import Network
from email_ingestion.blobs import BlobStore, open_blobs
from email_ingestion.errors import TransientError
from email_ingestion.ledger.store import Ledger, content_of, open_ledger
from email_ingestion.records import email_id
from email_ingestion.stream import Keys
from email_ingestion.stream.codec import decode
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from gmail_sandbox.account import GmailAccount
from tests.servers.processes import Place, Running, gmail_settings, place
from tests.servers.redis import RedisServer, running_redis
from tests.servers.webhook import Receiver

KEYS = Keys()
LEASE = 2.0
# What differs from the defaults, so that a round takes seconds; the report names them.
RECOVERY = 1
PACE = {"CB_RECOVERY_TIMEOUT": RECOVERY, "IMAP_POLL_SECONDS": 1, "WORKER_LEASE_SECONDS": LEASE, "LOG_LEVEL": "DEBUG"}
CREW = ("producer", "worker")
PATIENCE = 60.0  # seconds without a delivery, after which a round is over
LONGEST = 300.0  # and in any case: a machine that is loaded tenfold delivers slowly
LOGIN_SECONDS = 20.0
GUEST = "3"  # its number: on one machine no two workers have the same
# A log line with one of these is a fault of ours, whether mail was lost or not.
ALARMS = ("thread_crashed", "process_crashed", "loop_stalled")


WITH_PURGED = (
    "SELECT (SELECT count(*) FROM emails)"
    " + (SELECT count(*) FROM purged WHERE email_id NOT IN (SELECT email_id FROM emails))"
)


class Unwell(Exception):
    """A process of ours ended by itself, or did not come up."""


@dataclass
class Logs:
    """Reads what was added to the log files since the last look."""

    folders: tuple[Path, ...]
    _read: dict[Path, int] = field(default_factory=dict)

    def fresh(self) -> Iterator[dict[str, Any]]:
        """Yield the records written since the last call; what is not JSON is the end of a line cut by kill -9."""
        for path in sorted(path for folder in self.folders for path in folder.glob("logs/*.log")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read()
            whole = whole[: whole.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                if line.startswith(b"{"):
                    try:
                        yield json.loads(line)
                    except ValueError:
                        continue


class World:
    """The running system. `rival` is a second producer and `guest` another worker, both of another machine."""

    def __init__(
        self, server: RedisServer, sandbox: RunningSandbox, here: Place, there: Place, database: Database
    ) -> None:
        self.redis = server
        self.sandbox = sandbox
        self.here = here
        self.there = there
        self.database = database
        self.receiver: Receiver | None = None  # of the webhook, in the faults that have one
        self.network: Network | None = None  # between producer and mail server, likewise
        self.purges = False  # whether an operator purges mail: then it has its end in an export
        self.running: dict[str, Running] = {}
        self.span = 0.1  # seconds a round's first mail needs to flow through, about
        self.long = False  # whether this round's fault may outlast time-outs
        self._bag: deque[list[bytes]] = deque()
        self._server: dict[str, str] = {}
        self._former: set[str] = set()  # identities that were on the server
        self._known: dict[str, str] = {}
        self._logs = Logs((here.folder, there.folder))
        self._blobs: BlobStore = open_blobs(here.environment["BLOB_URL"])

    @property
    def arrived(self) -> int:
        """How many messages the mailbox was given."""
        return len(self._server)

    @property
    def data(self) -> Path:
        """The folder of database and blobs."""
        return self.here.folder / "data"

    # -- processes

    def muster(self, crew: Iterable[str]) -> None:
        """Let exactly these processes run; the others stop as an operator stops them."""
        for name in [name for name in self.running if name not in set(crew)]:
            self.stop(name)
        for name in crew:
            if name not in self.running:
                self.start(name)
        for name in crew:
            self.running[name].url()

    def start(self, name: str) -> None:
        """Start a process; `up` waits for it."""
        where = self.there if name in {"rival", "guest"} else self.here
        role, _, number = name.partition("-")
        if role == "guest":
            number = GUEST
        worker = role in {"worker", "guest"}
        self.running[name] = where.worker(int(number or 1)) if worker else where.producer()

    def up(self, name: str) -> None:
        """Return when the process answers."""
        self.running[name].url()

    def stop(self, name: str) -> None:
        """End a process with SIGTERM; another exit code than 0 is a fault of ours."""
        running = self.running.pop(name)
        code = running.terminate()
        if code != 0:
            raise Unwell(f"{name} answered SIGTERM with exit code {code}: {running.log()[-2000:]}")

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._still_there(name)
        self.running[name].kill()

    def restart(self, name: str) -> None:
        """SIGKILL, and start again as a supervisor does; meanwhile mail arrives."""
        self.kill(name)
        self.more()
        self.start(name)
        self.up(name)

    def signal(self, name: str, number: int) -> None:
        """Send a signal."""
        self._still_there(name)
        self.running[name].process.send_signal(number)

    def _still_there(self, name: str) -> None:
        running = self.running[name]
        if not running.alive:
            raise Unwell(f"{name} ended by itself with {running.process.returncode}: {running.log()[-2000:]}")

    # -- mail

    def fill(self, letters: list[bytes], portions: int) -> None:
        """Put mail aside for `more`: half of it first, the rest in equal portions."""
        first = len(letters) // 2
        self._bag = deque([letters[:first]])
        rest, others = letters[first:], portions - 1
        self._bag.extend(rest[i * len(rest) // others : (i + 1) * len(rest) // others] for i in range(others))
        self.span = 0.2 + first / 500

    def more(self) -> bool:
        """Deliver the next portion to the mailbox; False when there is none left."""
        if not self._bag:
            return False
        letters = self._bag.popleft()
        deliveries = self.sandbox.with_account(lambda account: [account.deliver(raw) for raw in letters])
        for delivery, raw in zip(deliveries, letters, strict=True):
            self._server[email_id("default", delivery.message.msgid, "")] = hashlib.sha256(raw).hexdigest()
        return True

    def restore_server(self, backup: Mapping[str, int]) -> None:
        """Bring the mail server back as it was when the next UID of each mailbox was this one."""

        def restore(account: GmailAccount) -> None:
            everything = account.mailboxes["\\All"]
            newer = [msgid for msgid in everything.msgids if (everything.uid_of(msgid) or 0) >= backup["\\All"]]
            for msgid in newer:
                account.delete(msgid)
                self._former.add(email_id("default", msgid, ""))
            for key, mailbox in account.mailboxes.items():
                mailbox.uidnext = backup.get(key, 1)

        self.sandbox.arm_fault("refuse_connections", count=None, drop_sessions=True)
        self.sandbox.with_account(restore)
        self.sandbox.clear_faults()

    def instant(self, rng: Random) -> None:
        """Let a random part of the time pass in which the mail flows."""
        time.sleep(rng.uniform(0, self.span))

    def await_login(self, besides: Collection[object] = ()) -> set[object]:
        """Wait until a session is logged in at the mail server and none is about to be, for a while; return which.

        One of `besides` is about to end and says nothing of those that follow it.
        """
        deadline = time.monotonic() + LOGIN_SECONDS
        while time.monotonic() < deadline:
            sessions = httpx.get(f"{self.sandbox.control_url}/sessions", timeout=10).json()
            others = {session["id"]: session["user"] for session in sessions if session["id"] not in besides}
            if others and all(others.values()):
                return set(others)
            time.sleep(0.05)
        return set()

    # -- what is where

    def delivered(self) -> int | None:
        """How many messages the database has, and the webhook where there is one; None while nobody can tell."""
        try:
            rows = self.database.rows(WITH_PURGED if self.purges else "SELECT count(*) FROM emails")
        except (Unanswered, sqlite3.Error):
            return None
        stored = int(rows[0][0]) if rows else 0
        if self.purges:  # then mail is dead for a while: an end too
            with suppress(redis.RedisError), self.redis.client() as client:
                stored += int(client.xlen(KEYS.dlq))
        if self.receiver:  # which may be told of changes too
            stored = min(stored, sum(not each.startswith("change:") for each in list(self.receiver.taken)))
        return stored

    def repeated(self) -> int:
        """How often the webhook was called with a message that it had taken."""
        return self.receiver.taken.total() - len(self.receiver.taken) if self.receiver else 0

    def settle(self) -> float:
        """Wait until everything is delivered; return the seconds it took.

        Returns too when nothing has been delivered for as long as patience lasts, or all of it takes too long.
        """
        started = moved = time.monotonic()
        delivered, before = None, None
        while time.monotonic() - moved < PATIENCE and time.monotonic() - started < LONGEST:
            if (now := self.delivered()) != before:
                before, moved = now, time.monotonic()
            for name in self.running:
                self._still_there(name)
            if delivered is None and (now or 0) >= len(self._server):
                delivered = time.monotonic() - started
            if delivered is not None and self._idle():
                return delivered
            time.sleep(0.05)
        return time.monotonic() - started

    def _idle(self) -> bool:
        """Whether the stream is empty and the cursor at the mailbox's end."""
        newest = self.sandbox.with_account(lambda account: account.mailboxes["\\All"].uidnext) - 1
        with self.redis.client() as client:
            try:
                cursor = client.hget(KEYS.cursor("default", "[Gmail]/All Mail"), "uid")
                return client.xlen(KEYS.stream) == 0 and int(cursor or 0) >= newest
            except redis.RedisError:
                return False

    def look(self, *, again: bool = False) -> Found:
        """Read everything; bytes that were compared before are read again only when asked for."""
        if again:
            self._known.clear()
        messages = self.sandbox.messages()
        ours = {email_id("default", message.msgid, ""): message for message in messages}
        with self.redis.client() as client:
            dead, queued = (self._entries(client, key) for key in (KEYS.dlq, KEYS.stream))
        rows = self._rows()
        taken = self.receiver.taken if self.receiver else None
        return Found(
            mailbox={identity: self._server[identity] for identity in ours},
            former=self._former,
            seen=[identity for identity, message in ours.items() if "\\Seen" in message.flags],
            database=rows,
            dead=[*dead, *self._purged()],
            queued=queued,
            owed=[] if taken is None else [copy.email_id for copy in rows if copy.email_id not in taken],
        )

    def _purged(self) -> list[Copy]:
        """What was purged has its end in the export, which its command verified."""
        rows = self.database.rows("SELECT email_id FROM purged") if self.purges else []
        return [Copy(identity, self._server.get(identity, "")) for (identity,) in rows]

    def _rows(self) -> list[Copy]:
        rows = self.database.rows("SELECT email_id, raw_ref, sha256 FROM emails")
        unread = [row for row in rows if row[0] not in self._known]
        if unread:
            with closing(open_ledger(self.database.url)) as ledger:
                for identity, ref, stated in unread:
                    actual = self._digest(ref, ledger)
                    self._known[identity] = actual if actual == stated else f"stated {stated}, is {actual}"
        return [Copy(identity, self._known[identity]) for identity, _, _ in rows]

    def _digest(self, ref: str, ledger: Ledger) -> str:
        try:
            return hashlib.sha256(content_of(ref, ledger, self._blobs)).hexdigest()
        except TransientError as error:
            return f"unreadable: {error}"

    def _entries(self, client: redis.Redis, key: str) -> list[Copy]:
        copies = []
        for _, fields in client.xrange(key):
            message = decode(fields)
            raw = message.raw if message.raw is not None else self._blobs.get(message.raw_ref or "")
            copies.append(Copy(message.envelope.email_id, hashlib.sha256(raw).hexdigest()))
        return copies

    def logged(self) -> tuple[int, list[str]]:
        """What the logs say since the last look: duplicates the database refused, and alarms."""
        duplicates, alarms = 0, []
        for record in self._logs.fresh():
            if record.get("event") == "email_delivered":
                duplicates += bool(record.get("duplicate"))
            elif record.get("event") in ALARMS:
                said = record.get("message") or str(record.get("exception", "")).strip().splitlines()[-1:]
                alarms.append(f"{record['component']}: {record['event']}: {record.get('error_type', '')} {said}")
        return duplicates, alarms


@contextmanager
def running_world(folder: Path, database: str = SQLITE) -> Iterator[World]:
    """Bring a world up in `folder`, with an empty mailbox and no process running yet."""
    with ExitStack() as stack:
        where = stack.enter_context(running_database(database, folder / "here"))
        server = stack.enter_context(running_redis(folder / "redis", appendfsync="everysec"))
        sandbox = stack.enter_context(running_sandbox(SandboxSettings()))
        common: dict[str, object] = {
            **gmail_settings(sandbox, folder),
            "DATABASE_URL": where.url,
            "BLOB_URL": f"file:{folder}/here/data/blobs",
            **PACE,
        }
        here, there = (stack.enter_context(place(folder / name, server.url, **common)) for name in ("here", "there"))
        yield World(server, sandbox, here, there, where)
