"""The drill's redis-server, as an operator has it: a configuration file, a log, a PID file."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import redis

from tests.drills.addresses import Addresses
from tests.servers.processes import ROOT, until

SHIPPED = ROOT / "config" / "redis.conf"
REDIS = """\
bind 127.0.0.1
port {port}
dir {directory}
logfile {log}/redis-server.log
pidfile {directory}/redis.pid
daemonize yes
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
enable-protected-configs yes
enable-debug-command yes
"""


class DrillRedis:
    """Keeps its data over `kill` and `start`."""

    def __init__(self, addresses: Addresses, folder: Path) -> None:
        self.folder = folder
        self.config = addresses.redis_etc / "redis.conf"
        self.port = addresses.redis
        self.login: dict[str, str] = {}  # ours, where the default user may do little
        folder.mkdir(parents=True)
        self.config.write_text(REDIS.format(port=self.port, directory=folder, log=addresses.redis_log))

    def client(self) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5, **self.login)

    def start(self) -> None:
        subprocess.run(["redis-server", str(self.config)], check=True, capture_output=True)
        until(self.answers, "Redis answers")

    def take_users(self, password: str) -> None:
        """Start again with the users of config/redis.conf, and one for the drill itself."""
        shipped = [line for line in SHIPPED.read_text().splitlines() if line.startswith("user ")]
        users = [line.replace(">change-me", f">{password}") for line in shipped]
        with self.config.open("a") as config:
            config.write("\n".join([*users, "user drill on >drill ~* &* +@all", ""]))
        self.signal(signal.SIGTERM)
        until(lambda: self.process() is None, "Redis has stopped")
        self.login = {"username": "drill", "password": "drill"}
        self.start()

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def process(self) -> psutil.Process | None:
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            found = psutil.Process(int((self.folder / "redis.pid").read_text()))
            return found if found.status() != psutil.STATUS_ZOMBIE else None
        return None

    def signal(self, number: int) -> None:
        found = self.process()
        assert found, "Redis does not run"
        found.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        until(lambda: self.process() is None, "Redis is dead")

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
