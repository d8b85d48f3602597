"""The firewall of the runbook, on a machine of its own: it cuts off all but loopback and the SSH of who looks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.drills.play import RUNBOOKS
from tests.drills.runbook import pages
from tests.servers.missing import program
from tests.servers.processes import until

MACHINE, LOOKER, STRANGER = "192.0.2.1", "192.0.2.10", "192.0.2.11"
SERVE = """
import socket, time
servers = [socket.create_server(("", port)) for port in (22, 8080)]
print("listens", flush=True)
time.sleep(600)
"""
# Whether each (from, to, port) is connected to: what the firewall drops gets no answer at all.
CONNECT = """
import concurrent.futures, json, socket, sys
def connects(way):
    source, target, port = way
    try:
        socket.create_connection((target, port), timeout=1, source_address=(source, 0)).close()
    except OSError:
        return False
    return True
ways = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor() as pool:
    print(json.dumps({f"{way[0]} {way[1]}:{way[2]}": found for way, found in zip(ways, pool.map(connects, ways))}))
"""


class Network:
    """Two machines, as namespaces: that of the runbook, and the outside with two addresses."""

    def __init__(self, outside: int, machine: int) -> None:
        self._outside, self._machine = outside, machine

    def outside(self, *command: str) -> str:
        return _inside(self._outside, command)

    def machine(self, *command: str, folder: Path | None = None) -> str:
        return _inside(self._machine, command, folder)

    def reached(self) -> set[str]:
        """What gets through, of all that was tried."""
        into = [(source, MACHINE, port) for source in (LOOKER, STRANGER) for port in (22, 8080)]
        there = json.loads(self.outside(sys.executable, "-c", CONNECT, json.dumps(into)))
        outward = [(MACHINE, LOOKER, 8080), ("127.0.0.1", "127.0.0.1", 8080)]
        here = json.loads(self.machine(sys.executable, "-c", CONNECT, json.dumps(outward)))
        return {way for way, through in (there | here).items() if through}


@contextmanager
def _namespace(parent: int | None) -> Iterator[int]:
    """Start a machine: a network of its own, in the user namespace of the first; yields the PID that holds it."""
    enter = ["nsenter", "-t", str(parent), "-U", "--preserve-credentials"] if parent else []
    own = [] if parent else ["-r"]
    command = [*enter, "unshare", *own, "-n", sys.executable, "-uc", 'print("there"); input()']
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with process:
        if process.stdout.readline() != "there\n":
            pytest.skip(f"this machine permits no network of one's own: {process.stderr.read().strip()}")
        yield process.pid
        process.kill()


def _inside(pid: int, command: tuple[str, ...], folder: Path | None = None) -> str:
    enter = ["nsenter", "-t", str(pid), "-U", "-n", "--preserve-credentials"]
    if folder:
        enter.append(f"--wd={folder}")
    done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def network() -> Iterator[Network]:
    for name, package in {"nft": "nftables", "ip": "iproute2", "nsenter": "util-linux"}.items():
        program(name, package)
    with _namespace(None) as outside, _namespace(outside) as machine:
        found = Network(outside, machine)
        found.outside("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", str(machine))
        for name, ask, addresses in (
            ("veth0", found.outside, (LOOKER, STRANGER)),
            ("veth1", found.machine, (MACHINE,)),
        ):
            for address in addresses:
                ask("ip", "address", "add", f"{address}/24", "dev", name)
            for link in ("lo", name):
                ask("ip", "link", "set", link, "up")
        with _serving(outside), _serving(machine):
            yield found


@contextmanager
def _serving(pid: int) -> Iterator[None]:
    enter = ["nsenter", "-t", str(pid), "-U", "-n", "--preserve-credentials"]
    with subprocess.Popen([*enter, sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert server.stdout.readline() == "listens\n"
        yield
        server.kill()


def test_the_firewall_of_the_runbook_leaves_loopback_and_the_ssh_of_who_looks(network: Network, tmp_path: Path) -> None:
    page = next(each for each in pages(RUNBOOKS) if each.path.name == "security.md")
    steps = [step for procedure in page.procedures for step in procedure.steps if step.id == "firewall"]
    (tmp_path / "backups").mkdir()
    until(lambda: len(network.reached()) == 6, "the machines see each other")
    shown = network.machine("bash", "-ec", steps[0].text, folder=tmp_path)
    assert "policy drop" in shown
    assert network.reached() == {f"{LOOKER} {MACHINE}:22", "127.0.0.1 127.0.0.1:8080"}
    assert [each.read_text() for each in (tmp_path / "backups").iterdir()] == [""]
    end = "nft delete table inet isolate"
    assert f"`{end}`" in page.path.read_text()
    network.machine(*end.split())
    assert len(network.reached()) == 6
