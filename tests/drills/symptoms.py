"""Looks whether the stack shows a symptom that a runbook lists."""

from __future__ import annotations

import operator
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jmespath

from tests.drills.runbook import Symptom
from tests.drills.world import World

COMPARISON = re.compile(r"(absent\()?([a-z_:]+)(?:\{([^}]*)\})?\)?(?:\s*(==|!=|>=|<=|>|<)\s*([-\d.e]+))?")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
# Those that are over when the fault is; what was logged stays.
LASTING = ("ready", "breaker", "metric", "refused", "dead", "status", "stands")
STILL_SECONDS = 2.0


@dataclass
class Looker:
    """Knows what there was before the fault."""

    world: World
    _sizes: dict[Path, int] = field(default_factory=dict)
    _contents: dict[Path, bytes] = field(default_factory=dict)
    _first: dict[str, tuple[float, float | None]] = field(default_factory=dict)

    def mark(self) -> None:
        """What is in the logs now is from before the fault."""
        self._contents = {path: path.read_bytes() for path in self._logs()}
        self._sizes = {path: len(content) for path, content in self._contents.items()}

    def shows(self, symptom: Symptom) -> bool:
        look: Callable[[Symptom], bool] = getattr(self, f"_{symptom.kind}")
        return look(symptom)

    def truncated(self) -> list[str]:
        """Log files that lost what was in them before the fault."""
        return [
            path.name
            for path, content in self._contents.items()
            if not path.exists() or not path.read_bytes().startswith(content)
        ]

    def _logs(self) -> list[Path]:
        return sorted((self.world.folder / "logs").glob("*.log"))

    def _ready(self, symptom: Symptom) -> bool:
        code, _, word = symptom.value.partition("/")
        found = self.world.ready(symptom.process)
        return found[0] == int(code) and word in {"", found[1]}

    def _breaker(self, symptom: Symptom) -> bool:
        name, _, state = symptom.value.partition("/")
        breakers = self.world.status(symptom.process).get("circuit_breakers", [])
        return any((each["name"], each["state"]) == (name, state) for each in breakers)

    def _log(self, symptom: Symptom) -> bool:
        wanted = re.compile(symptom.value)
        for path in self._logs():
            with path.open("rb") as file:
                file.seek(self._sizes.get(path, 0))
                if wanted.search(file.read().decode(errors="replace")):
                    return True
        return False

    def _metric(self, symptom: Symptom) -> bool:
        found = COMPARISON.fullmatch(symptom.value)
        if not found:
            symptom.where.refuse(f"{symptom.value!r} is not like: name{{label=value}} > 0, or absent(name)")
        labels = dict(pair.replace('"', "").split("=") for pair in (found[3] or "").split(",") if pair)
        value = self.world.metric(found[2], symptom.process, **labels)
        if found[1]:
            return value is None and bool(self.world.status(symptom.process))
        return value is not None and (not found[4] or OPERATORS[found[4]](value, float(found[5])))

    def _status(self, symptom: Symptom) -> bool:
        body = self.world.status(symptom.process)
        return bool(body) and jmespath.search(symptom.value, body) == symptom.equals

    def _refused(self, symptom: Symptom) -> bool:
        port = int(self.world.url(symptom.process).rpartition(":")[2])
        with socket.socket() as probe:
            probe.settimeout(5)
            return probe.connect_ex(("127.0.0.1", port)) != 0

    def _dead(self, symptom: Symptom) -> bool:
        """A PID file without its process."""
        return self.world.pid(symptom.process) is not None and not self.world.alive(symptom.process)

    def _alert(self, symptom: Symptom) -> bool:
        if self.world.prometheus is None:
            return True  # this run has no alerts; the one with them looks
        return symptom.value in self.world.prometheus.firing()

    def _grows(self, symptom: Symptom) -> bool:
        """The metric is above its least value since the fault: the first one may be of a second before."""
        value = self.world.metric(symptom.value, symptom.process)
        if value is None:
            return False
        _, least = self._first.get(str(symptom), (0.0, value))
        self._first[str(symptom)] = (0.0, min(value, least))
        return value > least

    def _stands(self, symptom: Symptom) -> bool:
        """The metric has not moved for a while, although mail arrives."""
        value = self.world.metric(symptom.value, symptom.process)
        since, first = self._first.get(str(symptom), (time.monotonic(), value))
        if value is None or value != first:
            since, first = time.monotonic(), value
        self._first[str(symptom)] = (since, first)
        return value is not None and time.monotonic() - since > STILL_SECONDS

    def explain(self) -> str:
        """What the processes say now, for a complaint."""
        world, said = self.world, []
        for stem in sorted(world.pids()):
            ready = world.get("/ready", stem)
            said.append(f"{stem}: {'refused' if ready is None else ready} {world.status(stem).get('circuit_breakers')}")
        logs = [f"{path.name}: …{path.read_text(errors='replace')[-1500:]}" for path in self._logs()]
        told = [f"alerts told: {world.notified.heard}"] if world.notified else []
        return "\n".join([*said, *told, *logs])
