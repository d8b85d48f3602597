"""Several real redis-servers that stand in for each other: a master with a replica under Sentinel, and a Cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import redis

from email_ingestion.settings import Node, RedisAddress
from tests.servers.missing import program
from tests.servers.ports import free_port, wait_for_port
from tests.servers.processes import until

MASTER = "mail"
PASSWORD = "s3cret"
SLOTS = 16384
SECRET = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)

Fleet = TypeVar("Fleet", "SentinelFleet", "ClusterFleet")


class Server:
    """A redis-server process; keeps its port and its data over `kill` and `start`."""

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port or free_port()
        self._words = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def node(self) -> Node:
        return "127.0.0.1", self.port

    def start(self) -> None:
        words = [program("redis-server", "redis-server"), *self._words]
        process = self._process = subprocess.Popen(words, cwd=self.directory, stdout=subprocess.DEVNULL)
        wait_for_port(self.port, lambda: process.poll() is None)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def fall_behind(self) -> None:
        """As a replica: hear nothing more of the master, and still be one that can be promoted."""
        with self.client() as client:
            client.config_set("masterauth", "not the password")
            client.execute_command("CLIENT", "KILL", "TYPE", "master")

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=PASSWORD)


def _data_server(directory: Path, *options: str) -> Server:
    port = free_port()
    common = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", "", "--hz", "100"]
    common += ["--appendonly", "yes", "--appendfsync", "everysec", "--loglevel", "warning"]
    return Server(directory, *common, "--repl-diskless-sync-delay", "0", *SECRET, *options, port=port)


class SentinelFleet:
    """A master, a replica, and three sentinels that watch them."""

    def __init__(self, folder: Path, down_after: float = 1.0) -> None:
        self.servers = [_data_server(folder / "one"), _data_server(folder / "two")]
        self.sentinels = [self._sentinel(folder / f"sentinel-{number}", down_after) for number in range(3)]

    def _sentinel(self, directory: Path, down_after: float) -> Server:
        directory.mkdir(parents=True)
        port = free_port()
        (directory / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\nloglevel warning\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {self.servers[0].port} 2\n"
            f"sentinel down-after-milliseconds {MASTER} {int(down_after * 1000)}\n"
            f"sentinel failover-timeout {MASTER} 5000\n"
            f"sentinel auth-pass {MASTER} {PASSWORD}\nrequirepass {PASSWORD}\n"
        )
        return Server(directory, str(directory / "sentinel.conf"), "--sentinel", port=port)

    def address(self, partitions: int = 1) -> RedisAddress:
        nodes = tuple(each.node for each in self.sentinels)
        return RedisAddress(f"redis://:{PASSWORD}@", partitions, "sentinel", nodes, MASTER, PASSWORD)

    def start(self) -> None:
        one, two = self.servers
        one.start()
        two.start()
        with two.client() as client:
            client.replicaof("127.0.0.1", one.port)
            until(lambda: client.info("replication")["master_link_status"] == "up", "the replica follows")
        for each in self.sentinels:
            each.start()
        for each in self.sentinels:
            until(lambda each=each: self._sees_all(each), "the sentinels know each other and the replica")

    def _sees_all(self, sentinel: Server) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(MASTER)
            return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)

    def master(self) -> Server:
        """The one the sentinels name."""
        with self.sentinels[0].client() as client:
            _, port = client.sentinel_get_master_addr_by_name(MASTER)
        return next(each for each in self.servers if each.port == port)

    def await_promotion(self, gone: Server) -> Server:
        """The new master, as soon as it takes writes."""
        (heir,) = (each for each in self.servers if each is not gone)
        with heir.client() as client:
            until(lambda: client.info("replication")["role"] == "master", "the replica is promoted")
        return heir

    def await_replica(self, follower: Server, master: Server) -> None:
        """Return when it follows, and the sentinels would promote it."""
        with follower.client() as client:
            until(lambda: _follows(client, master.port), "the old master follows")
        for each in self.sentinels:
            until(lambda each=each: self._sees_all(each) and self._names(each, master), "the sentinels agree")

    def _names(self, sentinel: Server, master: Server) -> bool:
        with sentinel.client() as client:
            (follower,) = client.sentinel_slaves(MASTER)
            _, port = client.sentinel_get_master_addr_by_name(MASTER)
            return bool(port == master.port and not follower["is_sdown"] and follower["master-link-status"] == "ok")

    def stop(self) -> None:
        for each in (*self.sentinels, *self.servers):
            each.kill()


class ClusterFleet:
    """Three masters that share the slots evenly, and a replica for each."""

    def __init__(self, folder: Path, node_timeout: float = 1.0, *, replicas: bool = True) -> None:
        self.replicas = replicas
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(int(node_timeout * 1000))]
        options += ["--cluster-config-file", "nodes.conf"]
        self.servers: list[Server] = []
        for number in range(6 if replicas else 3):
            bus = free_port()
            self.servers.append(_data_server(folder / f"node-{number}", *options, "--cluster-port", str(bus)))

    def address(self, partitions: int = 1) -> RedisAddress:
        nodes = tuple(each.node for each in self.servers[:3])
        url = f"redis://:{PASSWORD}@127.0.0.1:{self.servers[0].port}"
        return RedisAddress(url, partitions, "cluster", nodes)

    def start(self) -> None:
        for each in self.servers:
            each.start()
        masters, replicas = self.servers[:3], self.servers[3:]
        for number, each in enumerate(masters):
            with each.client() as client:
                first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        with masters[0].client() as client:
            for each in self.servers[1:]:
                bus = each._words[each._words.index("--cluster-port") + 1]
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", each.port, bus)
        for each in self.servers:
            until(lambda each=each: self._known(each) == len(self.servers), "the nodes know each other")
        for master, replica in zip(masters, replicas, strict=False):
            with replica.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", self.id_of(master))
                until(lambda client=client: client.info("replication")["master_link_status"] == "up", "it follows")
        for each in self.servers:
            until(lambda each=each: self._ok(each), "the cluster is ok")

    def id_of(self, server: Server) -> str:
        with server.client() as client:
            return client.execute_command("CLUSTER", "MYID").decode()

    def _known(self, server: Server) -> int:
        with server.client() as client:
            return int(_info(client)["cluster_known_nodes"])

    def _ok(self, server: Server) -> bool:
        with server.client() as client:
            return _info(client)["cluster_state"] == "ok"

    def replica_of(self, master: Server) -> Server:
        return self.servers[self.servers.index(master) + 3]

    def await_promotion(self, heir: Server) -> None:
        with heir.client() as client:
            until(lambda: client.info("replication")["role"] == "master", "the replica is promoted")
        until(lambda: self._ok(heir), "the cluster is ok again")

    def await_replica(self, follower: Server) -> None:
        """Return when a server that came back follows the one that took its place, and all know."""
        with follower.client() as client:
            until(lambda: _follows(client), "the old master follows")
        for each in self.servers:
            until(lambda each=each: self._ok(each), "the cluster is ok")

    def move_slot(self, slot: int, source: Server, target: Server, keys_at_once: int = 10) -> None:
        """Move a slot with its keys, as `redis-cli --cluster reshard` does."""
        here, there = self.id_of(source), self.id_of(target)
        with source.client() as old, target.client() as new:
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
            while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, keys_at_once):
                old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 60000, "AUTH", PASSWORD, "KEYS", *keys)
            for client in (new, old):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", there)

    def stop(self) -> None:
        for each in self.servers:
            each.kill()


def _follows(client: redis.Redis, port: int | None = None) -> bool:
    said = client.info("replication")
    return bool(said.get("master_link_status") == "up" and port in {None, int(said["master_port"])})


def _info(client: redis.Redis) -> dict[str, str]:
    said = client.execute_command("CLUSTER", "INFO")
    if isinstance(said, dict):
        return said
    return dict(line.split(":", 1) for line in said.decode().split())


@contextmanager
def running(fleet: Fleet) -> Iterator[Fleet]:
    with ExitStack() as cleanup:
        cleanup.callback(fleet.stop)
        fleet.start()
        yield fleet
