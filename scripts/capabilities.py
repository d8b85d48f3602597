"""Run what an engineer on call can do on the live stack, and write what works into docs/capabilities.md.

python scripts/capabilities.py            # starts the sandbox's stack in a folder of its own, on its usual ports
python scripts/capabilities.py A1 X6      # only these, and writes nothing
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "scripts" / "capabilities.toml"
PAGE = ROOT / "docs" / "capabilities.md"
COMMAND_SECONDS = 120
TITLES = {
    "E": "Endpoints",
    "T": "Metrics and thresholds",
    "C": "Diagnosis",
    "L": "Log queries",
    "A": "Mitigation",
    "B": "Backup, maintenance",
    "X": "Security",
    "Q": "Load",
    "I": "Incidents",
    "N": "Notices",
}
HEAD = """# What an engineer on call can do

Written by `python scripts/capabilities.py`, which runs each command on the live stack (Gmail sandbox, Redis, producer,
worker) and looks at its exit code and output; the rows are in `scripts/capabilities.toml`. An alert is looked up in
`config/alerts.yml`; that it rings in its fault, and only there, `tests/alerts/test_alert_rules.py` proves. Where a
command would need a person, or tell people, only its help is asked for, and the test beside it proves the rest.

{count}

"""


@dataclass(frozen=True)
class Result:
    """What became of one capability."""

    name: str
    row: dict[str, Any]
    verdict: str  # works, does not apply, not yet, failed
    remark: str


def load_rows() -> dict[str, dict[str, Any]]:
    """Return all capabilities by their name."""
    return tomllib.loads(ROWS.read_text())


def try_row(name: str, row: dict[str, Any], folder: Path, rules: str) -> Result:
    """Run the commands of one capability."""
    if "reason" in row:
        return Result(name, row, "does not apply", row["reason"])
    output = ""
    for alert in row.get("alerts", ()):
        if f"alert: EmailIngestion{alert}\n" not in rules:
            return Result(name, row, "failed", f"there is no alert {alert}")
    for command in row.get("run", ()):
        done = _shell(command, folder)
        output += done.stdout + done.stderr
        if incident := re.search(r"INC-\d{8}-\d{3}", output):
            os.environ["INCIDENT"] = incident[0]  # for the rows after the one that opens it
        if done.returncode not in row.get("codes", [0]):
            return Result(name, row, "failed", f"`{command}` ended with {done.returncode}: {_last_line(output)}")
    if "shows" in row and not re.search(row["shows"], output):
        return Result(name, row, "failed", f"its output has no `{row['shows']}`")
    return Result(name, row, "not yet", row["missing"]) if "missing" in row else Result(name, row, "works", "")


def write_page(results: list[Result]) -> None:
    """Write the page, with the lines it had for capabilities that were not tried now."""
    before = PAGE.read_text().splitlines(keepends=True) if PAGE.exists() else []
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in before if re.match(r"\| [A-Z]\d+ \|", line)}
    lines |= {each.name: _line(each) for each in results}
    ordered = {name: lines[name] for name in load_rows() if name in lines}
    verdicts = [line.rpartition(" | ")[2].removesuffix(" |\n").partition(":")[0] for line in ordered.values()]
    counts = (f"{each} {verdicts.count(each)}" for each in dict.fromkeys(("works", *verdicts)))
    parts = [HEAD.format(count=f"Of {len(ordered)}: {', '.join(counts)}.")]
    for letter, title in TITLES.items():
        parts.append(f"## {title}\n\n| | Capability | Command | Proved by | Result |\n|---|---|---|---|---|\n")
        parts += [line for name, line in ordered.items() if name.startswith(letter)]
        parts.append("\n")
    PAGE.write_text("".join(parts).rstrip("\n") + "\n")


def _line(result: Result) -> str:
    row = result.row
    told = (*row.get("run", ()), *(f"EmailIngestion{each}" for each in row.get("alerts", ())))
    shown = "<br>".join(f"`{each}`".replace("|", "\\|") for each in told) or "-"
    proof = row.get("proof", "tests/alerts/test_alert_rules.py" if "alerts" in row else "this page")
    remark = f": {result.remark}" if result.remark else ""
    return f"| {result.name} | {row['what']} | {shown} | {proof} | {result.verdict}{remark.replace('|', ' ')} |\n"


def _shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": path, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=COMMAND_SECONDS,
        check=False,
    )


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1][:150] if lines else "it said nothing"


def main(names: list[str]) -> int:
    """Try the capabilities; return 1 when one failed that should work."""
    rows = {name: row for name, row in load_rows().items() if not names or name in names}
    rules = (ROOT / "config" / "alerts.yml").read_text()
    with tempfile.TemporaryDirectory(prefix="capabilities-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        started = _shell("email-ingestion start --sandbox", folder)
        if started.returncode:
            sys.stderr.write(started.stdout + started.stderr)
            return 2
        try:
            results = []
            for name, row in rows.items():
                begin = time.monotonic()
                results.append(try_row(name, row, folder, rules))
                took, found = time.monotonic() - begin, results[-1]
                sys.stdout.write(f"{name:<4} {found.verdict:<15} {took:5.1f} s  {row['what']}  {found.remark}\n")
                sys.stdout.flush()
        finally:
            _shell("email-ingestion stop", folder)
    write_page(results)
    return int(any(each.verdict == "failed" for each in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
