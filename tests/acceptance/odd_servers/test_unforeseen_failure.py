"""What nobody foresaw: it is counted, named with its place, kept from hammering the server, and ends with its cause."""

from __future__ import annotations

from email_ingestion.stream import Keys
from tests.servers.commands import told
from tests.servers.odd_imap import Mail, OddImapServer
from tests.servers.odd_stack import RunOdd
from tests.servers.redis import RedisServer

ONE, TWO = (b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) for number in (1, 2))


def test_a_failure_nobody_foresaw_shows_everywhere_and_ends_with_its_cause(odd: RunOdd, redis_server: RedisServer):
    server = OddImapServer([Mail(ONE)])
    with odd(server, CB_RECOVERY_TIMEOUT=2) as stack, redis_server.client() as redis:
        stack.arrives(ONE)
        stack.is_ready()
        cursor = Keys().cursor("default", "INBOX")
        uidvalidity = redis.hget(cursor, "uidvalidity")
        redis.hset(cursor, "uidvalidity", "Dear customer")
        server.deliver(TWO)
        reason = stack.reason("nobody foresaw")
        assert "loop watch:default: ValueError at email_ingestion/stream/appender.py:" in reason
        assert "customer" not in reason
        assert stack.ready()[0] == "degraded"
        assert stack.producer.get("/ready")[0] == 200
        assert any("/stream/appender.py" in line["exception"] for line in stack.events("loop_failed"))
        counted = 'email_ingestion_loop_errors_total{error_type="ValueError",loop="watch:default"}'
        assert counted in stack.producer.get("/metrics")[1]
        findings = told(stack.here, "doctor", ends=1)["checks"]
        assert any("ValueError at email_ingestion/stream" in each["cause"] for each in findings)
        redis.hset(cursor, "uidvalidity", uidvalidity)
        stack.arrives(TWO)
