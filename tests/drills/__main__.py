"""Plays one drill for whoever writes a runbook: `python -m tests.drills NAME`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.drills.play import RUNBOOKS, drill, procedures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("name", nargs="?", help="such as incident_response#21-redis-down; none: list them")
    parser.add_argument("--variant", default="", help="the id of a step that is an alternative")
    parser.add_argument("--alerts", action="store_true", help="with Prometheus and Alertmanager")
    parser.add_argument("--pages", type=Path, default=RUNBOOKS, help="the folder of the pages")
    options = parser.parse_args()
    found = {each.name: each for each in procedures(options.pages)}
    if options.name not in found:
        print("\n".join(f"{name}  {' '.join(each.variants)}" for name, each in found.items()))  # noqa: T201
        return 0 if options.name is None else 64
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    outcome = drill(found[options.name], folder, variant=options.variant, alerts=options.alerts)
    print(outcome.failure or outcome.as_dict(), f"\nevidence: {folder}")  # noqa: T201
    return 1 if outcome.failure else 0


if __name__ == "__main__":
    sys.exit(main())
