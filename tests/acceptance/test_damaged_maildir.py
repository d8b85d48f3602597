"""A real Dovecot with files that it cannot read, or of which its names tell a wrong size: it hangs up over them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.servers.dovecot import PASSWORD, USER, running_dovecot
from tests.servers.processes import Place, Running, place, until
from tests.servers.redis import RedisServer

LETTERS = {number: b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number) for number in range(1, 8)}
# By the number of the message: what is added to the size in its name.
WRONG = {3: 500, 5: -10}


def name(number: int, wrong: int = 0) -> str:
    size = len(LETTERS[number]) + wrong
    return f"{1_700_000_000 + number}.M{number}.host,S={size},W={size}"


def quarantined(producer: Running) -> set[int]:
    return {each["uid"] for each in producer.status()["accounts"][0]["quarantined"]}


def stored(here: Place) -> set[str]:
    return {sha256 for (sha256,) in here.rows("SELECT sha256 FROM emails")}


@pytest.mark.parametrize("once", [False, True], ids=["producer", "producer --once"])
def test_a_dovecot_that_hangs_up_over_three_messages_delivers_the_others(
    tmp_path: Path, redis_server: RedisServer, *, once: bool
):
    files = {name(number, WRONG.get(number, 0)): raw for number, raw in LETTERS.items()}
    good = {hashlib.sha256(LETTERS[number]).hexdigest() for number in (1, 4, 6, 7)}
    with (
        running_dovecot(maildir=files) as dovecot,
        place(tmp_path / "here", redis_server.url, IMAP_POLL_SECONDS=2) as here,
    ):
        here.set(IMAP_HOST="127.0.0.1", IMAP_PORT=dovecot.imap_port, IMAP_TLS="false", IMAP_AUTH="password")
        here.set(IMAP_USER=USER, IMAP_PASSWORD=PASSWORD)
        (dovecot.maildir / "new" / name(2)).chmod(0)
        here.worker()
        producer = here.producer(*(["--once"] if once else []))
        if once:
            assert producer.ended() == 0
        until(lambda: stored(here) == good, "the readable ones")
        listed = here.run("-m", "email_ingestion", "quarantine", "list", "--json")
        found = {row["uid"]: row["reason"] for row in json.loads(listed.stdout)}
        assert len(found) == 3, listed
        if not once:
            until(lambda: quarantined(producer) == set(found), "the others are named")
