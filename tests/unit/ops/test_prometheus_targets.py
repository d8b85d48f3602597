"""Where Prometheus finds our processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from email_ingestion.errors import ConfigurationError
from email_ingestion.fleet.managed_processes import stop_all
from email_ingestion.ops.prometheus_targets import TARGETS, remove_target, write_target
from email_ingestion.settings import Settings


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_process_is_announced_as_prometheus_reads_it_and_taken_away_again() -> None:
    TARGETS.mkdir(parents=True)
    TARGETS.chmod(0o2750)  # open to a group: Prometheus has a user of its own
    write_target("worker-2", "worker", "http://127.0.0.1:9092")
    (path,) = TARGETS.iterdir()
    assert path.name == "worker-2.json"
    labels = {"component": "worker", "process": "worker-2"}
    assert json.loads(path.read_text()) == [{"targets": ["127.0.0.1:9092"], "labels": labels}]
    assert path.stat().st_mode & 0o040
    remove_target("worker-2")
    remove_target("worker-2")
    assert list(TARGETS.iterdir()) == []


def test_stopping_everything_forgets_a_process_that_died() -> None:
    Path("pids").mkdir()
    Path("pids/worker.pid").write_text("999999999")
    write_target("worker", "worker", "http://127.0.0.1:9091")
    assert stop_all(Settings(), lambda line: None)
    assert list(TARGETS.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named() -> None:
    Path("data").write_text("")
    with pytest.raises(ConfigurationError, match="make data writable"):
        write_target("worker", "worker", "http://127.0.0.1:9091")
