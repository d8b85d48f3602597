import csv
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from csv_sink import open_sink

from email_ingestion import ConfigurationError, Envelope, Reject, SinkMessage, SinkUnavailable, parse

WHEN = datetime(2026, 1, 31, 12, tzinfo=UTC)


def message(raw: bytes, uid: int = 1) -> SinkMessage:
    """Make a message for a test as the worker makes it from the mailbox."""
    envelope = Envelope(
        account="default",
        mailbox="INBOX",
        uidvalidity=1,
        uid=uid,
        gm_msgid=1000 + uid,
        gm_thrid=None,
        labels=(),
        flags=(),
        internaldate=WHEN,
        size=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
    )
    return SinkMessage(parse(envelope, raw), raw)


def test_each_message_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "mail.csv"
    sink = open_sink(None, str(path))
    sink.ping()
    sink.deliver([message(b"From: ann@example.org\r\nSubject: =SUM(A1), he said\r\n\r\nhello\r\n")])
    sink.deliver([message(b"From: bob@example.org\r\nSubject: two\r\n\r\nhello\r\n", uid=2)])
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["default:gm:1001", WHEN.isoformat(), "ann@example.org", "'=SUM(A1), he said", ""],
            ["default:gm:1002", WHEN.isoformat(), "bob@example.org", "two", ""],
        ]


@pytest.mark.parametrize("formula", ["=cmd|' /C calc'!A0", "+1+1", "-1", "@SUM(1)", "＝1", "\t=1"])  # noqa: RUF001
def test_no_cell_is_a_formula_for_a_spreadsheet(tmp_path: Path, formula: str) -> None:
    head = f"From: ann@example.org\r\nSubject: =?utf-8?q?{quote(formula).replace('%', '=')}?=\r\n"
    part = f"Content-Disposition: attachment; filename*=utf-8''{quote(formula)}\r\n\r\nx\r\n"
    open_sink(None, str(tmp_path / "mail.csv")).deliver([message((head + part).encode())])
    with (tmp_path / "mail.csv").open(newline="") as file:
        (row,) = csv.reader(file)
    assert len(row) == 5
    assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "＝", "\t"))]  # noqa: RUF001


def test_a_message_without_a_sender_is_rejected_and_leaves_no_row(tmp_path: Path) -> None:
    path = tmp_path / "mail.csv"
    with pytest.raises(Reject, match="no sender"):
        open_sink(None, str(path)).deliver([message(b"Subject: nobody\r\n\r\nhello\r\n")])
    assert not path.exists()


def test_a_file_that_cannot_be_written_makes_the_sink_unavailable(tmp_path: Path) -> None:
    sink = open_sink(None, str(tmp_path / "missing" / "mail.csv"))
    with pytest.raises(SinkUnavailable, match="No such file"):
        sink.ping()
    with pytest.raises(SinkUnavailable, match="No such file"):
        sink.deliver([message(b"From: ann@example.org\r\n\r\nhello\r\n")])


def test_a_sink_without_a_file_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="needs a file"):
        open_sink(None)
