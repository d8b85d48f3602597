"""Take, parse, mark done: our worker, with and without its database, against task queues and a loop by hand."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import corpus_file
from bench.corpus import letters
from bench.rounds import ROOT, Failed, Medians, Run, Say, finish, race
from bench.tables import Aim, Section
from bench.venvs import environment, version
from tests.servers.redis import RedisServer, running_redis

PEERS = ROOT / "bench" / "peers"
PATIENCE = 120.0
OURS, WITH_DATABASE, BY_HAND = "email-ingestion", "email-ingestion, into SQLite", "a loop by hand"


@dataclass(frozen=True, slots=True)
class Peer:
    """A library, how it is installed, and the script that uses it."""

    name: str
    package: str
    requirement: str
    script: str
    options: tuple[str, ...] = ()
    batches: bool = False


ALL = (
    Peer("FastStream, batches", "faststream", "faststream[redis]", "faststream_peer.py", ("--batch",), batches=True),
    Peer("FastStream", "faststream", "faststream[redis]", "faststream_peer.py"),
    Peer("Dramatiq", "dramatiq", "dramatiq[redis]", "dramatiq_peer.py"),
    Peer("taskiq", "taskiq-redis", "taskiq-redis", "taskiq_peer.py"),
    Peer("arq", "arq", "arq", "arq_peer.py"),
    Peer("Celery", "celery", "celery[redis]", "celery_peer.py"),
    Peer("RQ", "rq", "rq", "rq_peer.py"),
)


def measure(*, count: int, rounds: int, say: Say, peers: Sequence[Peer] = ALL) -> Section:
    """Everybody, on one Redis with its AOF written every second."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, running_redis(Path(name) / "redis") as server:
        folder = Path(name)
        corpus_file.write(folder / "corpus", letters(count))
        contest = _Contest(folder, server, count)
        contenders = {
            OURS: partial(contest.run, contest.ours, "ours"),
            BY_HAND: partial(contest.run, [contest.python, PEERS / "by_hand.py"], "ours"),
            WITH_DATABASE: partial(contest.run, contest.ours, "database"),
        }
        names, missing = [], {}
        for peer in peers:
            try:
                python = environment(peer.package, peer.requirement)
            except OSError as error:
                missing[peer.name] = f"could not be installed: {error}"
                say(f"  {peer.name}: {missing[peer.name]}")
                continue
            label = f"{peer.name} {version(python, peer.package)}"
            names.append((peer, label))
            command = [python, PEERS / peer.script]
            contenders[_standard(label)] = partial(contest.run, command, "standard", peer.options)
            contenders[_same(label)] = partial(contest.run, command, "ours", peer.options)
        found, out = race(contenders, rounds, say)
    return _section(found, names, missing | out, count)


def _standard(label: str) -> str:
    return f"{label}, standard parser"


def _same(label: str) -> str:
    return f"{label}, our parser"


class _Contest:
    def __init__(self, folder: Path, server: RedisServer, count: int) -> None:
        self._folder = folder
        self._server = server
        self._count = count
        self.python = Path(sys.executable)
        self.ours: list[str | Path] = [self.python, "-m", "bench.ours"]

    def run(self, command: Sequence[str | Path], parser: str, options: Sequence[str] = ()) -> Run:
        """Fill an empty Redis, and measure how long it takes until all is handled."""
        with self._server.client() as client:
            client.flushall()
        place = self._folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        # A peer takes its own libraries first, and what our parser needs from us.
        ours = [str(ROOT), str(ROOT / "src"), *(path for path in sys.path if path.endswith("site-packages"))]
        mine = command[0] == self.python
        variables = {"PATH": os.environ["PATH"], "C_FORCE_ROOT": "1", "BENCH_PATH": os.pathsep.join(ours)}
        if mine:
            variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        rest = [self._server.url, str(self._folder / "corpus"), str(self._count), parser, *options]
        finish([*command, "fill", *rest], environment=variables, cwd=place, patience=PATIENCE)
        ended = finish([*command, "work", *rest], environment=variables, cwd=place, patience=PATIENCE)
        try:
            took = json.loads(next(line for line in ended.output.splitlines() if line.startswith("{")))
        except StopIteration:
            raise Failed("it did not say what it took") from None
        return Run(self._count, took["seconds"], took["cpu"], ended.peak)


def _section(
    found: dict[str, Medians], names: Sequence[tuple[Peer, str]], missing: dict[str, str], count: int
) -> Section:
    ours, database, by_hand = found[OURS], found[WITH_DATABASE], found[BY_HAND]
    rows = [_row(each, ours) for each in (ours, database, by_hand)]
    present = [(peer, found.get(_standard(label)), found.get(_same(label))) for peer, label in names]
    for _, standard, same in present:
        rows += [_row(each, ours) for each in (standard, same) if each]
    aims = [Aim("Worker: parse and mark done, against the loop by hand with our parser", ours.rate / by_hand.rate, 0.6)]
    for batches, times, kind in ((True, 2.0, "fastest peer in batches"), (False, 4.0, "fastest peer by message")):
        for theirs, column in (("standard parser there", 1), ("our parser there", 2)):
            rates = [one[column].rate for one in present if one[0].batches == batches and one[column]]
            if not rates:
                continue
            aims.append(Aim(f"Worker against the {kind}, {theirs}", ours.rate / max(rates), times))
            if batches:
                what = f"Worker with its database against the {kind} without one, {theirs}"
                aims.append(Aim(what, database.rate / max(rates), 1.0))
    return Section(
        "Worker: take, parse, mark done",
        f"{count:,} messages of the corpus lie in Redis; measured from the first message taken to the last one done, "
        "without the start of the process. One worker process each; ours has its parser beside it in a process of its "
        "own, and its CPU time is included. “Standard parser” is what people write in a handler: `email` with its "
        "modern policy, four header fields, every part decoded. “Our parser” makes the same record there as here.",
        ("Worker", "messages/s", "CPU ms/message", "spread", "ours is"),
        rows,
        aims,
        [f"{name}: {why}" for name, why in missing.items()],
        {"worker_rate": database.rate, "worker_cpu_ms": database.cost},
    )


def _row(one: Medians, ours: Medians) -> tuple[str, ...]:
    ratio = "" if one is ours else f"{ours.rate / one.rate:.1f} ×"
    return (one.name, f"{one.rate:,.0f}", f"{one.cost:.2f}", f"± {one.spread / 2:.0%}", ratio)
