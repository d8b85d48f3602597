"""Redis, PostgreSQL and Dovecot on which several faults may last at once: each fault counts, the last to end mends.

A server is down while anything keeps it down, else frozen while anything freezes it; what needs a client (refused
commands, memory limits) is laid on whenever it can be reached.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import redis
from sqlalchemy import URL, create_engine

from tests.servers.dovecot import DovecotServer
from tests.servers.missing import program
from tests.servers.ports import free_port, wait_for_port
from tests.servers.postgres import binaries
from tests.servers.redis import RedisServer

DOWN, FROZEN = "down", "frozen"
START_SECONDS = 30.0
STARTS = 5


class Troubled:
    """A server with the faults that last. Subclasses say how it is started, killed and told."""

    def __init__(self) -> None:
        self.lasting: Counter[str] = Counter()
        self._up = True
        self._still = False

    def begin(self, fault: str) -> None:
        """Let a fault last."""
        self.lasting[fault] += 1
        self.apply()

    def end(self, fault: str) -> None:
        """Let it end, unless another one like it lasts."""
        self.lasting[fault] -= 1
        self.apply()

    def has(self, fault: str) -> bool:
        """Whether one like this lasts."""
        return self.lasting[fault] > 0

    @property
    def reachable(self) -> bool:
        """Whether it runs and answers."""
        return self._up and not self._still

    def apply(self) -> None:
        """Make it what the lasting faults want it to be."""
        if self.has(DOWN):
            if self._up:
                self._kill()
            self._up = self._still = False
            return
        if not self._up:
            self._start()
            self._up = True
        if self._still and not self.has(FROZEN):
            self._signal(signal.SIGCONT)
            self._still = False
        if not self._still:
            self._tell()
        if not self._still and self.has(FROZEN):
            self._signal(signal.SIGSTOP)
            self._still = True

    def replace_data(self, change: Callable[[], None]) -> None:
        """Kill it, change its data, and start it again unless something keeps it down."""
        self.begin(DOWN)
        try:
            change()
        finally:
            self.end(DOWN)

    def _kill(self) -> None:
        raise NotImplementedError

    def _start(self) -> None:
        raise NotImplementedError

    def _signal(self, number: int) -> None:
        raise NotImplementedError

    def _tell(self) -> None:
        """Lay on what needs a client."""


class FaultyRedis(Troubled):
    """A Redis with AOF; refuses `COMMANDS`, is read-only or out of memory while such faults last."""

    COMMANDS = ("xack", "xadd", "xclaim", "xpending", "xdel", "hset", "evalsha", "xreadgroup")
    READONLY, OUT_OF_MEMORY = "readonly", "oom"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.server = RedisServer(folder, appendfsync="everysec")
        self.server.start()

    def client(self) -> redis.Redis:
        """A client on the direct way; it gives up after seconds."""
        return redis.Redis(port=self.server.port, socket_timeout=5, socket_connect_timeout=5)

    def close(self) -> None:
        """End it for good."""
        with suppress(ProcessLookupError):
            self.server.thaw()
        self.server.kill()

    def _kill(self) -> None:
        self.server.kill()

    def _start(self) -> None:
        self.server.start()

    def _signal(self, number: int) -> None:
        self.server.freeze() if number == signal.SIGSTOP else self.server.thaw()

    def _tell(self) -> None:
        refused = [command for command in self.COMMANDS if self.has(f"no {command}")]
        with self.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "+@all", *(f"-{command}" for command in refused))
            client.config_set("maxmemory", 1 if self.has(self.OUT_OF_MEMORY) else 0)
            if self.has(self.READONLY):
                client.execute_command("REPLICAOF", "127.0.0.1", "1")  # nobody is there: it keeps what it has
            else:
                client.execute_command("REPLICAOF", "NO", "ONE")


class FaultyPostgres(Troubled):
    """A PostgreSQL on a TCP port, in a folder of its own."""

    READONLY = "readonly"

    def __init__(self) -> None:
        super().__init__()
        where = binaries()
        if where is None:
            raise FileNotFoundError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        self._bin = where
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.data = self.folder / "data"
        self.port = free_port()
        self._user = _owner(self.folder, "postgres")
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        self._start()

    def url(self, port: int | None = None, **query: str) -> str:
        """Return SQLAlchemy's address, on the direct way or by another port."""
        made = URL.create("postgresql+psycopg", "postgres", None, "127.0.0.1", port or self.port, "postgres", query)
        return made.render_as_string(hide_password=False)

    def execute(self, *statements: str) -> None:
        """Run statements on the direct way."""
        engine = create_engine(self.url(connect_timeout="5"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def copy_to(self, folder: Path) -> None:
        """Keep what it holds now; it is started again for that."""
        self.replace_data(lambda: shutil.copytree(self.data, folder, ignore_dangling_symlinks=True))

    def restore_from(self, folder: Path) -> None:
        """Let it hold what it held."""

        def change() -> None:
            shutil.rmtree(self.data)
            shutil.copytree(folder, self.data)
            self.data.chmod(0o700)
            _owner(self.data, "postgres")

        self.replace_data(change)

    def close(self) -> None:
        """End it for good."""
        self._kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self) -> None:
        for process in self._processes():
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(self._processes(), timeout=10)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _start(self) -> None:
        options = f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=60"
        end = time.monotonic() + START_SECONDS
        while True:  # shared memory of the one before may not be gone yet
            try:
                self._run("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", options, "start")
            except subprocess.CalledProcessError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
            else:
                return

    def _signal(self, number: int) -> None:
        for process in self._processes():
            with suppress(psutil.Error):
                process.send_signal(number)

    def _tell(self) -> None:
        value = "on" if self.has(self.READONLY) else "off"
        self.execute(
            f"ALTER SYSTEM SET default_transaction_read_only = {value}",
            "SELECT pg_reload_conf()",
        )

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if str(self.data) in (process.info["cmdline"] or ()):
                with suppress(psutil.NoSuchProcess):  # it has ended since
                    found += [process, *process.children(recursive=True)]
        return found

    def _run(self, program: str, *options: object) -> None:
        command = [str(self._bin / program), *map(str, options)]
        subprocess.run(
            command, check=True, user=self._user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )


class FaultyDovecot(Troubled):
    """A Dovecot with a Maildir, into which mail is put as it is."""

    def __init__(self) -> None:
        super().__init__()
        # Unix socket paths are limited to about 100 bytes.
        folder = Path(tempfile.mkdtemp(prefix="dv-", dir="/tmp"))
        folder.chmod(0o755)
        self._number = 0
        self.server = _Dovecot(folder)
        self.server.start()

    def deliver(self, raw: bytes) -> None:
        """Put a message into the mailbox, as it will be sent."""
        self._number += 1
        name = f"{1767225600 + self._number}.M{self._number}.example"
        path = self.server.maildir / "tmp" / name
        path.write_bytes(raw)
        _owner(path, "nobody")
        path.replace(self.server.maildir / "new" / name)

    def messages(self) -> list[tuple[bytes, bool]]:
        """Return what lies in the mailbox, and whether somebody has read it."""
        found = [*self.server.maildir.glob("new/*"), *self.server.maildir.glob("cur/*")]
        return [(path.read_bytes(), "S" in path.name.partition(":2,")[2]) for path in found]

    def copy_to(self, folder: Path) -> None:
        """Keep the mailbox as it is now, its UIDs included."""
        self.replace_data(lambda: shutil.copytree(self.server.maildir, folder))

    def restore_from(self, folder: Path) -> None:
        """Give back what it held, under the same UIDVALIDITY; what came since is gone and its UIDs are given anew."""

        def change() -> None:
            shutil.rmtree(self.server.maildir)
            shutil.copytree(folder, self.server.maildir)
            _owner(self.server.maildir, "nobody")

        self.replace_data(change)

    def close(self) -> None:
        """End it for good."""
        self._kill()
        shutil.rmtree(self.server.directory, ignore_errors=True)

    def _kill(self) -> None:
        processes = self.server.processes()
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        self.server.reap()

    def _start(self) -> None:
        self.server.start()

    def _signal(self, number: int) -> None:
        for process in self.server.processes():
            with suppress(psutil.Error):
                process.send_signal(number)


class _Dovecot(DovecotServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0, "", prefix=False, maildir={})
        self._made = False

    def start(self) -> None:
        if not self._made:
            super().start()
            self._made = True
            return
        command = [program("dovecot", "dovecot-imapd"), "-F", "-c", str(self.directory / "dovecot.conf")]
        for _ in range(STARTS):  # it ends when the one before has not quite let go of its ports and sockets
            for path in (self.directory / "run").rglob("*.pid"):
                path.unlink()
            process = self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            with suppress(AssertionError, subprocess.TimeoutExpired):
                wait_for_port(self.imap_port, lambda started=process: started.poll() is None)
                process.wait(0.5)
            if process.poll() is None:
                return
        raise OSError("Dovecot does not start again")

    def processes(self) -> list[psutil.Process]:
        assert self._process is not None  # noqa: S101 - it was started
        try:
            master = psutil.Process(self._process.pid)
            return [master, *master.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def reap(self) -> None:
        assert self._process is not None  # noqa: S101 - it was started
        self._process.wait(10)


def _owner(path: Path, user: str) -> str | None:
    """Give it to the user under which servers run that refuse to be root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = user if user in known else "nobody"
    group = pwd.getpwnam(user).pw_gid
    for each in (path, *path.rglob("*")):
        os.chown(each, pwd.getpwnam(user).pw_uid, group)
    return user
