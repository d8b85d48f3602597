"""The steps of docs/install.md for a service, as they are written, on a copy of this machine's /etc and /opt.

What is left out: the systemd that runs as process 1. Its commands are checked by `systemctl --root` and
`systemd-analyze`, and what a unit starts is started by hand, as its user.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.documented import commands
from tests.acceptance.test_fresh_clone import index_environment
from tests.servers.missing import missing, program
from tests.servers.processes import ROOT
from tests.servers.redis import RedisServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
PAGE = ROOT / "docs" / "install.md"
PACKAGES = "https://github.com/example/email-ingestion"
# For the page's commands: who types is root already, and no systemd runs here.
SUDO = """#!/bin/sh
if [ "$1" = -u ]; then
    user=$2; shift 2
    exec runuser -u "$user" -- "$@"
fi
exec "$@"
"""
SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$CALLED"
[ "$1" = enable ] || exit 0
shift 2
exec {systemctl} --root=/ enable "$@"
"""


def steps() -> list[str]:
    found = [
        command for command in commands(PAGE) if command.startswith("sudo ") and command != "sudo -u email-ingestion"
    ]
    assert len(found) == 11
    return found


def test_the_steps_for_systemd_work_as_they_are_written(tmp_path: Path, own_redis: RedisServer):
    if os.geteuid() != 0:
        missing("only root can make a user and a mount namespace")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("sudo", SUDO), ("systemctl", SYSTEMCTL.format(systemctl=program("systemctl", "systemd")))):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    written = []
    for step in steps():
        # A person consents in a browser; here the command must only get as far as asking for what .env lacks.
        consent = "--auth-setup" in step
        written.append(f"{step} && exit 9 || [ $? = 78 ]" if consent else step)
    script = "\n".join(["set -euxo pipefail", *_copies(tmp_path), *written, *_checks(own_redis.port)])
    done = subprocess.run(
        [program("unshare", "util-linux"), "--mount", "bash", "-c", script],
        cwd=tmp_path,
        env=index_environment()
        | {
            "PATH": f"{tools}:/usr/bin:/usr/sbin:/bin:/sbin",  # the system's Python, as the page says
            "CALLED": str(tmp_path / "called"),
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf",
            "GIT_CONFIG_VALUE_0": PACKAGES,
            "GIT_CONFIG_KEY_1": "safe.directory",
            "GIT_CONFIG_VALUE_1": "*",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    if "Operation not permitted" in done.stderr and "mount" in done.stderr:
        missing(f"nothing can be mounted here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "GOOGLE_CLIENT_ID" in done.stderr
    called = (tmp_path / "called").read_text().splitlines()
    assert called == [
        "daemon-reload",
        "enable --now email-ingestion.target",
        "enable --now email-ingestion-worker@2",
    ]
    assert re.findall(r"^enabled (\S+)$", done.stdout, re.MULTILINE) == [
        "email-ingestion.target.wants/email-ingestion-worker@2.service",
        "multi-user.target.wants/email-ingestion.target",
    ]


def _copies(folder: Path) -> list[str]:
    """Lay a writable copy over /etc and /opt, for this namespace alone."""
    lines = []
    for name in ("etc", "opt"):
        lines += [
            f"mkdir -p {folder}/{name}",
            f"mount -t tmpfs tmpfs {folder}/{name}",
            f"cp -a /{name}/. {folder}/{name}/" if name == "etc" else ":",
            f"mount --bind {folder}/{name} /{name}",
        ]
    return ["mount --make-rprivate /", *lines]


def _checks(port: int) -> list[str]:
    return [
        "cd /opt/email-ingestion",
        "for unit in /etc/systemd/system/*.wants/email-ingestion*; do echo enabled ${unit#/etc/systemd/system/}; done",
        "systemd-analyze verify /etc/systemd/system/email-ingestion*.service 2>&1",
        "stat -c '%a %U' data logs pids backups | sort -u | grep -x '700 email-ingestion'",
        "logrotate --debug /etc/logrotate.d/email-ingestion",
        # What the units start, as their user.
        f"export REDIS_PORT={port} OPS_PORT=0 METRICS_PORT=0",
        "sudo -u email-ingestion .venv/bin/python worker.py --instance 2 --drain",
        "sudo -u email-ingestion .venv/bin/python scripts/backup.py --retention-days 30",
        "test -f logs/worker-2.log && ls backups/*.tar",
    ]
