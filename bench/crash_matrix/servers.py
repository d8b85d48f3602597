"""Faults of PostgreSQL, of Redis under Sentinel or short of memory, and of the way to the mail server."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random

import psycopg
import redis

from bench.crash_matrix.clock import FailingNames
from bench.crash_matrix.databases import USER, Postgres
from bench.crash_matrix.relay import Network, relay_to
from bench.crash_matrix.world import World
from tests.servers.processes import until
from tests.servers.redis_fleet import PASSWORD, SentinelFleet, running

OUTAGE_LONG = 60.0
SLOW_NAME = 12  # seconds until a name is found; systems ask again after five
FROZEN_LONG = 40.0  # longer than any statement may take
SPACE_BYTES = 64 * 1024 * 1024


# -- PostgreSQL


def postgres(world: World) -> Postgres:
    """The database of a world that was brought up with PostgreSQL."""
    assert isinstance(world.database, Postgres)  # noqa: S101 - `databases` of the fault says so
    return world.database


def postgres_killed(world: World, rng: Random) -> None:
    """SIGKILL for all of its processes, and a start."""
    server = postgres(world).server
    for _ in range(2):
        world.more()
        world.instant(rng)
        server.kill()
        world.more()
        time.sleep(rng.uniform(0, 2))
        server.start()


def postgres_frozen(world: World, rng: Random) -> None:
    """It takes connections and answers nothing; or all connections are half-open, and stay so."""
    database = postgres(world)
    world.more()
    world.instant(rng)
    stopped = rng.choice([True, False])
    if stopped:
        database.server.signal(signal.SIGSTOP)
    else:
        database.relay.silence()
    world.more()
    time.sleep(FROZEN_LONG if world.long else rng.uniform(1, 5))
    if stopped:
        database.server.signal(signal.SIGCONT)
    else:
        database.relay.mend(forget=True)


def postgres_failover(world: World, rng: Random) -> None:
    """A standby that has not got the last commits takes over from a dead server."""
    database = postgres(world)
    heir = database.standby()
    world.more()
    until(lambda: (world.delivered() or 0) >= world.arrived, "the standby's mail is delivered")
    heir.stop()
    while rng.random() < 0.7 and world.more():  # noqa: PLR2004 - three portions on average
        world.instant(rng)
    time.sleep(rng.uniform(0, 2))
    database.server.kill()
    world.more()
    heir.start()
    database.fail_over_to(heir)


def postgres_full(world: World, rng: Random) -> None:
    """The disk of its tables has no room left."""
    space = postgres(world).folder / "space"
    for _ in range(2):
        world.more()
        world.instant(rng)
        filler = space / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(8192))
        while world.more():
            time.sleep(rng.uniform(0.2, 1))
        time.sleep(rng.uniform(0.5, 2))
        filler.unlink()


@contextmanager
def small_table_space(world: World) -> Iterator[None]:
    """Let tables be made on a file system of their own."""
    database = postgres(world)
    space = database.folder / "space"
    space.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SPACE_BYTES}", "tmpfs", str(space)], check=True)  # noqa: S607
    try:
        tables = space / "tables"
        tables.mkdir()
        subprocess.run(["chown", database.server.user or "root", str(tables)], check=True)  # noqa: S607
        database.rows(f"CREATE TABLESPACE small LOCATION '{tables}'")
        database.rows(f"ALTER ROLE {USER} SET default_tablespace = 'small'")
        yield
    finally:
        world.muster(())
        database.close()
        subprocess.run(["umount", "--lazy", str(space)], check=True)  # noqa: S607


def mount_refused() -> str:
    """Say why nothing can be mounted; empty where it can."""
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)  # noqa: S607
    return "" if done.returncode == 0 else "nothing can be mounted here"


def tables_locked(world: World, rng: Random) -> None:
    """A migration or a person holds the table for itself."""
    world.more()
    world.instant(rng)
    with psycopg.connect(host="127.0.0.1", port=postgres(world).server.port, user=USER, dbname="postgres") as foreign:
        foreign.execute("LOCK TABLE emails IN ACCESS EXCLUSIVE MODE")
        world.more()
        time.sleep(FROZEN_LONG if world.long else rng.uniform(0.5, 5))


# -- Redis


def redis_memory(world: World, rng: Random) -> None:
    """Redis has used all the memory that it may: it refuses what would take more."""
    with world.redis.client() as client:
        for _ in range(2):
            world.more()
            world.instant(rng)
            client.config_set("maxmemory", int(client.info("memory")["used_memory"]) * 9 // 10)
            world.more()
            time.sleep(rng.uniform(1, 12 if world.long else 4))
            client.config_set("maxmemory", 0)


@dataclass
class Fleet:
    """Redis under Sentinel, as far as a world and a fault need it."""

    servers: SentinelFleet

    def client(self) -> redis.Redis:
        """Connect to whoever is the master."""
        return self.servers.master().client()


def sentinel_failover(world: World, rng: Random) -> None:
    """The master dies with writes that the replica never saw, and the replica is promoted."""
    fleet = world.redis.servers  # type: ignore[attr-defined] - `under_sentinel` put it there
    gone = fleet.master()
    (heir,) = (each for each in fleet.servers if each is not gone)
    world.more()
    world.instant(rng)
    heir.fall_behind()
    world.more()
    time.sleep(rng.uniform(0.2, 1.5))
    gone.kill()
    world.more()
    fleet.await_promotion(gone)
    with heir.client() as client:
        client.config_set("masterauth", PASSWORD)
    gone.start()
    fleet.await_replica(gone, heir)


@contextmanager
def under_sentinel(world: World) -> Iterator[None]:
    """Put a master, a replica and three sentinels in the place of the world's Redis."""
    with running(SentinelFleet(world.here.folder.parent / "fleet")) as fleet:
        address = fleet.address()
        for place in (world.here, world.there):
            place.environment.pop("REDIS_URL")
            place.set(
                REDIS_MODE="sentinel",
                REDIS_SENTINELS=",".join(f"{host}:{port}" for host, port in address.nodes),
                REDIS_SENTINEL_MASTER=address.master,
                REDIS_PASSWORD=PASSWORD,
                REDIS_SENTINEL_PASSWORD=PASSWORD,
            )
        world.redis = Fleet(fleet)  # type: ignore[assignment] - no other fault is played in this world
        yield
        world.muster(())


# -- the mail server


def network_cut(world: World, rng: Random) -> None:
    """The way to the mail server is cut: refused, hanging, connections lost, its name not found or found late."""
    network = world.network
    assert network  # noqa: S101 - `own_network` laid it
    world.more()
    world.instant(rng)
    how = rng.choice(["refused", "silent", "half-open", "no name", "slow name"])
    if how == "refused":
        network.relay.refuse()
    elif how in ("no name", "slow name"):
        if how == "no name":
            network.names.fail()
        else:
            network.names.slow_down(SLOW_NAME)
        network.relay.refuse()  # ends the session; a session that lives needs no name
        network.relay.listen()
    else:
        network.relay.silence()
    while world.more():
        pass
    time.sleep(OUTAGE_LONG if world.long else rng.uniform(2, 5))
    network.names.mend()
    network.relay.mend(forget=how == "half-open")


@contextmanager
def own_network(world: World) -> Iterator[None]:
    """Lay a relay and a resolver of its own between the producer and the mail server."""
    with relay_to(world.sandbox.imap_port) as relay:
        names = FailingNames(world.here.folder)
        world.here.environment |= names.environment
        world.here.set(IMAP_HOST="localhost", IMAP_PORT=relay.port)
        world.network = Network(relay, names)
        yield
        world.muster(())


def server_restored(world: World, rng: Random) -> None:
    """The mail server is restored from a backup: the newest messages are gone, and their UIDs are given out anew."""
    world.more()
    world.instant(rng)
    backup = world.sandbox.with_account(lambda account: {key: box.uidnext for key, box in account.mailboxes.items()})
    world.more()
    world.more()
    until(lambda: (world.delivered() or 0) >= world.arrived, "what the restored server will not have is delivered")
    world.restore_server(backup)
    while world.more():
        world.instant(rng)
