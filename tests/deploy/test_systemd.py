"""The steps of docs/install.md for systemd, as they are written, in a machine that boots, fails and boots again.

The machine is a systemd-nspawn container with Debian's systemd as its process 1, with seccomp and empty capabilities.
Its mail is the sandbox's, beside the producer.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.acceptance.documented import commands
from tests.deploy.machines import NETWORK_TROUBLE, PATIENCE, call, come_in, done_by, last_line, not_tried, until
from tests.servers.processes import ROOT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1500)]
PAGE = ROOT / "docs" / "install.md"
ORIGIN = "https://github.com/example/email-ingestion"
STOP = "sudo systemctl stop email-ingestion.target"
HOME = "/opt/email-ingestion"
UNITS = ("email-ingestion-producer", "email-ingestion-worker@1", "email-ingestion-worker@2", "email-ingestion-web")
AS_SERVICE = "sudo -u email-ingestion .venv/bin/email-ingestion"
SETTINGS = """
REDIS_USERNAME=email_ingestion
REDIS_PASSWORD=machine
IMAP_HOST=127.0.0.1
IMAP_PORT=1143
IMAP_TLS=false
IMAP_USER=demo@example.com
GOOGLE_CLIENT_ID=sandbox-client
GOOGLE_CLIENT_SECRET=sandbox-secret
GOOGLE_TOKEN_URI=http://127.0.0.1:1180/token
"""
SANDBOX_UNIT = f"""
[Service]
User=email-ingestion
WorkingDirectory={HOME}
ExecStart={HOME}/.venv/bin/email-ingestion sandbox --state data/sandbox.db --user demo@example.com \
  --write-token data/token.json
[Install]
WantedBy=multi-user.target
"""
COUNT = (
    "import sqlite3; print(*sqlite3.connect('data/email_ingestion.db').execute("
    "'SELECT count(*), count(DISTINCT email_id) FROM emails').fetchone())"
)


class Machine:
    """A Debian with systemd: steps before its boot, boots, and commands inside."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self._log = log
        self._nspawn: subprocess.Popen[bytes] | None = None

    def before_boot(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the network of this machine and no systemd."""
        words = ["--register=no", "--keep-unit", "--resolv-conf=replace-host", "-D", self.root, "--pipe"]
        common = call("git", "-C", ROOT, "rev-parse", "--path-format=absolute", "--git-common-dir").stdout.strip()
        binds = [f"--bind-ro={path}" for path in (ROOT, common) if path]
        return call("systemd-nspawn", "-q", *words, *binds, "bash", "-euc", command, seconds=1200)

    def boot(self) -> None:
        options = ["-q", "-b", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "-D", self.root]
        with self._log.open("ab") as log:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", *map(str, options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        until(lambda: not self.alive or self.booted, "it has booted")

    @property
    def booted(self) -> bool:
        return self.call("systemctl is-system-running").stdout.strip() in {"running", "degraded"}

    @property
    def alive(self) -> bool:
        return self._nspawn is not None and self._nspawn.poll() is None

    def call(self, command: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        assert self._nspawn
        try:
            pid = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()[0]
        except (OSError, IndexError):
            return subprocess.CompletedProcess(command, 255, "", "it does not run")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        inside = ["env", "-i", path, "bash", "-euc", f"cd {HOME} 2>/dev/null || cd /; {command}"]
        return call("nsenter", "-t", pid, "-m", "-u", "-i", "-n", "-p", "--", *inside, seconds=seconds)

    def done_by(self, command: str, seconds: float = 600) -> str:
        done = self.call(command, seconds)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def off(self, command: str) -> None:
        """Power off or reboot: process 1 ends, and with it the machine."""
        self.call(command)
        assert self._nspawn
        self._nspawn.wait(PATIENCE)

    def close(self) -> None:
        if self._nspawn and self.alive:
            self._nspawn.kill()
            self._nspawn.wait()


def steps() -> list[str]:
    """What the page tells to type, and which of it asks the systemd of the machine."""
    found = [each for each in commands(PAGE) if each.startswith("sudo ") and each != "sudo -u email-ingestion"]
    found.remove(STOP)
    assert len(found) >= 12
    return found


@pytest.fixture(scope="module")
def machine(folder: Path, debian: Path) -> Iterator[Machine]:
    root = folder / "machine"
    if not root.exists():
        done_by("cp", "-a", debian, root)
    (root / "etc/hostname").write_text("mail\n")
    (root / "etc/machine-id").write_text("")
    machine = Machine(root, folder / "machine.log")
    try:
        done = machine.before_boot("true")
        if done.returncode:
            not_tried(f"systemd-nspawn runs nothing here: {last_line(done.stderr)}")
        with suppress(AssertionError):
            machine.boot()
        if not machine.booted:
            not_tried(f"no systemd boots here: {last_line((folder / 'machine.log').read_text(errors='replace'))}")
        machine.off("systemctl poweroff")
        yield machine
    finally:
        machine.close()


def stored(machine: Machine) -> tuple[int, ...]:
    done = machine.call(f'.venv/bin/python -c "{COUNT}"')
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else (0, 0)


def main_pid(machine: Machine, unit: str) -> str:
    return machine.done_by(f"systemctl show -p MainPID --value {unit}").strip()


def deliver(machine: Machine, first: int, count: int) -> None:
    raw = "Subject: letter $n\\r\\nMessage-ID: <$n@example.org>\\r\\n\\r\\nHello\\r\\n"
    last = first + count - 1
    send = f'printf "{raw}" | curl -sSf -H Content-Type:message/rfc822 --data-binary @- http://127.0.0.1:1181/deliver'
    machine.done_by(f"for n in $(seq {first} {last}); do {send}; done")


def ready(machine: Machine) -> None:
    for unit in UNITS:
        until(lambda unit=unit: machine.call(f"systemctl is-active {unit}").returncode == 0, f"{unit} is ready")


def install(machine: Machine) -> list[str]:
    """Do the steps of the page that need no running systemd; returns the others."""
    git = f"git config --system url.{ROOT}.insteadOf {ORIGIN} && git config --system safe.directory '*'"
    assert machine.before_boot(git).returncode == 0
    folder = "/"
    left = []
    for step in steps():
        if "systemctl" in step:
            left.append(step)
            continue
        if step.startswith("sudo apt-get"):
            continue  # the machine was made with those packages
        # A person consents in a browser: it must get as far as asking for what .env lacks.
        command = f"{step} && exit 9 || [ $? = 78 ]" if "--auth-setup" in step else step
        done = machine.before_boot(f"cd {folder}; {command}")
        if done.returncode and any(trouble in done.stdout + done.stderr for trouble in NETWORK_TROUBLE):
            not_tried(f"nothing can be installed without a network: {last_line(done.stderr)}")
        assert done.returncode == 0, f"{step}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        folder = HOME if (machine.root / HOME.lstrip("/")).exists() else "/"
    return left


def start(machine: Machine, left: list[str]) -> None:
    """Add what the page leaves to the reader: settings, a Redis by config/redis.conf, a mailbox; boot, and start."""
    with (machine.root / HOME.lstrip("/") / ".env").open("a") as file:
        file.write(SETTINGS)
    (machine.root / "etc/systemd/system/sandbox.service").write_text(SANDBOX_UNIT)
    machine.boot()
    machine.done_by(
        "sed s/change-me/machine/ config/redis.conf > /etc/redis/redis.conf && chown redis:redis /etc/redis/redis.conf"
        " && systemctl restart redis-server && systemctl enable --now sandbox"
    )
    until(lambda: machine.call("test -s data/token.json").returncode == 0, "the sandbox has written its token")
    for step in left:
        machine.done_by(step)
    ready(machine)
    until(lambda: stored(machine) == (300, 300), "the mail of the sandbox is in the database")


def operate(machine: Machine) -> None:
    """Give operators' commands as the page says, and start the jobs of the timers."""
    # The mark of the database is the same in and outside of a unit.
    found = machine.call(f"{AS_SERVICE} doctor")
    assert "another database" not in found.stdout, found.stdout
    assert found.returncode in {0, 1}, found.stdout + found.stderr
    machine.done_by(f"{AS_SERVICE} status")
    link = machine.done_by(f"{AS_SERVICE} web login-link").splitlines()[-1]
    come_in(link, lambda *words: machine.call(shlex.join(words)))
    for job in ("backup", "reconcile"):
        machine.done_by(f"systemctl start email-ingestion-{job}.service")
    machine.done_by("ls backups/*.tar && logrotate --force /etc/logrotate.d/email-ingestion && ls logs/worker.log-*")


def kill_and_stall(machine: Machine) -> None:
    """Kill producer and worker amid mail, and let a worker stand still until the watchdog ends it."""
    for number, unit in enumerate(UNITS[:2]):
        before = main_pid(machine, unit)
        deliver(machine, 1 + 20 * number, 20)
        machine.done_by(f"kill -9 {before}")
        until(lambda unit=unit, before=before: main_pid(machine, unit) not in {before, "0"}, "it is started again")
    machine.done_by("mkdir -p /run/systemd/system/email-ingestion-worker@1.service.d")
    machine.done_by(
        "printf '[Service]\\nWatchdogSec=12\\n' > /run/systemd/system/email-ingestion-worker@1.service.d/soon.conf"
        " && systemctl daemon-reload && systemctl restart email-ingestion-worker@1"
    )
    before = main_pid(machine, UNITS[1])
    machine.done_by(f"kill -STOP {before}")
    until(lambda: main_pid(machine, UNITS[1]) not in {before, "0"}, "the watchdog starts it again")
    ready(machine)
    until(lambda: stored(machine) == (340, 340), "nothing was lost, nothing came twice")


def test_the_steps_of_the_page_make_a_service_that_survives(machine: Machine):
    start(machine, install(machine))
    operate(machine)
    kill_and_stall(machine)

    # A boot brings all back; the end of the target ends the timers too.
    deliver(machine, 41, 20)
    machine.off("systemctl reboot")
    machine.boot()
    ready(machine)
    until(lambda: stored(machine) == (360, 360), "what came before the boot is there")
    timers = "systemctl is-active email-ingestion-backup.timer email-ingestion-reconcile.timer"
    assert machine.done_by(timers).split() == ["active", "active"]
    machine.done_by(STOP)
    assert machine.call(timers).stdout.split() == ["inactive", "inactive"]
    running = "ps -e -o args= | grep -E '[p]roducer.py|[w]orker.py|[e]mail_ingestion web'"
    until(lambda: machine.call(running).returncode == 1, "the processes end too")
    failed = machine.done_by("systemctl --failed --plain --no-legend")
    assert "email-ingestion" not in failed
    with suppress(subprocess.TimeoutExpired):
        machine.off("systemctl poweroff")
