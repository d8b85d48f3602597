"""The databases that the matrix breaks: SQLite in the folder of the processes, or PostgreSQL servers of its own.

A PostgreSQL is reached through a relay, as through a virtual address: which server answers there may change.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg

from bench.crash_matrix.relay import Relay, relay_to
from tests.servers.ports import free_port
from tests.servers.postgres import binaries
from tests.servers.processes import ledger_rows

SQLITE, POSTGRESQL = KINDS = ("sqlite", "postgresql")
ASK_SECONDS = 5
USER = "postgres"
OPTIONS = "-c listen_addresses=127.0.0.1 -c max_connections=60 -c fsync=on -c wal_level=replica -c hot_standby=on"


class Unanswered(Exception):
    """The database cannot be asked now."""


class Database(Protocol):
    """What a world knows of its database."""

    kind: str
    url: str

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what it holds, nothing while it has no tables; raises Unanswered."""


class Sqlite:
    """The file in the folder of the processes."""

    kind = SQLITE

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "data" / "email_ingestion.db"
        self.url = f"sqlite:///{self.path}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what it holds, also while it is locked."""
        return ledger_rows(self._folder, query)


class PostgresServer:
    """One server with a data directory of its own, which it keeps over `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.data = folder / "data"
        self.user = _user()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        if self.user:
            shutil.chown(folder, self.user)

    def initialize(self) -> None:
        """Make an empty database cluster."""
        self.run("initdb", "-D", self.data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")

    def copy_of(self, other: PostgresServer) -> None:
        """Become a standby of a server that runs."""
        source = ("-h", "127.0.0.1", "-p", other.port, "-U", USER)
        self.run("pg_basebackup", *source, "-D", self.data, "-R", "-X", "stream", "-c", "fast")

    def start(self) -> None:
        """Start, and return when it answers."""
        words = [str(_binary("postgres")), "-D", str(self.data), "-k", str(self.folder), "-p", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*words, *OPTIONS.split()], user=self.user, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            with suppress(Unanswered):
                self.rows("SELECT 1")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def promote(self) -> None:
        """Make a standby the primary."""
        self.run("pg_ctl", "-D", self.data, "-w", "promote")

    def kill(self) -> None:
        """SIGKILL for all of its processes, as when its machine dies."""
        if self._process:
            for pid in self._family():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it as an operator does who does not wait for clients."""
        if self._process:
            self.signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes, the postmaster last; with SIGSTOP it is frozen."""
        for pid in reversed(self._family()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _family(self) -> list[int]:
        assert self._process  # noqa: S101 - the caller looked
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask it directly."""
        try:
            with psycopg.connect(
                host="127.0.0.1",
                port=self.port,
                user=USER,
                dbname="postgres",
                connect_timeout=ASK_SECONDS,
                autocommit=True,
                options=f"-c statement_timeout={ASK_SECONDS}s",
            ) as connection:
                made = connection.execute(query)
                return made.fetchall() if made.description else []
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return []  # the worker is about to make it
        except psycopg.Error as error:
            raise Unanswered(str(error)) from error

    def run(self, *words: object) -> None:
        """Run one of PostgreSQL's programs."""
        program, *options = map(str, words)
        done = subprocess.run(
            [str(_binary(program)), *options], user=self.user, cwd="/", capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise AssertionError(f"{program}: {done.stdout[-500:]} {done.stderr[-1500:]}")


class Postgres:
    """The address of a PostgreSQL, behind which `server` answers."""

    kind = POSTGRESQL

    def __init__(self, folder: Path, server: PostgresServer, relay: Relay) -> None:
        self.folder = folder
        self.server = server
        self.relay = relay
        self.url = f"postgresql+psycopg://{USER}@127.0.0.1:{relay.port}/postgres"
        self._number = 0

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the server that answers now, past the relay."""
        return self.server.rows(query)

    def close(self) -> None:
        """Stop whichever server answers."""
        self.server.stop()

    def standby(self) -> PostgresServer:
        """Make a standby of the server; its owner stops it."""
        self._number += 1
        made = PostgresServer(self.folder / f"standby-{self._number}")
        made.copy_of(self.server)
        made.start()
        return made

    def fail_over_to(self, heir: PostgresServer) -> None:
        """The server is dead, and the standby is promoted and answers at the address."""
        self.server.kill()
        self.relay.refuse()
        heir.promote()
        shutil.rmtree(self.server.folder, ignore_errors=True)
        self.server = heir
        self.relay.target = heir.port
        self.relay.mend()


@contextmanager
def running_database(kind: str, folder: Path) -> Iterator[Database]:
    """Bring a database up; `folder` is that of the processes."""
    if kind == SQLITE:
        yield Sqlite(folder)
        return
    with ExitStack() as stack:
        # Not below `folder`: another user must reach it.
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True)))
        place.chmod(0o755)
        server = PostgresServer(place / "primary")
        server.initialize()
        server.start()
        relay = stack.enter_context(relay_to(server.port))
        made = Postgres(place, server, relay)
        stack.callback(made.close)
        yield made


def missing(kind: str) -> str:
    """Say why this database cannot be run here; empty where it can."""
    if kind == POSTGRESQL and binaries() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    return ""


def _binary(name: str) -> Path:
    where = binaries()
    assert where, missing(POSTGRESQL)  # noqa: S101 - the caller looked
    return where / name


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - not on Windows

    return USER if USER in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
