"""The web process as `status`, `doctor`, `check`, `restart`, `logs` and `stop` know it."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil

from email_ingestion.doctor.machine_checks import check_processes
from email_ingestion.doctor.service_checks import Look, check_workers
from email_ingestion.fleet.status_table import render_table, system_status
from email_ingestion.fleet.subprocesses import is_alive
from email_ingestion.settings import Settings
from tests.servers.ports import free_port
from tests.servers.processes import Place, place, until
from tests.servers.web import web_settings

COMMAND = ("-m", "email_ingestion")


def test_web_process_is_known_to_the_commands_that_know_the_others(tmp_path: Path) -> None:
    redis_url = f"redis://127.0.0.1:{free_port()}/0"
    with place(tmp_path, redis_url) as here:
        web = here.web()
        url = web.url("web_url")
        settings = web_settings(here.folder, redis_url)
        assert f"web: {url} (PID {web.process.pid})" in render_table(system_status(settings))
        again = here.run(*COMMAND, "restart", "web")
        try:
            assert (again.returncode, "web answers again after" in again.stdout) == (0, True), again.stderr
            assert not web.alive
            found = psutil.Process(pid_of(here))
            assert httpx.get(f"{url}/healthz", trust_env=False, timeout=30).text == "alive\n"  # links go on to work
            check_that_one_that_hangs_is_told(settings, found)
            found.kill()
            until(lambda: not is_alive(found), "it is gone")
            check_that_a_dead_one_is_told(settings, found.pid)
        finally:
            stopped = here.run(*COMMAND, "stop")
        assert stopped.returncode == 0, stopped.stderr
        assert system_status(settings).processes == ()
        alone = here.run(*COMMAND, "restart", "web")
        assert (alone.returncode, "no web process runs" in alone.stderr) == (2, True), alone.stderr
        assert "process_started" in here.run(*COMMAND, "logs", "--component", "web").stdout


def pid_of(here: Place) -> int:
    return int((here.folder / "pids" / "web.pid").read_text())


def check_that_one_that_hangs_is_told(settings: Settings, process: psutil.Process) -> None:
    process.send_signal(signal.SIGSTOP)
    try:
        system = system_status(settings)
    finally:
        process.send_signal(signal.SIGCONT)
    (row,) = [each.as_json() for each in system.processes]
    assert (row["component"], row["status"], system.missing) == ("web", "no answer", ())


def check_that_a_dead_one_is_told(settings: Settings, pid: int) -> None:
    dead = f"web: web (PID {pid}) is dead: ./scripts/start.sh"  # once the last of its threads let go of the PID file
    until(lambda: dead in render_table(system_status(settings)), "status tells it")
    system = system_status(settings)
    assert not system.ok
    assert system.nothing() in render_table(system)
    finding, nothing = check_processes(settings)
    assert (finding.check, finding.verdict, nothing.check) == ("process web", "degraded", "processes")
    assert "./scripts/start.sh" in finding.remedy
    assert "web" not in check_workers(Look(settings, datetime.now(UTC))).text  # none runs at all: that is told
