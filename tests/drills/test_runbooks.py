"""Every procedure of docs/runbooks, drilled on the live stack under the fault it is for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills import namespace
from tests.drills.play import DRILL_SECONDS, WITH_ALERTS_SECONDS, drill, procedures
from tests.drills.runbook import Procedure, read
from tests.servers.missing import program

EXAMPLE = Path(__file__).with_name("example.md")
# What the pages type, with its Debian package.
PROGRAMS = {"redis-server": "redis-server", "curl": "curl", "openssl": "openssl", "ps": "procps"}
RESULTS = "DRILLS_RESULTS"  # a folder: each drill leaves its outcome there, for docs/drills.md

pytestmark = pytest.mark.timeout(DRILL_SECONDS + 20)


def _all() -> Iterator[object]:
    for procedure in procedures():
        for variant in ("", *procedure.variants):
            long = pytest.mark.soak if procedure.soak or variant else ()
            name = f"{procedure.name}-{variant}" if variant else procedure.name
            yield pytest.param(procedure, variant, id=name, marks=long)


def _passes(procedure: Procedure, folder: Path, *, variant: str = "", alerts: bool = False) -> None:
    for name, package in PROGRAMS.items():
        program(name, package)
    outcome = drill(procedure, folder, variant=variant, alerts=alerts)
    if results := os.environ.get(RESULTS):
        kept = Path(results) / f"{procedure.name.replace('#', '.')}{variant and '.'}{variant}{'.alerts' * alerts}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(outcome.as_dict()))
    assert not outcome.failure, outcome.failure


@pytest.mark.parametrize(("procedure", "variant"), list(_all()))
def test_the_procedure_does_what_it_says(procedure: Procedure, variant: str, tmp_path: Path):
    _passes(procedure, tmp_path, variant=variant)


@pytest.mark.soak
@pytest.mark.timeout(WITH_ALERTS_SECONDS + 20)
@pytest.mark.parametrize(
    "procedure",
    [pytest.param(each, id=each.name) for each in procedures() if each.alerts],
)
def test_its_alerts_ring_and_no_other(procedure: Procedure, tmp_path: Path):
    program("prometheus", "prometheus")
    program("prometheus-alertmanager", "prometheus-alertmanager")
    _passes(procedure, tmp_path, alerts=True)


@pytest.mark.soak
def test_a_drill_can_do_without_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(namespace.SUBSTITUTE, "yes")
    (procedure,) = read(EXAMPLE).procedures
    outcome = drill(procedure, tmp_path, variant="by-hand")
    assert (outcome.failure, outcome.ports.split(":")[0]) == ("", "by substitution")
