"""Whole processes on Sentinel and on a Cluster: servers die, slots move, nothing is lost, nobody restarts."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from email_ingestion.settings import RedisAddress
from email_ingestion.stream.keys import Keys, partition_keys, partition_of
from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.processes import Place, Running, gmail_settings, place, token_of, until
from tests.servers.redis_fleet import PASSWORD, ClusterFleet, SentinelFleet, Server, running

PARTITIONS = 6
ACCOUNTS = 8
PER_SECOND = 5
WRITING_AGAIN = 3.0  # seconds after the promotion
PATIENCE = 120.0
ALL_MAIL = "[Gmail]/All Mail"


@dataclass
class Load:
    """Mail that keeps coming, to a sandbox that every account reads."""

    sandbox: RunningSandbox
    sent: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def coming(self) -> Iterator[None]:
        thread = threading.Thread(target=self._deliver, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _deliver(self) -> None:
        while not self._stop.wait(1 / PER_SECOND):
            self.sandbox.deliver(b"Subject: letter %d\r\n\r\nhello %d\r\n" % (self.sent, self.sent))
            self.sent += 1


@dataclass
class System:
    """A producer and two workers under load."""

    here: Place
    load: Load
    processes: list[Running]

    def rows(self) -> list[tuple]:
        return self.here.rows("SELECT email_id FROM emails")

    def flows(self) -> None:
        """Return when mail that came from now on is in the database."""
        before = len(self.rows())
        until(lambda: len(self.rows()) > before + ACCOUNTS, "mail flows", PATIENCE)

    def prove_complete(self) -> None:
        """Everything is in the database once, nothing is left anywhere, and all processes are the first ones."""
        expected = self.load.sent * ACCOUNTS
        self._reconcile()  # closes what a failover may have lost
        until(lambda: len(self.rows()) >= expected, f"all {expected} messages are in the database", PATIENCE)
        assert set(Counter(self.rows()).values()) == {1}
        assert len(self.rows()) == expected
        assert all(each.alive for each in self.processes)
        until(lambda: self.processes[0].status()["stream"]["depth"] == 0, "the stream is empty", PATIENCE)
        assert self.processes[0].status()["dlq"]["depth"] == 0
        assert self._reconcile() == 0
        assert len(self.rows()) == expected
        sys.stderr.write(f"\n{expected} messages of {ACCOUNTS} accounts, each in the database once\n")

    def _reconcile(self) -> int:
        return self.here.run("-m", "email_ingestion", "reconcile", "--repair", seconds=PATIENCE).returncode


@contextmanager
def system(folder: Path, address: RedisAddress) -> Iterator[System]:
    credentials = Credentials(connection_limit=4 * ACCOUNTS)
    nodes = ",".join(f"{host}:{port}" for host, port in address.nodes)
    settings: dict[str, object] = {"REDIS_MODE": address.mode, "REDIS_PARTITIONS": address.partitions}
    settings["REDIS_PASSWORD"] = PASSWORD
    if address.mode == "sentinel":
        settings |= {"REDIS_SENTINELS": nodes, "REDIS_SENTINEL_MASTER": address.master}
        settings["REDIS_SENTINEL_PASSWORD"] = PASSWORD
    else:
        settings |= {"REDIS_CLUSTER_NODES": nodes}
    with running_sandbox(SandboxSettings(credentials=credentials)) as sandbox:
        folder = folder / "here"
        found = gmail_settings(sandbox, folder) | settings | {"WORKER_LEASE_SECONDS": 5, "IMAP_POLL_SECONDS": 2}
        with place(folder, "", **found) as here:
            (folder / "config").mkdir()
            tables = []
            for number in range(ACCOUNTS):
                token = folder / f"token-{number}.json"
                token.write_text(json.dumps(token_of(sandbox)))
                tables.append(f'[[accounts]]\nname = "a{number}"\ngoogle_token_file = "{token}"\n')
            (folder / "config" / "settings.toml").write_text("\n".join(tables))
            load = Load(sandbox)
            made = System(here, load, [here.producer(), here.worker(1), here.worker(2)])
            with load.coming():
                made.flows()
                yield made
            made.prove_complete()


BY_PRODUCER = ("xadd",)
BY_WORKERS = ("xreadgroup", "xclaim", "xack")


def _calls(client: redis.Redis, commands: tuple[str, ...]) -> int:
    found = client.info("commandstats")
    return sum(found[name]["calls"] for name in (f"cmdstat_{each}" for each in commands) if name in found)


def _writing_again(heir: Server) -> tuple[float, float]:
    """Seconds from now until producer and workers write to it; what the master before sent it has come."""
    started = time.monotonic()
    times: list[float] = []
    with heir.client() as client:
        for commands in (BY_PRODUCER, BY_WORKERS):
            before = _calls(client, commands)
            until(lambda before=before, them=commands: _calls(client, them) > before, "it is written to", PATIENCE)
            times.append(time.monotonic() - started)
    return times[0], times[1]


@pytest.mark.soak
def test_sentinel_promotes_a_replica_and_everybody_goes_on(tmp_path: Path):
    with running(SentinelFleet(tmp_path / "redis")) as fleet, system(tmp_path, fleet.address()) as run:
        for _ in range(2):
            gone = fleet.master()
            gone.kill()
            heir = fleet.await_promotion(gone)
            appended, taken = _writing_again(heir)
            sys.stderr.write(f"\nafter the promotion: appended after {appended:.2f} s, taken after {taken:.2f} s\n")
            assert max(appended, taken) <= WRITING_AGAIN
            run.flows()
            gone.start()  # the sentinels make it a replica
            fleet.await_replica(gone, heir)


def _read_up_to(server: Server) -> int:
    """The sum of the cursors."""
    with server.client() as client:
        keys = [Keys().cursor(f"a{number}", mailbox) for number in range(ACCOUNTS) for mailbox in (ALL_MAIL, "INBOX")]
        return sum(int(client.hget(key, "uid") or 0) for key in keys)


@pytest.mark.soak
def test_what_a_failover_lost_comes_again(tmp_path: Path):
    with running(SentinelFleet(tmp_path / "redis")) as fleet, system(tmp_path, fleet.address()) as run:
        gone, heir = fleet.servers
        heir.fall_behind()
        until(lambda: _read_up_to(heir) < _read_up_to(gone), "the master alone knows of some", PATIENCE)
        assert _read_up_to(heir)
        gone.kill()
        fleet.await_promotion(gone)
        run.flows()


@pytest.mark.soak
def test_a_cluster_loses_masters_and_moves_slots_and_nothing_is_lost(tmp_path: Path):
    with running(ClusterFleet(tmp_path / "redis")) as fleet, system(tmp_path, fleet.address(PARTITIONS)) as run:
        tags = [keys.tag for keys in partition_keys(PARTITIONS)]
        used = {partition_of(f"a{number}", PARTITIONS) for number in range(ACCOUNTS)}
        assert len({key_slot(tags[each].encode()) * 3 // 16384 for each in used}) == 3, "mail on every master"
        for partition in used:
            slot = key_slot(tags[partition].encode())
            here = slot * 3 // 16384
            fleet.move_slot(slot, fleet.servers[here], fleet.servers[(here + 1) % 3])
        run.flows()
        for master in fleet.servers[:3]:
            heir = fleet.replica_of(master)
            master.kill()
            fleet.await_promotion(heir)
            started = time.monotonic()
            run.flows()
            sys.stderr.write(f"\nafter a promotion: mail of all flows after {time.monotonic() - started:.2f} s\n")
            master.start()
            fleet.await_replica(master)
