"""Writes docs/drills.md from what the drills left in a folder: `python -m tests.drills.page FOLDER docs/drills.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.drills.drill import Outcome
from tests.drills.play import procedures
from tests.drills.world import PACE

HEAD = """\
# Drills

Each procedure of the [runbooks](runbooks/incident_response.md), played on the live stack under the fault it is for:
a Gmail sandbox with TLS, Redis with AOF, a producer, workers, and mail that keeps arriving. The page's own commands
did the diagnosis and the repair; afterwards every message was in the database, a dead letter or purged, none twice.
Written by `scripts/test.sh --soak`; [how it works](../tests/drills/README.md).

*Detected*: from the fault to the last symptom the page lists. *Recovered*: from the first command of the
mitigation, or the end of a fault that heals itself, until all processes are ready and every breaker is closed; most
of it is the start of processes. *In flight*: messages in the mailbox and not yet in the database when the
mitigation began. *Alerts*: in a run of its own, with Prometheus and Alertmanager, those that the fault fires rang
and ended, and none of another section did.

"""
NOTHING = "-"
COLUMNS = ("Procedure", "Detected", "Recovered", "In flight", "Messages", "Alerts", "Result", "Date")


def read_outcomes(folder: Path) -> list[Outcome]:
    """In the order of the pages, each procedure's alternatives after it."""
    order = {procedure.name: number for number, procedure in enumerate(procedures())}
    outcomes = [Outcome(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(outcomes, key=lambda each: (order.get(each.name, len(order)), each.variant, each.alerts))


def page(outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    rung = {each.name: each for each in outcomes if each.alerts}
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [_row(each, rung.get(each.name)) for each in outcomes if not each.alerts]
    ports = sorted({each.ports for each in outcomes})
    pace = ", ".join(f"`{name}={value}`" for name, value in PACE.items())
    tail = [
        "",
        f"Ports and host names of the pages were {'; '.join(f'had {each}' for each in ports)}.",
        f"Set shorter than usual: {pace}; in the runs with alerts the durations in Prometheus' rules too.",
    ]
    return HEAD + "\n".join(lines + tail) + "\n"


def _row(plain: Outcome, rung: Outcome | None) -> str:
    path, _, anchor = plain.name.partition("#")
    title = f"[{plain.title}](runbooks/{path}.md#{anchor})" + (f", with `{plain.variant}`" if plain.variant else "")
    alerts = "" if plain.variant or rung is None else "as expected" if not rung.failure else "**not as expected**"
    cells = (
        title,
        _seconds(plain.detected),
        _seconds(plain.recovered),
        str(plain.in_flight) if plain.recovered is not None else NOTHING,
        str(plain.messages),
        alerts or NOTHING,
        "**failed**" if plain.failure else "passed",
        plain.date,
    )
    return f"| {' | '.join(cells)} |"


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f} s"


def main(words: Sequence[str]) -> int:
    folder, target = map(Path, words)
    outcomes = read_outcomes(folder)
    if not outcomes:
        return 1
    target.write_text(page(outcomes), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
