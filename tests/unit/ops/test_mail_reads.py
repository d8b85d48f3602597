"""Reads of mail are counted from the audit log, whoever wrote it and however it is rotated."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.audit_log import verify_audit, write_audit
from email_ingestion.ops.mail_reads import MailReads, record_read


def counted(reads: MailReads) -> dict[tuple[str, str], float]:
    family: Metric = next(iter(reads.collect()))
    return {
        (each.labels["via"], each.labels["action"]): each.value
        for each in family.samples
        if each.value and each.name.endswith("_total")
    }


def hour(reads: MailReads) -> float:
    return list(reads.collect())[1].samples[0].value


@pytest.fixture
def reads(tmp_path: Path) -> MailReads:
    return MailReads(tmp_path)


def test_an_export_counts_each_message_and_a_search_each_screen(tmp_path: Path, reads: MailReads):
    record_read(tmp_path, "cli", "ada", "export", messages=1, email_ids=["default:gm:1"])
    record_read(tmp_path, "cli", "ada", "dlq export", messages=30)
    record_read(tmp_path, "cli", "ada", "search", messages=0)
    assert counted(reads) == {("cli", "export"): 1, ("cli", "dlq export"): 30, ("cli", "search"): 1}
    record_read(tmp_path, "cli", "ada", "search", messages=100)
    record_read(tmp_path, "api", "bob", "export", messages=2)
    assert counted(reads)["cli", "search"] == 6
    assert counted(reads)["api", "export"] == 2
    assert hour(reads) == 39
    assert not verify_audit(tmp_path).breaks


def test_what_is_no_read_is_not_counted_and_no_value_makes_a_new_series(tmp_path: Path, reads: MailReads):
    write_audit(tmp_path, {"action": "dlq replay", "result": "done"})
    write_audit(tmp_path, {"action": "export", "via": "somebody@example.org", "read": True})
    write_audit(tmp_path, {"action": "somebody@example.org", "via": "ftp", "read": 4})
    with (tmp_path / "audit.log").open("a") as file:
        file.write("no JSON\n[1]\n")
    assert counted(reads) == {("_OTHER", "_OTHER"): 4}


@pytest.mark.parametrize("compressed", [False, True])
def test_a_rotation_loses_and_doubles_nothing(tmp_path: Path, reads: MailReads, compressed: bool):
    record_read(tmp_path, "cli", "ada", "export", messages=1)
    assert counted(reads) == {("cli", "export"): 1}
    record_read(tmp_path, "cli", "ada", "export", messages=2)
    if compressed:
        assert counted(reads) == {("cli", "export"): 3}
    rotated = (tmp_path / "audit.log").rename(tmp_path / "audit.log-20260131")
    if compressed:
        with gzip.open(tmp_path / "audit.log-20260131.gz", "wb") as file:
            file.write(rotated.read_bytes())
        rotated.unlink()
    record_read(tmp_path, "cli", "ada", "export", messages=4)
    assert counted(reads) == {("cli", "export"): 7}
    assert counted(reads) == {("cli", "export"): 7}


def test_a_line_that_is_being_written_is_taken_when_it_is_whole(tmp_path: Path, reads: MailReads):
    line = json.dumps({"timestamp": datetime.now(UTC).isoformat(), "via": "cli", "action": "export", "read": 1}) + "\n"
    with (tmp_path / "audit.log").open("a") as file:
        file.write(line[:20])
        file.flush()
        assert counted(reads) == {}
        file.write(line[20:])
    assert counted(reads) == {("cli", "export"): 1}


def test_the_last_hour_includes_what_was_read_while_nothing_ran(tmp_path: Path):
    record_read(tmp_path, "cli", "ada", "export", messages=60)
    fresh = MailReads(tmp_path)
    assert (counted(fresh), hour(fresh)) == ({}, 60)
    later = MailReads(tmp_path, lambda: datetime.now(UTC).timestamp() + 3700)
    assert hour(later) == 0


def test_mail_is_not_read_unseen(tmp_path: Path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(ConfigurationError, match=r"make .* writable"):
        record_read(tmp_path / "logs", "cli", "ada", "export", messages=1)
