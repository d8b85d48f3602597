"""The real producer and worker on scripted IMAP servers (`odd_imap`), and everything an operator sees of them.

def test_…(odd: RunOdd):                               # fixture of tests/acceptance/odd_servers
    with odd(OddImapServer([Mail(ONE), Mail(TWO, instead=[hang_up])])) as stack:
        stack.arrives(ONE)
        stack.reason("UID 2")                          # waits until /ready says so
        assert stack.events("message_quarantined")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.servers.odd_imap import PASSWORD, USER, OddImapServer
from tests.servers.processes import Place, Running, place, until


@dataclass
class OddStack:
    """A place with a producer and a worker; `server` is that of the account `default`."""

    server: OddImapServer
    here: Place
    producer: Running
    worker: Running

    def stored(self, account: str = "default") -> list[str]:
        """The SHA-256 of every message in the ledger, each as often as it is there."""
        rows = self.here.rows("SELECT sha256, email_id FROM emails")
        return sorted(sha256 for sha256, email_id in rows if account in {"default", email_id.partition(":")[0]})

    def arrives(self, *messages: bytes, seconds: float = 60.0) -> None:
        """Wait until the ledger holds these messages, byte by byte; others may be there too."""
        wanted = {hashlib.sha256(each).hexdigest() for each in messages}
        until(lambda: wanted <= set(self.stored()), f"{len(wanted)} messages in the database", seconds)

    def ready(self) -> tuple[str, list[str]]:
        """The producer's readiness and its reasons."""
        answer = json.loads(self.producer.get("/ready")[1])
        return answer["status"], answer["reasons"]

    def reason(self, words: str, seconds: float = 60.0) -> str:
        """Wait until a reason of the producer's readiness holds these words, and return it."""
        return until(lambda: next((each for each in self.ready()[1] if words in each), None), words, seconds)

    def is_ready(self, seconds: float = 60.0) -> None:
        until(lambda: self.ready() == ("ready", []), "the producer is ready", seconds)

    def account(self, name: str = "default") -> dict[str, Any]:
        """What `/status` says of an account."""
        return next(each for each in self.producer.status()["accounts"] if each["name"] == name)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of an event in the producer's log."""
        return [line for line in map(_parsed, self.producer.log().splitlines()) if line.get("event") == name]

    def producer_peak(self) -> float:
        """The most memory that the producer has ever had, in MiB."""
        status = Path(f"/proc/{self.producer.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def producer_cpu(self) -> float:
        """Seconds of CPU time that the producer has used."""
        times = psutil.Process(self.producer.process.pid).cpu_times()
        return times.user + times.system


RunOdd = Callable[..., AbstractContextManager[OddStack]]


@contextmanager
def running_stack(
    folder: Path, redis_url: str, server: OddImapServer, others: dict[str, OddImapServer] | None = None, **settings: Any
) -> Iterator[OddStack]:
    """Start the servers, a producer and a worker. `others` are further accounts by name, each with its server."""
    servers = {"default": server} | (others or {})
    with (
        ExitStack() as running,
        place(folder, redis_url, **odd_settings(server)) as here,
    ):
        for each in servers.values():
            running.enter_context(each)
        here.set(**settings)
        if "IMAP_PASSWORD_FILE" in settings:
            del here.environment["IMAP_PASSWORD"]
        if others:
            (here.folder / "config").mkdir(exist_ok=True)
            tables = [f'[[accounts]]\nname = "{name}"\nimap_port = {each.port}\n' for name, each in servers.items()]
            (here.folder / "config" / "settings.toml").write_text("\n".join(tables))
        stack = OddStack(server, here, here.producer(), here.worker())
        stack.producer.url()
        stack.worker.url()
        yield stack


def odd_settings(server: OddImapServer) -> dict[str, object]:
    return {
        "IMAP_HOST": "127.0.0.1",
        "IMAP_PORT": server.port,
        "IMAP_TLS": "false",
        "IMAP_AUTH": "password",
        "IMAP_USER": USER,
        "IMAP_PASSWORD": PASSWORD,
        "IMAP_POLL_SECONDS": 2,
        "IMAP_TIMEOUT_SECONDS": 5,
    }


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
