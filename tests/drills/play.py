"""Plays drills, each in a process and, where this machine permits, in a namespace of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.drills.addresses import free_addresses, literal_addresses
from tests.drills.drill import Outcome, play
from tests.drills.namespace import enter, literal
from tests.drills.runbook import BadRunbook, Procedure, pages, read
from tests.servers.processes import ROOT

RUNBOOKS = ROOT / "docs" / "runbooks"
DRILL_SECONDS = 280.0
WITH_ALERTS_SECONDS = 900.0


@cache
def procedures(folder: Path = RUNBOOKS) -> list[Procedure]:
    """All that are drilled, page by page. Raises BadRunbook."""
    return [procedure for page in pages(folder) for procedure in page.procedures]


def drill(procedure: Procedure, folder: Path, *, variant: str = "", alerts: bool = False) -> Outcome:
    """Play one; its world lies below `folder`, which keeps the evidence."""
    found = literal()
    report = folder / "outcome.json"
    command = [*found.prefix, sys.executable, "-m", "tests.drills.play", str(procedure.where.path), procedure.anchor]
    command += ["--folder", str(folder), "--variant", variant]
    command += ["--alerts"] if alerts else []
    command += ["--literal"] if found.prefix else []
    seconds = WITH_ALERTS_SECONDS if alerts else DRILL_SECONDS
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    outcome = Outcome(procedure.name, procedure.title, variant)
    if report.exists():
        outcome = Outcome(**json.loads(report.read_text()))
    else:
        outcome.failure = f"the drill itself broke: {done.stdout[-1000:]}{done.stderr[-4000:]}"
    outcome.ports = f"literal ({found.how})" if found.prefix else f"by substitution: {found.how}"
    return outcome


def _inside(words: Sequence[str] | None = None) -> int:
    """What runs in the namespace: one drill, whose outcome goes into a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("anchor")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--alerts", action="store_true")
    parser.add_argument("--literal", action="store_true")
    options = parser.parse_args(words)
    try:
        chosen = next(each for each in read(options.page).procedures if each.anchor == options.anchor)
        if options.literal:
            enter(options.folder)
        addresses = literal_addresses() if options.literal else free_addresses(options.folder)
        outcome = play(chosen, options.folder, addresses, variant=options.variant, alerts=options.alerts)
    except BadRunbook as error:
        outcome = Outcome(options.anchor, options.anchor, failure=str(error))
    (options.folder / "outcome.json").write_text(json.dumps(outcome.as_dict(), indent=2))
    return 1 if outcome.failure else 0


if __name__ == "__main__":
    sys.exit(_inside())
