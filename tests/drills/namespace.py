"""A loopback, a process table and some files of a drill's own, for the runbook's literal ports and names.

`literal()` says how to get one on this machine, or why not; `enter` furnishes it. It needs `unshare` and the right to
use it: root, or a kernel that lets users have namespaces. Where neither is there, drills use free ports (see `ports`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.servers.processes import ROOT

HOSTS = Path("/etc/hosts")
GMAIL = "imap.gmail.com"
# What a runbook reads of Redis, as Debian lays it out.
REDIS_FOLDERS = {"etc": Path("/etc/redis"), "log": Path("/var/log/redis")}
SUBSTITUTE = "DRILLS_SUBSTITUTE"  # set to anything: do without a namespace
OPTIONS = (("-nmp", "--fork", "--kill-child", "--mount-proc"), ("-Urnmp", "--fork", "--kill-child", "--mount-proc"))
# The first process of a namespace inherits orphans and must bury them, which Python would not do.
INIT = ("bash", "-c", '"$@"; exit $?', "drill")
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
PROBE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Literal:
    """How to run something in a namespace; empty `prefix`: not here, for the reason in `how`."""

    prefix: tuple[str, ...]
    how: str


def literal() -> Literal:
    """What this machine permits, tried out once."""
    return Literal((), f"{SUBSTITUTE} is set") if os.environ.get(SUBSTITUTE) else _permitted()


@cache
def _permitted() -> Literal:
    if not shutil.which("unshare"):
        return Literal((), "there is no unshare here")
    missing = [str(path) for path in REDIS_FOLDERS.values() if not path.is_dir()]
    if missing:
        return Literal((), f"{', '.join(missing)} is not there to be covered")
    said = ""
    for options in OPTIONS:
        prefix = ("unshare", *options, *INIT)
        tried = subprocess.run(
            [*prefix, sys.executable, "-m", "tests.drills.namespace"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        if tried.returncode == 0:
            return Literal(prefix, f"unshare {options[0]}")
        said = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
    return Literal((), f"this machine permits no namespace ({said})")


def enter(folder: Path) -> None:
    """Furnish a fresh namespace: loopback up, Gmail's name on it, Redis' folders covered by ones below `folder`."""
    _loopback_up()
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {GMAIL}\n127.0.0.1 {socket.gethostname()}\n")
    _cover(HOSTS, hosts)
    for name, place in REDIS_FOLDERS.items():
        own = folder / f"redis-{name}"
        own.mkdir(exist_ok=True)
        _cover(place, own)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh14s", b"lo", 0, b"")
        flags = struct.unpack("16sh14s", fcntl.ioctl(any_socket, SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14s", b"lo", flags | IFF_UP, b""))


def _cover(place: Path, by: Path) -> None:
    done = subprocess.run(["mount", "--bind", str(by), str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"cannot cover {place}: {done.stderr.strip()}")


def _probe() -> None:
    """Fail when a drill would: a port below 1024 belongs to it too."""
    with tempfile.TemporaryDirectory() as folder:
        enter(Path(folder))
        with socket.create_server(("127.0.0.1", 993)):
            assert socket.gethostbyname(GMAIL) == "127.0.0.1"


if __name__ == "__main__":
    _probe()
