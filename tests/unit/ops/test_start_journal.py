"""Starts of processes: each with its end, and those without one were killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.ops import memory_report, start_journal
from email_ingestion.ops.memory_report import watch_memory
from email_ingestion.ops.start_journal import CRASH_SECONDS, NAME, read_starts, recent_crashes, record_start
from tests.unit.ops.shown import WORKER


def test_a_start_has_its_end_with_code_and_reason(tmp_path: Path):
    with record_start(tmp_path, WORKER) as start:
        (running,) = read_starts(tmp_path)
        assert (running.process, running.version, running.ended) == (WORKER.stem, WORKER.version, None)
        start.reason, start.exit_code = "SIGTERM", 0
    (found,) = read_starts(tmp_path)
    assert (found.exit_code, found.reason, found.ended is not None) == (0, "SIGTERM", True)


@pytest.mark.parametrize(("error", "code"), [(ConfigurationError("no"), 78), (OperationFailed("no"), 2)])
def test_an_error_that_ends_a_process_is_its_reason(tmp_path: Path, error: Exception, code: int):
    with pytest.raises(type(error)), record_start(tmp_path, WORKER):
        raise error
    (found,) = read_starts(tmp_path)
    assert (found.exit_code, found.reason) == (code, type(error).__name__)


def test_what_is_no_start_is_left_out_and_the_file_does_not_grow_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / NAME).write_text("no JSON\n[1]\n{}\n")
    assert read_starts(tmp_path) == []
    monkeypatch.setattr(start_journal, "MAX_BYTES", 2000)
    for _ in range(60):
        with record_start(tmp_path, WORKER):
            pass
    assert (tmp_path / NAME).stat().st_size < 3000
    assert read_starts(tmp_path)[-1].ended is not None


def test_a_folder_that_cannot_be_written_keeps_nothing_from_running(tmp_path: Path):
    (tmp_path / "logs").write_text("a file")
    with record_start(tmp_path / "logs", WORKER):
        pass
    assert read_starts(tmp_path / "logs") == []


def test_the_line_that_holds_memory_is_named_and_two_do_not_watch_at_once():
    held: list[bytearray] = []

    def leak(seconds: float) -> None:
        del seconds
        held.extend(bytearray(1000) for _ in range(2000))
        with pytest.raises(OperationFailed, match="watched already"):
            watch_memory(0.1, 1)

    report = watch_memory(5, 3, leak)
    assert report["lines"][0]["place"].startswith("unit/ops/test_start_journal.py:")
    assert report["held_bytes"] >= 2_000_000
    assert not memory_report.tracemalloc.is_tracing()


def test_crashes_are_ends_that_nobody_ordered_and_after_which_it_was_started_again(tmp_path: Path):
    def starts(*ends: dict[str, object] | None, process: str = "worker") -> None:
        for number, end in enumerate(ends):
            start = {"process": process, "pid": number, "version": "1", "started": 1000.0 + 10 * number}
            with (tmp_path / NAME).open("a") as file:
                file.write(json.dumps(start) + "\n" + (json.dumps(start | end) + "\n" if end else ""))

    ordered = {"ended": 1005.0, "exit_code": 0, "reason": "SIGTERM"}
    starts(ordered, None, ordered, {"ended": 1035.0, "exit_code": 2, "reason": "OSError"}, None, None)
    starts(None, process="producer")
    assert recent_crashes(tmp_path, 1100.0) == {"worker": 3}
    assert recent_crashes(tmp_path, 1045.0 + CRASH_SECONDS) == {}
    assert recent_crashes(tmp_path, 500.0) == {}, "the clock went back"
