"""When nothing progresses, little is asked: a command a second, four logins a minute, one where they are refused."""

from __future__ import annotations

from pathlib import Path

from email_ingestion.stream import Keys
from tests.servers.odd_imap import Folder, Mail, OddImapServer, bye
from tests.servers.odd_stack import RunOdd
from tests.servers.processes import until
from tests.servers.redis import RedisServer

SECONDS = 8.0
ONE, TWO = (b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) for number in (1, 2))


def test_announcements_without_mail_are_followed_up_once_in_a_while(odd: RunOdd):
    server = OddImapServer([Mail(ONE)])
    with odd(server, IMAP_POLL_SECONDS=60) as stack:
        stack.arrives(ONE)
        server.chatter = b"* 1 EXISTS\r\n" * 50
        server.cut()
        until(lambda: len(server.logins) > 1, "it is back")
        assert len(server.during(SECONDS)) <= SECONDS + 8  # a session begins with some
        server.deliver(TWO)
        stack.arrives(TWO, seconds=10)


def test_old_mail_behind_a_full_stream_asks_the_server_for_little(odd: RunOdd, redis_server: RedisServer):
    large = [b"Subject: %d\r\n\r\n" % number + b"0123456789abcde\r\n" * 25_000 for number in range(20)]
    server = OddImapServer([Mail(raw) for raw in large])
    with odd(server, STREAM_MAX_DEPTH=2, IMAP_POLL_SECONDS=60) as stack:
        stack.worker.kill()
        with redis_server.client() as redis:
            until(lambda: redis.xlen(Keys().stream) >= 2, "the stream is full")
        until(lambda: not [command for command in server.during(1.0) if "FETCH" in command.name], "nothing is fetched")
        assert len(server.during(SECONDS)) <= SECONDS


def test_a_server_that_breaks_off_after_the_login_is_logged_in_to_seldom(odd: RunOdd):
    server = OddImapServer([Mail(ONE)])
    rule = server.on("EXAMINE", bye("not now"))
    with odd(server, CB_RECOVERY_TIMEOUT=10) as stack:
        until(lambda: rule.used >= 2, "it is tried again")
        server.during(SECONDS)
        assert len(server.attempts) <= 3
        rule.end()
        stack.arrives(ONE)


def test_refused_credentials_are_tried_once_until_they_change(odd: RunOdd, tmp_path: Path):
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    server = OddImapServer()
    server.inbox = server.folders["INBOX"] = Folder([Mail(ONE, uid=1)])
    with odd(server, IMAP_PASSWORD_FILE=secret) as stack:
        assert "IMAP_PASSWORD" in stack.reason("refuses")
        server.during(SECONDS)
        assert len(server.attempts) == 1
        secret.write_text("still wrong\n")
        until(lambda: len(server.attempts) == 2, "the new one is tried")
        secret.write_text("correct-horse\n")
        stack.arrives(ONE)
        stack.is_ready()
