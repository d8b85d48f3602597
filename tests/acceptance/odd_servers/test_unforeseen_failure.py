"""What nobody foresaw: it is counted, named with its place, kept from hammering the server, and ends with its cause."""

from __future__ import annotations

from pathlib import Path

from tests.servers.commands import told
from tests.servers.odd_imap import Mail, OddImapServer
from tests.servers.odd_stack import RunOdd

ONE, TWO = (b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) for number in (1, 2))


# Loaded by every Python that starts with its folder in PYTHONPATH: a fault in our own code, as long as a file is there.
FAULT = """
import os

from email_ingestion.stream import appender

read = appender._cursor


def fail(values):
    if os.path.exists("fault"):
        raise ValueError("Dear customer")
    return read(values)


appender._cursor = fail
"""


def test_a_failure_nobody_foresaw_shows_everywhere_and_ends_with_its_cause(odd: RunOdd, tmp_path: Path):
    server = OddImapServer([Mail(ONE)])
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    with odd(server, CB_RECOVERY_TIMEOUT=2, PYTHONPATH=tmp_path) as stack:
        fault = stack.here.folder / "fault"
        stack.arrives(ONE)
        stack.is_ready()
        fault.touch()
        server.deliver(TWO)
        reason = stack.reason("nobody foresaw")
        assert "loop watch:default: ValueError at " in reason
        assert "called at email_ingestion/stream/appender.py:" in reason
        assert "customer" not in reason
        assert stack.ready()[0] == "degraded"
        assert stack.producer.get("/ready")[0] == 200
        assert any("/stream/appender.py" in line["exception"] for line in stack.events("loop_failed"))
        counted = 'email_ingestion_loop_errors_total{error_type="ValueError",loop="watch:default"}'
        assert counted in stack.producer.get("/metrics")[1]
        findings = told(stack.here, "doctor", ends=1)["checks"]
        assert any("called at email_ingestion/stream" in each["cause"] for each in findings)
        fault.unlink()
        stack.arrives(TWO)
