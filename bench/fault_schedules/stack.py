"""The running system of one schedule: servers behind proxies, our processes, mail that arrives, and what is where.

It also plays the supervisor: what a fault kills is started again when the fault ends, and what dies by itself is noted.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import redis
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from bench.crash_matrix.clock import SettableClock, compiler
from bench.crash_matrix.law import Copy, Found
from bench.crash_matrix.letters import compose
from bench.crash_matrix.world import ALARMS, Logs
from bench.fault_schedules.network import Proxy
from bench.fault_schedules.schedule import Schedule
from bench.fault_schedules.servers import FaultyDovecot, FaultyPostgres, FaultyRedis, Troubled
from bench.fault_schedules.sinks import FunctionSink, WebhookSink, running_webhook
from email_ingestion.blobs import open_blobs
from email_ingestion.errors import EmailIngestionError
from email_ingestion.ledger.store import content_of, open_ledger
from email_ingestion.records import email_id
from email_ingestion.stream import Keys
from email_ingestion.stream.codec import decode
from email_ingestion.stream.dead_letter_file import verify_file
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.dovecot import PASSWORD, USER
from tests.servers.poison import poisoned_python
from tests.servers.processes import Place, Running, gmail_settings, place, until

KEYS = Keys()
LEASE = 6.0
# What differs from the defaults, so that a schedule takes less than a minute.
PACE: dict[str, object] = {
    "CB_RECOVERY_TIMEOUT": 1,
    "IMAP_POLL_SECONDS": 1,
    "IMAP_TIMEOUT_SECONDS": 5,
    "WORKER_LEASE_SECONDS": LEASE,
    "WORKER_HANDLE_TIMEOUT_SECONDS": 20,
}
# From the hand-over until it is written down that it happened, as docs/sinks.md promises, and slack for a busy machine.
UNMARKED_SECONDS = 0.5 + 1.5
RESTARTS = 5
START_SECONDS = 180.0  # before any fault: what a machine with too much to do needs to start anything
POISONED = 3  # messages that end the parser, in a schedule that is about dead letters
POISON = b"X-Poison: abort\r\nSubject: poison %d\r\n\r\n"


class NotStarted(Exception):
    """Before the first fault not everything was up, and nothing has ended: the machine is too busy to try anything."""


class OurProcess(Troubled):
    """A producer or worker; what its end was, if it ended by itself, is in `endings`."""

    def __init__(self, name: str, where: Place) -> None:
        super().__init__()
        self.name = name
        self._place = where
        self.endings: list[str] = []
        self._start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self.running.process.pid

    def supervise(self) -> None:
        """Start it again when it ended by itself."""
        if self._up and not self.running.alive and len(self.endings) < RESTARTS:
            said = " ".join(self.running.log().splitlines()[-3:])[-1500:]
            self.endings.append(f"{self.name} ended by itself with {self.running.process.returncode}: {said}")
            self._start()

    def stop(self) -> None:
        """SIGTERM when it is up; another exit code than 0 is an ending too."""
        if not self.running.alive:
            return
        with suppress(AssertionError):  # the file that says so may have been removed
            until(lambda: self.is_up() or not self.running.alive, f"{self.name} is up", 20)
        code = self.running.terminate()
        if code != 0:
            self.endings.append(f"{self.name} answered SIGTERM with exit code {code}: {self.running.log()[-1500:]}")

    def signal(self, number: int) -> None:
        """Send a signal, if it is there, not frozen, and past its start: what Python does before is not ours."""
        if self.reachable and self.running.alive and self.is_up():
            self.running.process.send_signal(number)

    def get(self, path: str) -> str:
        """What it answers; the file that says where it listens may be gone since. Raises OSError."""
        if not self.is_up():
            raise ConnectionError(f"{self.name} is not up")
        try:
            return self._answer(path)
        except http.client.HTTPException as error:  # it was killed in the middle of it
            raise ConnectionError(str(error)) from error

    def _answer(self, path: str) -> str:
        try:
            with urllib.request.urlopen(self._url + path, timeout=10) as answer:  # noqa: S310 - our own process
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def is_up(self) -> bool:
        """Whether it is past its start."""
        path = self.running.folder / "pids" / f"{self.running.stem}.json"
        with suppress(OSError, ValueError):
            said = json.loads(path.read_text())
            if said["pid"] == self.pid:
                self._url = said["ops_url"]
        return bool(self._url)

    def _start(self) -> None:
        _, _, number = self.name.partition("-")
        is_worker = self.name.startswith("worker")
        self._url = ""
        self.running: Running = self._place.worker(int(number or 1)) if is_worker else self._place.producer()

    def _kill(self) -> None:
        self.running.kill()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.running.process.send_signal(number)


class Stack:
    """Everything that a fault can reach."""

    def __init__(self, schedule: Schedule, folder: Path, stack: ExitStack) -> None:
        self.schedule = schedule
        self.folder = folder
        self.here = folder / "here"
        self.data = self.here / "data"
        self.redis = stack.enter_context(closing(FaultyRedis(folder / "redis")))
        self.webhook: WebhookSink = stack.enter_context(running_webhook())
        self.function = FunctionSink(folder / "function")
        self.sandbox: RunningSandbox = stack.enter_context(running_sandbox(SandboxSettings()))
        self.dovecot: FaultyDovecot | None = None
        self.postgres: FaultyPostgres | None = None
        if schedule.mailbox == "dovecot":
            self.dovecot = stack.enter_context(closing(FaultyDovecot()))
        if schedule.database == "postgresql":
            self.postgres = stack.enter_context(closing(FaultyPostgres()))
        self.networks = self._networks()
        for network in self.networks.values():
            stack.enter_context(closing(network))
        self.database_url = self.postgres.url() if self.postgres else f"sqlite:///{self.data}/email_ingestion.db"
        if self.has_poison:
            poisoned_python(folder / "site")
        self.place = stack.enter_context(place(self.here, self._redis_url(), **self._settings()))
        self.worker_place = stack.enter_context(closing(Place(self.here, dict(self.place.environment))))
        self.clock = SettableClock(folder) if compiler() else None
        self.worker_place.set(PYTHONPATH=self._python_path())
        if self.clock:
            self.worker_place.environment |= self.clock.environment
        self.mail = Mail(self)
        self.doubtful: list[tuple[float, float]] = []  # in which a hand-over may be repeated, monotonic
        self._unwritable: list[float] = []  # since when each fault lasts that lets nobody write into the database
        self._logs = Logs((self.here,))
        self.processes: dict[str, OurProcess] = {}

    def start(self) -> None:
        """Start our processes and wait until they answer."""
        self.processes["producer"] = OurProcess("producer", self.place)
        for number in range(1, self.schedule.workers + 1):
            name = "worker" if number == 1 else f"worker-{number}"
            self.processes[name] = OurProcess(name, self.worker_place)
        for process in self.processes.values():
            try:
                until(lambda: process.is_up() or not process.running.alive, f"{process.name} is up", START_SECONDS)  # noqa: B023 - asked at once
            except AssertionError as error:
                raise NotStarted(str(error)) from error

    @property
    def has_poison(self) -> bool:
        """Whether some mail ends the parser, so that there are dead letters with a cause of their own."""
        return any(strike.kind == "dead_letters" for strike in self.schedule.strikes)

    @property
    def workers(self) -> list[OurProcess]:
        """Those of our processes that are workers."""
        return [process for name, process in self.processes.items() if name != "producer"]

    def doubt(self, begin: float, end: float) -> None:
        """Remember a time in which what a sink took may be handed over once more."""
        self.doubtful.append((begin, end))

    @contextmanager
    def unwritable(self) -> Iterator[None]:
        """A fault in which nothing can be written into the database: what a sink took waits to be marked."""
        since = time.monotonic()
        self._unwritable.append(since)
        try:
            yield
        finally:
            self._unwritable.remove(since)
            if time.monotonic() - since > LEASE / 2:  # a lease that nobody could extend may be another worker's by now
                self.doubt(since, time.monotonic() + 1)

    def doubt_unmarked(self, end: float) -> None:
        """Remember that what is not marked by now, and what a sink takes until `end`, may be handed over once more."""
        self.doubt(min([time.monotonic(), *self._unwritable]), end)

    def supervise(self) -> None:
        """Start again what ended by itself."""
        for process in self.processes.values():
            process.supervise()

    def command(self, *words: str, seconds: float = 60.0) -> Any:
        """Run `email-ingestion` with these words."""
        return self.place.run("-m", "email_ingestion", *words, seconds=seconds)

    def alarms(self) -> list[str]:
        """Return what the logs say since the last call that must never be said."""
        said = []
        # Whoever was stopped for so long finds that his loops have not turned, and says so.
        frozen = {strike.kind.partition("_")[0] for strike in self.schedule.strikes if strike.kind.endswith("_frozen")}
        for record in self._logs.fresh():
            if record.get("event") == "loop_stalled" and record["component"] in frozen:
                continue
            if record.get("event") in ALARMS:
                words = record.get("message") or str(record.get("exception", ""))[-1500:]
                said.append(f"{record['component']}: {record['event']}: {record.get('error_type', '')} {words}")
        return said

    def rows(self, query: str) -> list[tuple[Any, ...]] | None:
        """What the database says on the direct way; None while it does not answer."""
        if self.postgres:
            url, options = self.database_url, {"connect_timeout": 3, "options": "-c statement_timeout=5000"}
        else:  # whoever looks must not make the file that a fault has removed
            url, options = f"sqlite:///file:{self.data}/email_ingestion.db?mode=rw&uri=true", {"timeout": 5}
        engine = create_engine(url, poolclass=NullPool, connect_args=options)
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.exec_driver_sql(query)]
        except SQLAlchemyError:
            return None

    # -- what it is made of

    def _networks(self) -> dict[str, Proxy]:
        imap = self.dovecot.server.imap_port if self.dovecot else self.sandbox.imap_port
        made = {"redis": Proxy(self.redis.server.port), "imap": Proxy(imap), "webhook": Proxy(self.webhook.port)}
        if self.postgres:
            made["postgres"] = Proxy(self.postgres.port)
        return made

    def _redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.networks['redis'].port}/0"

    def _settings(self) -> dict[str, object]:
        made = gmail_settings(self.sandbox, self.folder)
        if self.dovecot:
            made |= {"IMAP_AUTH": "password", "IMAP_USER": USER, "IMAP_PASSWORD": PASSWORD}
        if self.postgres:
            made["DATABASE_URL"] = self.postgres.url(self.networks["postgres"].port)
        else:
            made["DATABASE_URL"] = self.database_url
        return (
            made
            | {
                "IMAP_PORT": self.networks["imap"].port,
                "BLOB_URL": f"file:{self.data}/blobs",
                "SINKS": f"database,webhook,python:{FunctionSink.module}:take",
                "WEBHOOK_URL": f"http://127.0.0.1:{self.networks['webhook'].port}/hook",
                "WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "LOG_LEVEL": "DEBUG",
            }
            | PACE
        )

    def _python_path(self) -> str:
        inherited = self.place.environment.get("PYTHONPATH", "")
        return ":".join(filter(None, [str(self.folder / "function"), str(self.folder / "site"), inherited]))


class Mail:
    """The mail of a schedule: what waits to arrive, what is on the server, and where it went."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        schedule = stack.schedule
        rng = Random(f"letters {schedule.seed}")  # noqa: S311 - repeatable
        letters = compose(rng, schedule.messages * 2)
        if stack.dovecot:  # which sends line ends as CR LF, whatever they were, and NUL as 0x80 at times
            letters = [
                raw
                for raw in letters
                if b"\0" not in raw and raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n")
            ]
        poison = [POISON % number for number in range(POISONED if stack.has_poison else 0)]
        self._bag = deque([*poison, *letters[: schedule.messages]])
        self.poison: set[str] = set()  # identities of mail that is to end as a dead letter
        self.given: dict[str, str] = {}  # by identity: SHA-256 of all that has ever been on the server

    def arrive(self, count: int) -> None:
        """Deliver so many more messages, unless the server is away: then they come with the next ones."""
        stack = self._stack
        if stack.dovecot and not stack.dovecot.reachable:
            return
        for _ in range(min(count, len(self._bag))):
            raw = self._bag.popleft()
            digest = hashlib.sha256(raw).hexdigest()
            if stack.dovecot:
                stack.dovecot.deliver(raw)
                identity = email_id("default", None, digest)
            else:
                identity = email_id("default", stack.sandbox.deliver(raw).message.msgid, "")
            self.given[identity] = digest
            if raw.startswith(POISON[:20]):
                self.poison.add(identity)

    @property
    def waiting(self) -> int:
        """How many messages have not arrived yet."""
        return len(self._bag)

    def on_server(self) -> dict[str, str]:
        """The SHA-256 of each message on the server now, by identity."""
        if self._stack.dovecot:
            digests = [hashlib.sha256(raw).hexdigest() for raw, _ in self._stack.dovecot.messages()]
            return {email_id("default", None, digest): digest for digest in digests}
        ours = [email_id("default", message.msgid, "") for message in self._stack.sandbox.messages()]
        return {identity: self.given[identity] for identity in ours if identity in self.given}

    def seen(self) -> list[str]:
        """Those that somebody has marked as read."""
        if self._stack.dovecot:
            return [hashlib.sha256(raw).hexdigest() for raw, seen in self._stack.dovecot.messages() if seen]
        return [str(message.msgid) for message in self._stack.sandbox.messages() if "\\Seen" in message.flags]

    def wanted(self) -> set[str]:
        """What is on the server and must be in the database and at each sink at the end."""
        return self.on_server().keys() - self.poison

    def delivered(self) -> int | None:
        """How many of those the database has; None while it cannot be asked."""
        rows = self._stack.rows("SELECT email_id FROM emails")
        return None if rows is None else len({row[0] for row in rows} & self.wanted())

    def queued(self) -> int | None:
        """How many entries the stream has; None while it cannot be asked."""
        try:
            with self._stack.redis.client() as client:
                return int(client.xlen(KEYS.stream))
        except redis.RedisError:
            return None

    def look(self) -> Found:
        """Read everything back."""
        with self._stack.redis.client() as client:
            dead, queued = (list(self._entries(client, key)) for key in (KEYS.dlq, KEYS.stream))
        database = list(self._database())
        dead += [copy for copy in self._exported() if copy not in dead]
        whereabouts = {copy.email_id for copy in (*database, *dead, *queued)}
        gone = {identity: self.given[identity] for identity in self.given.keys() & whereabouts}
        return Found(mailbox=gone | self.on_server(), seen=self.seen(), database=database, dead=dead, queued=queued)

    def _exported(self) -> set[Copy]:
        """What was purged, and lies in a file. Of what was replayed meanwhile the file is a second copy, not an end."""
        files = (self._stack.here / "backups").glob("*dead*")
        exported = {identity for path in files for identity in verify_file(path).letters.values() if identity}
        return {Copy(identity, self.given[identity]) for identity in exported if identity in self.poison}

    def _database(self) -> Iterator[Copy]:
        rows = self._stack.rows("SELECT email_id, raw_ref, sha256 FROM emails")
        if rows is None:
            raise TimeoutError("the database does not answer, though every fault is over")
        blobs = open_blobs(f"file:{self._stack.data}/blobs")
        with closing(open_ledger(self._stack.database_url)) as ledger:
            for identity, ref, stated in rows:
                try:
                    actual = hashlib.sha256(content_of(ref, ledger, blobs)).hexdigest()
                except EmailIngestionError as error:
                    actual = f"unreadable: {error}"
                yield Copy(identity, actual if actual == stated else f"stated {stated}, is {actual}")

    def _entries(self, client: redis.Redis, key: str) -> Iterator[Copy]:
        blobs = open_blobs(f"file:{self._stack.data}/blobs")
        for _, fields in client.xrange(key):
            message = decode(fields)
            try:
                raw = message.raw if message.raw is not None else blobs.get(message.raw_ref or "")
                digest = hashlib.sha256(raw).hexdigest()
            except EmailIngestionError as error:
                digest = f"unreadable: {error}"
            yield Copy(message.envelope.email_id, digest)

    def taken(self) -> Mapping[str, dict[str, list[float]]]:
        """When each sink took each message."""
        return {"webhook": self._stack.webhook.taken(), "function": self._stack.function.taken()}

    def repeated(self) -> tuple[Counter[str], list[str]]:
        """How many hand-overs were repeated at each sink, and those that no promise covers."""
        counted: Counter[str] = Counter()
        wrong = []
        for sink, taken in self.taken().items():
            for identity, times in taken.items():
                counted[sink] += len(times) - 1
                wrong += [f"{sink} took {identity} again" for first in sorted(times)[:-1] if not self._covered(first)]
        return counted, wrong

    def _covered(self, taken_at: float) -> bool:
        return any(begin <= taken_at + UNMARKED_SECONDS and taken_at <= end for begin, end in self._stack.doubtful)


@contextmanager
def running_stack(schedule: Schedule, folder: Path) -> Iterator[Stack]:
    """Bring everything up, with an empty mailbox."""
    with ExitStack() as stack:
        made = Stack(schedule, folder, stack)
        made.start()
        yield made


SIGNALS = {"hup": signal.SIGHUP, "usr2": signal.SIGUSR2, "alrm": signal.SIGALRM, "prof": signal.SIGPROF}
