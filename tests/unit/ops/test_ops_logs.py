"""The log file, as an operator and a shipper read it."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.logs import configure_logs, logger
from email_ingestion.ops.status_records import Identity
from tests.unit.ops.shown import WORKER


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_is_one_json_object_that_says_who_when_and_what(logs: Path) -> None:
    logger("test").info("something_happened", email_id="default:gm:1", attempt=2, text_with_newline="a\nb")
    (record,) = records(logs)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("timestamp"))
    assert record.pop("pid") > 0
    assert record == {
        "level": "INFO",
        "event": "something_happened",
        "component": "worker",
        "instance": "worker-1",
        "email_id": "default:gm:1",
        "attempt": 2,
        "text_with_newline": "a\nb",
    }


def test_a_field_cannot_pretend_to_be_another_process(logs: Path) -> None:
    logger("test").info("spoof", component="producer", pid=1)
    (record,) = records(logs)
    assert record["component"] == "worker"
    assert record["pid"] != 1


def test_libraries_leave_through_the_same_door_from_warning_up(logs: Path) -> None:
    logging.getLogger("imapclient").info("chatter")
    logging.getLogger("redis.client").warning("retrying %s for bob@example.org", "PING")
    (record,) = records(logs)
    assert (record["level"], record["logger"]) == ("WARNING", "redis.client")
    assert record["event"] == "retrying PING for <address>"


def test_a_library_that_repeats_itself_is_logged_once_and_another_failure_still_is(logs: Path) -> None:
    for port in range(50):
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request from %s", port)
    for error in (OSError("no descriptors"), ValueError("bad")):
        logging.getLogger("asyncio").error("Exception in callback", exc_info=error)
    for word in ("old", "older"):
        logging.getLogger("py.warnings").warning(word)
    assert [record["logger"] for record in records(logs)] == ["uvicorn.error", *["asyncio"] * 2, *["py.warnings"] * 2]


def test_a_rotated_file_is_left_and_a_new_one_begun(logs: Path) -> None:
    logger("test").info("before")
    logs.rename(logs.with_suffix(".log.1"))
    logger("test").info("after")
    assert [record["event"] for record in records(logs.with_suffix(".log.1"))] == ["before"]
    assert [record["event"] for record in records(logs)] == ["after"]


def test_a_vanished_directory_comes_back_with_the_next_record(logs: Path) -> None:
    logger("test").info("before")
    logs.unlink()
    logs.parent.rmdir()
    logger("test").info("after")
    assert [record["event"] for record in records(logs)] == ["after"]


def test_a_log_that_cannot_be_written_stops_nobody(logs: Path) -> None:
    logger("test").info("before")
    logs.unlink()
    logs.mkdir()
    logger("test").info("lost")


def test_the_file_is_appended_to(logs: Path) -> None:
    logger("test").info("first_life")
    configure_logs(WORKER, logs.parent, "INFO", "json")
    logger("test").info("second_life")
    assert [record["event"] for record in records(logs)] == ["first_life", "second_life"]


def test_below_the_level_nothing_is_written_and_nothing_counted(logs: Path) -> None:
    counted: list[str] = []
    configure_logs(WORKER, logs.parent, "WARNING", "json", counted.append)
    logger("test").info("quiet")
    logger("test").error("loud")
    assert counted == ["ERROR"]
    assert [record["event"] for record in records(logs)] == ["loud"]


def test_the_second_worker_has_its_own_file(logs: Path) -> None:
    configure_logs(Identity("worker", "worker-2", "1", 2), logs.parent)
    logger("test").info("hello")
    assert records(logs.parent / "worker-2.log")[0]["instance"] == "worker-2"


def test_an_unwritable_directory_is_a_configuration_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"^cannot write .*; set LOG_DIR to "):
        configure_logs(WORKER, tmp_path / "file")


def test_the_console_is_for_people(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(WORKER, logs.parent, "INFO", "console")
    logger("test").warning("look_here", account="default")
    shown = capsys.readouterr().err
    assert "look_here" in shown
    assert not shown.startswith("{")
    assert records(logs)[0]["event"] == "look_here"


def test_nobody_writes_to_the_terminal_of_who_reads_the_console(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(WORKER, logs.parent, "INFO", "console")
    logger("test").warning("look_here", message="gone\x1b[2J\x07\u202e\r\nforged line", name="a\nb\x9b")
    shown = capsys.readouterr().err
    assert not set("\x07\u202e\r\x9b") & set(shown)
    assert "\x1b[2J" not in shown
    assert not [line for line in shown.splitlines() if line.startswith(("forged", "b"))]
    assert records(logs)[0]["message"].endswith("forged line")


CRASH = """
import sys, threading
from pathlib import Path
from email_ingestion.ops.logs import configure_logs
from email_ingestion.ops.status_records import Identity
configure_logs(Identity("worker", "worker-1", "1"), Path(sys.argv[1]))
def die():
    try:
        raise KeyError("Quarterly figures")
    except KeyError as error:
        raise OSError(28, "No space left on device") from error
thread = threading.Thread(target=die, name="sink")
thread.start(); thread.join()
die()
"""


def test_a_warning_and_an_exception_that_nobody_can_catch_are_records(logs: Path) -> None:
    class Finalized:
        def __del__(self) -> None:
            raise OSError(28, "No space left on device")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)  # pytest has put its own function in the place of ours
        warnings.warn("this parameter goes away", UserWarning, stacklevel=1)
    Finalized()
    found = records(logs)
    assert any(each.get("logger") == "py.warnings" and "goes away" in each["event"] for each in found)
    (ignored,) = [each for each in found if each["event"] == "exception_ignored"]
    assert (ignored["level"], ignored["error_type"]) == ("ERROR", "OSError")
    assert "No space left" in ignored["exception"]


def test_a_crash_leaves_its_stack_in_the_log_without_what_it_choked_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path)], check=False, capture_output=True, text=True, timeout=20
    )
    in_thread, at_the_top = records(tmp_path / "worker.log")
    assert done.returncode == 1
    assert (in_thread["event"], in_thread["thread"]) == ("thread_crashed", "sink")
    assert (at_the_top["event"], at_the_top["level"]) == ("process_crashed", "CRITICAL")
    assert at_the_top["error_type"] == "OSError"
    assert "in die" in at_the_top["exception"]
    assert "No space left" in at_the_top["exception"]
    assert "KeyError: text withheld" in at_the_top["exception"]
    said = [line for line in done.stderr.splitlines() if '"exception"' not in line]
    assert "Quarterly figures" not in "".join(said)
