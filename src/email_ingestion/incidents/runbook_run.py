"""Runs the commands of a runbook's section one by one, as somebody confirms them, and keeps a transcript.

Each command's output is compared with what the page says it shows; secrets and addresses are masked in the transcript.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from email_ingestion.incidents.runbook_pages import RunbookSection, RunbookStep
from email_ingestion.ops.redaction import redact
from email_ingestion.settings import Settings, environment

KEPT_CHARACTERS = 20_000  # of one command's output
AGAIN_SECONDS = 2.0
BACKGROUND_SECONDS = 3.0  # after which what still runs goes on running

Answer = Literal["run", "skip", "quit"]


@dataclass(frozen=True, slots=True)
class RanStep:
    """One command that was run: its exit code (None: it was ended), its output, and what was not as the page says."""

    step: RunbookStep
    at: datetime
    code: int | None
    output: str
    lacking: str

    @property
    def line(self) -> str:
        """What happened, in one line."""
        result = "as the page says" if not self.lacking else f"not as the page says: {self.lacking}"
        first = self.step.command.split("\n")[0]
        return f"{self.step.phase} `{first}`: exit code {self.code}, {result}"


@dataclass
class RunbookTranscript:
    """What was run of a section, in order."""

    section: RunbookSection
    user: str
    ran: list[RanStep] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # commands that were not run, with the reason

    @property
    def is_verified(self) -> bool:
        """Whether a verification was run and all of it was as the page says."""
        last = {each.step.id: each for each in self.ran if each.step.phase == "verify"}
        return bool(last) and not any(each.lacking for each in last.values())

    def text(self) -> str:
        """Write it down."""
        parts = [
            f"# Runbook {self.section.heading}\n\nRun by {self.user}, at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC.\n"
        ]
        parts += [
            f"## {each.at:%H:%M:%S} {each.step.phase} {each.step.id}\n\n```\n$ {each.step.command}\n"
            f"{redact(each.output).rstrip()}\n```\n\n{each.line.rpartition('`: ')[2]}\n"
            for each in self.ran
        ]
        parts += [f"Not run: {line}\n" for line in self.left]
        return "\n".join(parts)


def run_section(
    section: RunbookSection,
    settings: Settings,
    user: str,
    *,
    ask: Callable[[int, int, RunbookStep], Answer],
    show_output: Callable[[str], None],
    ran: Callable[[RanStep], None],
) -> RunbookTranscript:
    """Run each command for which `ask` says so; `show_output` gets its output as it comes, `ran` what became of it."""
    transcript = RunbookTranscript(section, user)
    steps = section.steps()
    variables = _variables(settings)
    done: set[str] = set()
    for number, step in enumerate(steps, start=1):
        reason = step.skip or ("its alternative was run" if step.instead_of in done else "")
        answer = "skip" if reason else ask(number, len(steps), step)
        if answer == "quit":
            transcript.left += [f"`{each.command.splitlines()[0]}`: ended before it" for each in steps[number - 1 :]]
            break
        if answer == "skip":
            transcript.left.append(f"`{step.command.splitlines()[0]}`: {reason or 'left out'}")
            continue
        result = _run_until_as_said(step, variables, show_output)
        done.add(step.id)
        transcript.ran.append(result)
        ran(result)
    return transcript


def _run_until_as_said(step: RunbookStep, variables: dict[str, str], show: Callable[[str], None]) -> RanStep:
    """Run a command, again for as long as the page says that its result may take."""
    deadline = time.monotonic() + step.retry
    while True:
        at = datetime.now(UTC)
        code, output = (_run_in_background if step.background else _run)(step, variables, show)
        lacking = "" if step.background and code == 0 else step.lacks(code, output)  # its output is not ours
        if not lacking or time.monotonic() >= deadline:
            return RanStep(step, at, code, output, lacking)
        show(f"... {lacking}; again until {deadline - time.monotonic():.0f} s from now\n")
        time.sleep(AGAIN_SECONDS)


def _run(step: RunbookStep, variables: dict[str, str], show: Callable[[str], None]) -> tuple[int | None, str]:
    process = subprocess.Popen(
        ["bash", "-c", step.command],  # noqa: S607 - bash of the PATH, as the operator would type it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=variables,
        start_new_session=True,
    )
    ended = threading.Event()

    def end() -> None:
        ended.set()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(step.timeout, end)
    timer.start()
    kept, size = [], 0
    try:
        with process:
            for line in process.stdout or ():
                show(line)
                size += len(line)
                if size <= KEPT_CHARACTERS:
                    kept.append(line)
    except BaseException:
        end()
        raise
    finally:
        timer.cancel()
    if size > KEPT_CHARACTERS:
        kept.append(f"... {size - KEPT_CHARACTERS} characters more\n")
    return (None if ended.is_set() else process.returncode), "".join(kept)


def _run_in_background(
    step: RunbookStep, variables: dict[str, str], show: Callable[[str], None]
) -> tuple[int | None, str]:
    """Start what stays in the foreground of a terminal, in a session of its own, so that it outlives us."""
    process = subprocess.Popen(
        ["bash", "-c", step.command],  # noqa: S607 - as above
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=variables,
        start_new_session=True,
    )
    try:
        code = process.wait(BACKGROUND_SECONDS)
        text = "it ended at once; its log says why\n"
    except subprocess.TimeoutExpired:
        code, text = 0, f"it runs in the background, PID {process.pid}\n"
    show(text)
    return code, text


def _variables(settings: Settings) -> dict[str, str]:
    """Return what the page's first block sets: our commands in the PATH, and where Redis is."""
    given = environment()
    redis = urlsplit(settings.redis_address.url)
    found = {"REDIS_HOST": redis.hostname or "localhost", "REDIS_PORT": str(redis.port or 6379)}
    if redis.password and not redis.username:
        found["REDISCLI_AUTH"] = unquote(redis.password)
    path = f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}"
    return {**found, **given, "PATH": path}
