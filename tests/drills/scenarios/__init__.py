"""All scenarios, by name: every module of this folder adds its own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.drills.scenarios.base import Scenario


def scenarios() -> dict[str, type[Scenario]]:
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        import_module(f"tests.drills.scenarios.{path.stem}")
    return {kind.name: kind for kind in _below(Scenario) if kind.name}


def _below(kind: type[Scenario]) -> list[type[Scenario]]:
    return [each for child in kind.__subclasses__() for each in (child, *_below(child))]
