"""Types a runbook's command in the drill and compares what it shows with what the page promises."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jmespath

from tests.drills.runbook import Evidence, Step
from tests.drills.world import Done, World

AGAIN_SECONDS = 0.5
SHOWN = 2_500  # characters of an output in a complaint


class DrillFailed(AssertionError):
    """A promise of a runbook that did not hold; names file and line."""


def run(step: Step, evidence: Evidence, world: World) -> Done:
    """Run a step until it shows the evidence or its time to be retried is over. Raises DrillFailed."""
    deadline = time.monotonic() + step.retry
    while True:
        done = world.shell(step.text, seconds=step.timeout, stdin=step.stdin)
        missing = lacking(evidence, done, world)
        if not missing:
            return done
        if time.monotonic() > deadline:
            raise DrillFailed(
                f"{step.where}: {step.phase} step {step.id!r}: {missing}\n$ {step.text}\n"
                f"(exit code {done.rc})\n{done.output[-SHOWN:]}"
            )
        time.sleep(AGAIN_SECONDS)


def lacking(evidence: Evidence, done: Done, world: World) -> str:
    """What is missing in an output, as a sentence; empty when nothing is."""
    if done.rc is None:
        return "it did not end in time"
    if evidence.rc is not None and done.rc != evidence.rc:
        return f"it ended with {done.rc}, expected {evidence.rc}"
    if evidence.match and not _found(evidence.match, done, world):
        return f"nothing matches {evidence.match!r}"
    if evidence.no_match and _found(evidence.no_match, done, world):
        return f"something matches {evidence.no_match!r}"
    return _differs(evidence, done.output) if evidence.json else ""


def _differs(evidence: Evidence, output: str) -> str:
    try:
        value = jmespath.search(evidence.json, json.loads(output))
    except ValueError:
        return "it is not JSON"
    return "" if value == evidence.equals else f"{evidence.json} is {value!r}, expected {evidence.equals!r}"


def _found(pattern: str, done: Done, world: World) -> Any:
    return re.search(world.addresses(pattern), done.output, re.MULTILINE)


@contextmanager
def left_running(step: Step, world: World) -> Iterator[None]:
    """A command that stays in the foreground, in a terminal of its own; it must not end by itself with an error."""
    process, output = world.open_shell(step.text, stdin=step.stdin)
    deadline = time.monotonic() + step.timeout
    while process.poll() is None and step.fault.match:
        if re.search(world.addresses(step.fault.match), output.read_text(errors="replace"), re.MULTILINE):
            break
        if time.monotonic() > deadline:
            said = output.read_text(errors="replace")[-SHOWN:]
            raise DrillFailed(f"{step.where}: nothing matches {step.fault.match!r}\n$ {step.text}\n{said}")
        time.sleep(AGAIN_SECONDS / 5)
    try:
        yield
        if process.poll():
            said = output.read_text(errors="replace")[-SHOWN:]
            raise DrillFailed(f"{step.where}: it ended with {process.returncode}\n$ {step.text}\n{said}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
