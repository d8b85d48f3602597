"""A real redis-server of one's own, with the faults tests need."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.servers.missing import program
from tests.servers.ports import free_port, wait_for_port


class RedisServer:
    """Keeps its port and its data over `kill` and `start`."""

    def __init__(
        self, directory: Path, *, appendonly: bool = True, password: str | None = None, appendfsync: str = "no"
    ) -> None:
        """With `everysec`, Redis keeps answers' writes to itself while a slow disk syncs: `kill` would lose them."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.password = password
        self.environment = dict(os.environ)
        self._options = ["--appendonly", "yes" if appendonly else "no", "--appendfsync", appendfsync]
        if password:
            self._options += ["--requirepass", password]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def start(self) -> None:
        command = [program("redis-server", "redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += [
            "--dir",
            str(self.directory),
            "--save",
            "",
            "--hz",
            "100",
            "--enable-protected-configs",
            "yes",
            "--loglevel",
            "warning",
        ]
        process = self._process = subprocess.Popen(
            [*command, *self._options], env=self.environment, stdout=subprocess.DEVNULL
        )
        wait_for_port(self.port, lambda: process.poll() is None)
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except redis.BusyLoadingError:
                    time.sleep(0.01)
                else:
                    return

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Remove the data of a server that does not run."""
        for path in sorted(self.directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def save_to(self, folder: Path) -> None:
        """Copy the data of the running server; no rewrite of the AOF may fall into the copying."""
        shutil.rmtree(folder, ignore_errors=True)
        with self.client() as client:
            client.config_set("auto-aof-rewrite-percentage", 0)
            shutil.copytree(self.directory, folder)
            client.config_set("auto-aof-rewrite-percentage", 100)

    def restore_from(self, folder: Path) -> None:
        """Put a copy in the place of the data of a server that does not run."""
        self.forget()
        shutil.copytree(folder, self.directory, dirs_exist_ok=True)

    def aof_bytes(self) -> int:
        """How long the AOF is that is being written."""
        return self._aof().stat().st_size

    def cut_aof(self, size: int) -> None:
        """Shorten the AOF of a server that does not run, as a power cut does."""
        os.truncate(self._aof(), size)

    def rewrite_aof(self) -> None:
        """Write a new AOF from what is in memory."""
        with self.client() as client:
            client.bgrewriteaof()
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.01)

    def fail_snapshots(self) -> None:
        """Make it refuse writes with MISCONF: snapshots are on, and one has failed."""
        with self.client() as client:
            client.set("unsaved", "x")
            client.config_set("save", "1 1")
            client.config_set("dbfilename", "none.rdb")
            client.config_set("dir", "/proc")
            client.bgsave()
            # INFO says that none is running before it says how the last one ended.
            while client.info("persistence")["rdb_last_bgsave_status"] != "err":
                time.sleep(0.01)

    def _aof(self) -> Path:
        return max((self.directory / "appendonlydir").glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[2]))


@contextmanager
def running_redis(directory: Path, **options) -> Iterator[RedisServer]:
    server = RedisServer(directory, **options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
