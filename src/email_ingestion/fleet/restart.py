"""Restart processes of this machine as they were started; workers one after the other without a pause.

    rolling:  a further worker, where there is only one ─▶ each: stop, start, wait until ready ─▶ end it

A worker that is stopped finishes what it has in hand; the others go on with the rest. What a service manager or another
process of ours looks after is refused: it would be started twice, or by nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import psutil

from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.managed_processes import (
    ManagedProcess,
    ProcessesNotStarted,
    end_started,
    entry_point,
    find_processes,
    is_entry_point,
    process_ports,
    wait_until_ready,
)
from email_ingestion.fleet.subprocesses import DetachedProcess, terminate
from email_ingestion.fleet.web_process import STEM as WEB
from email_ingestion.fleet.web_process import find_web, wait_until_served, web_url
from email_ingestion.interrupts import hold_interrupts
from email_ingestion.settings import Settings, environment

KILL_SECONDS = 5.0  # beyond STOP_SECONDS
STARTED_FIRST = "Interrupted: what was stopped is started again first."
MANAGERS = {"INVOCATION_ID": "systemd", "KUBERNETES_SERVICE_HOST": "Kubernetes"}  # by a variable of the process


@dataclass(frozen=True, slots=True)
class _Started:
    """How a process was started."""

    stem: str
    process: psutil.Process
    command: tuple[str, ...]
    variables: dict[str, str]


def restart(settings: Settings, component: str, *, rolling: bool, say: Callable[[str], None]) -> list[str]:
    """Restart the processes of a component; return their names.

    Raises OperationFailed when there is none, or somebody else looks after one: then nothing was stopped. Raises
    ProcessesNotStarted when one does not come up again: the workers after it were left alone.
    """
    if rolling and component != "worker":
        raise OperationFailed("only workers are restarted one after the other: leave --rolling out")
    if component == WEB:
        return _restart_web(settings, say)
    running = [each for each in find_processes(settings) if each.pid and each.stem.partition("-")[0] == component]
    if not running:
        raise OperationFailed(f"no {component} runs on this machine: email-ingestion start")
    found = [_how_it_was_started(each) for each in running]
    if not rolling:
        _restart_together(settings, found, say)
    else:
        with _company(settings, found, say):
            for each in found:
                _restart_together(settings, [each], say)
    return [each.stem for each in found]


def _restart_web(settings: Settings, say: Callable[[str], None]) -> list[str]:
    web = find_web(settings)
    if web is None or web.state == "dead":
        raise OperationFailed("no web process runs on this machine: email-ingestion start")
    found = _how_it_was_started(ManagedProcess(WEB, web.pid, None))
    variables = dict(found.variables)
    if web.url and variables.get("WEB_PORT") == "0":  # a trial's: links to the pages go on to work
        variables["WEB_PORT"] = str(urlsplit(web.url).port)
    started, started_at = _stop_and_start(settings, [replace(found, variables=variables)], say)
    process = started[WEB]
    if problem := wait_until_served(settings, process):
        process.end(KILL_SECONDS)
        raise ProcessesNotStarted({WEB: problem})
    say(f"{WEB} answers again after {time.monotonic() - started_at:.1f} s: {web_url(settings.pid_dir)}")
    return [WEB]


def _how_it_was_started(process: ManagedProcess) -> _Started:
    try:
        found = psutil.Process(process.pid)
        command, variables, parent = tuple(found.cmdline()), found.environ(), found.parent()
        manager = next((name for variable, name in MANAGERS.items() if variable in variables), None)
        if manager and (parent is None or parent.pid == 1):
            raise OperationFailed(f"{process.stem} is looked after by {manager}: restart it there, one after the other")
        if parent and parent.pid != 1 and is_entry_point(parent.cmdline()):
            raise OperationFailed(
                f"{process.stem} belongs to PID {parent.pid}, which keeps several workers: stop and start that one"
            )
    except psutil.Error as error:
        raise OperationFailed(f"{process.stem} cannot be looked into: give the command as its user, or root") from error
    return _Started(process.stem, found, command, variables)


@contextmanager
def _company(settings: Settings, found: Sequence[_Started], say: Callable[[str], None]) -> Iterator[None]:
    """Keep a further worker running meanwhile where there is only one."""
    if len(found) > 1:
        yield
        return
    number = 2 if found[0].stem != "worker-2" else 1
    stem = "worker" if number == 1 else f"worker-{number}"
    command = [*entry_point("worker"), "--instance", str(number)]
    variables = environment() | process_ports(settings, number)
    helper = {stem: DetachedProcess(command, settings.log_dir / f"{stem}.log", variables)}
    try:
        wait_until_ready(settings, helper)
        say(f"{stem} delivers meanwhile")
        yield
    finally:
        end_started(settings, helper)
        say(f"{stem} has ended again")


def _restart_together(settings: Settings, found: Sequence[_Started], say: Callable[[str], None]) -> None:
    started, started_at = _stop_and_start(settings, found, say)
    try:
        wait_until_ready(settings, started)
    except ProcessesNotStarted:
        with suppress(psutil.Error):
            end_started(settings, {stem: it for stem, it in started.items() if it.exit_code() is None})
        raise
    for stem in started:
        say(f"{stem} is ready again after {time.monotonic() - started_at:.1f} s")


def _stop_and_start(
    settings: Settings, found: Sequence[_Started], say: Callable[[str], None]
) -> tuple[dict[str, DetachedProcess], float]:
    """Stop processes and start them again; return them by name, and since when they start, monotonic.

    How each ended is told when they run again: who reads it may be gone.
    """
    with hold_interrupts(STARTED_FIRST):
        killed = terminate([each.process for each in found], settings.stop_seconds + KILL_SECONDS)
        started_at = time.monotonic()
        started = {
            each.stem: DetachedProcess(each.command, settings.log_dir / f"{each.stem}.log", each.variables)
            for each in found
        }
    for each in found:
        say(f"{each.stem} {'had to be killed' if each.process in killed else 'stopped'}")
    return started, started_at
