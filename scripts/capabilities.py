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
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
worker, Prometheus, somebody who is told, new mail and a dead letter) and looks at its exit code and output; the rows
are in `scripts/capabilities.toml`. An alert is looked up in `config/alerts.yml`; that it rings in its fault, and only
there, `tests/alerts/test_alert_rules.py` proves. Where a command needs a person or a fault that is not there, the test
beside it proves what the command alone does not show.

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
    return (
        Result(name, row, "not yet", row["missing"])
        if "missing" in row
        else Result(name, row, "works", row.get("note", ""))
    )


def set_the_stage(folder: Path) -> None:
    """Deliver new mail, make a dead letter, and wait until both are seen."""
    deliver = 'curl -sf localhost:1181/deliver -d \'{"raw": "Subject: fresh\\\\r\\\\n\\\\r\\\\nhello %d"}\''
    for number in range(3):
        _shell(deliver % number, folder)
    _shell("email-ingestion redis-cli XADD '{email_ingestion}:stream' '*' written_by 'another program'", folder)
    deadline = time.monotonic() + COMMAND_SECONDS
    seen = "email-ingestion dlq list && email-ingestion search fresh"
    while _shell(seen, folder).returncode and time.monotonic() < deadline:
        time.sleep(1)


@contextmanager
def _somebody(heard: Path) -> Iterator[int]:
    """Take what is posted, and write it down; yields the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
            with heard.open("a") as file:
                file.write(f"{self.path} {body}\n")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@contextmanager
def _prometheus(folder: Path) -> Iterator[None]:
    """Start Prometheus as config/prometheus.yml says, and wait until it has asked a process."""
    (folder / "config").mkdir(exist_ok=True)
    for name in ("prometheus.yml", "alerts.yml"):
        (folder / "config" / name).write_text((ROOT / "config" / name).read_text())
    command = ["prometheus", "--config.file=config/prometheus.yml", "--storage.tsdb.path=data/prometheus"]
    command.append("--web.listen-address=127.0.0.1:9690")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    deadline = time.monotonic() + COMMAND_SECONDS
    asked = "curl -sfg 'localhost:9690/api/v1/query?query=email_ingestion_stream_depth' | grep -q value"
    while _shell(asked, folder).returncode and time.monotonic() < deadline:
        time.sleep(1)
    yield
    process.terminate()
    process.wait()


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
    with (
        tempfile.TemporaryDirectory(prefix="capabilities-", ignore_cleanup_errors=True) as temporary,
        ExitStack() as stack,
    ):
        folder = Path(temporary)
        port = stack.enter_context(_somebody(folder / "told.txt"))
        told = f"json://127.0.0.1:{port}/"
        os.environ |= {"ALERT_CHANNELS": told, "ALERT_SECONDS": "5", "TOLD": str(port), "ROOT": str(ROOT)}
        started = _shell("email-ingestion start --sandbox", folder)
        if started.returncode:
            sys.stderr.write(started.stdout + started.stderr)
            return 2
        try:
            set_the_stage(folder)
            stack.enter_context(_prometheus(folder))
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
