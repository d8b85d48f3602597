"""Installed from a wheel, in a folder without a checkout: the sandbox runs and ends, and the commands are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.servers.processes import ROOT

SECONDS = 180


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=SECONDS)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of an environment that has our dependencies, but the wheel in place of the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=SECONDS)
    packages = next(folder.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    mine = {"email_ingestion", "gmail_sandbox"}
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = entry.name in mine or entry.name.startswith(("email_ingestion-", "_editable", "__editable"))
        if not ours and entry.suffix != ".pth" and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    script = folder / "bin" / "email-ingestion"
    script.write_text(
        f"#!{folder}/bin/python\nimport sys\nfrom email_ingestion.__main__ import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return script


def run(program: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OPS_PORT": "0", "METRICS_PORT": "0"}
    return subprocess.run(
        [program, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_the_sandbox_runs_and_ends_where_there_is_no_checkout(program: Path, tmp_path: Path) -> None:
    tmp_path = tmp_path / "my mail"
    tmp_path.mkdir()
    started = run(program, tmp_path, "start", "--sandbox")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        assert "300 messages travelled" in started.stdout
        assert "email-ingestion stop" in started.stdout
        assert not re.search(r"scripts/|\.venv", started.stdout)  # there are none
        status = run(program, tmp_path, "status")
        assert (status.returncode, "worker" in status.stdout) == (0, True), status.stdout + status.stderr
        backup = run(program, tmp_path, "backup")
        assert backup.returncode == 0, backup.stderr
        assert run(program, tmp_path, "auth", "--info").returncode in {0, 2}
    finally:
        stopped = run(program, tmp_path, "stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert list((tmp_path / "pids").glob("*.pid")) == []


@pytest.mark.parametrize("component", ["producer", "worker"])
def test_a_process_that_cannot_start_says_why_and_logs_it(program: Path, tmp_path: Path, component: str) -> None:
    (tmp_path / ".env").write_text("SINKS=database,nothere\nIMAP_USER=\nREDIS_PROT=1\n")
    done = run(program, tmp_path, component)
    assert (done.returncode, "REDIS_PROT" in done.stderr) == (78, True)
    assert "Traceback" not in done.stderr
    assert "process_failed" in (tmp_path / "logs" / f"{component}.log").read_text()


def test_every_command_of_a_process_has_help(program: Path, tmp_path: Path) -> None:
    for component in ("producer", "worker", "backup", "restore", "auth"):
        shown = run(program, tmp_path, component, "--help")
        assert (shown.returncode, "Usage" in shown.stdout) == (0, True)


def test_init_writes_what_a_checkout_has_and_leaves_what_is_there(program: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("IMAP_USER=someone@example.com\n")
    made = run(program, tmp_path, "init", "--systemd", "--compose")
    assert made.returncode == 0, made.stderr
    assert ".env is there already" in made.stderr
    assert (tmp_path / ".env").read_text() == "IMAP_USER=someone@example.com\n"
    for source in ("config", "deploy/systemd", "deploy/docker"):
        for path in (ROOT / source).rglob("*"):
            if path.is_file() and path.name != "settings.toml" and "/opt/email-ingestion" not in path.read_text():
                written = tmp_path / path.relative_to(ROOT)
                if path.name in {"Dockerfile", "Dockerfile.dockerignore", "requirements.lock", "healthcheck.py"}:
                    assert not written.exists()  # the image is built in a checkout
                elif path.name in {"compose.yaml", "sandbox.env"}:
                    assert "build" not in written.read_text()
                else:
                    assert written.read_bytes() == path.read_bytes()
    assert "docker build -f deploy/docker/Dockerfile" in made.stdout
    services = yaml.safe_load((tmp_path / "deploy/docker/compose.yaml").read_text())["services"]
    assert {"redis", "producer", "worker", "web"} <= set(services)
    fresh = run(program, tmp_path, "init", "elsewhere")
    assert fresh.returncode == 0, fresh.stderr
    readable = [tmp_path / "elsewhere" / name for name in ("config", "config/alerts.yml", "config/redis.conf")]
    assert [path.stat().st_mode & 0o004 for path in readable] == [0o004] * 3  # Prometheus and Redis are other users
    (tmp_path / ".env").write_text("RUNBOOK_BASE_URL=https://wiki.example.com/mail\n")
    assert run(program, tmp_path, "init", "linked").returncode == 0
    alerts = (tmp_path / "linked" / "config" / "alerts.yml").read_text()
    assert "runbook_url: https://wiki.example.com/mail/incident_response#21-redis-down" in alerts
    assert "localhost:8080/runbooks" not in alerts
    assert (tmp_path / "elsewhere" / ".env").stat().st_mode & 0o077 == 0
    assert run(program, tmp_path / "elsewhere", "config", "show", "--json").returncode == 0


def test_the_units_that_init_writes_start_this_program_in_that_folder(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "50% of\\ the mail"
    made = run(program, tmp_path, "init", str(folder), "--systemd")
    assert made.returncode == 0, made.stderr
    assert f"do not see {folder}" in made.stderr  # it lies in /tmp
    units = sorted((folder / "deploy/systemd").iterdir())
    text = "\n".join(each.read_text() for each in [*units, folder / "config/logrotate.conf"])
    assert "/opt/email-ingestion" not in text
    assert f'\n"{folder}/logs/*.log" {{' in text
    started = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert {each.partition(" -m email_ingestion ")[2].split()[0] for each in started} == {
        *("producer", "worker", "web", "backup", "reconcile"),
    }
    assert {each.partition(" -m ")[0] for each in started} == {str(program.with_name("python"))}
    shutil.copy(folder / "deploy/systemd/email-ingestion-worker@.service", folder / "email-ingestion-worker@2.service")
    command = [shutil.which("systemd-analyze") or pytest.skip("systemd is not installed"), "verify", "--man=no"]
    command += [str(each) for each in units if "@." not in each.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr
