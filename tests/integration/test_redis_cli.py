"""`email-ingestion redis-cli` speaks to the Redis of the settings, as the user of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from email_ingestion.cli.redis_cli import options
from tests.servers.processes import place
from tests.servers.redis import RedisServer


@pytest.mark.parametrize(
    ("address", "words", "secret"),
    [
        ("redis://localhost:6379/0", ["-h", "localhost", "-p", "6379", "-n", "0"], {}),
        ("redis://redis.example.com", ["-h", "redis.example.com", "-p", "6379"], {}),
        (
            "rediss://mail%40x:p%2Fw@[::1]:6380/1",
            ["-h", "::1", "-p", "6380", "-n", "1", "--tls", "--user", "mail@x"],
            {"REDISCLI_AUTH": "p/w"},
        ),
        ("redis://:pw@127.0.0.1:1/0", ["-h", "127.0.0.1", "-p", "1", "-n", "0"], {"REDISCLI_AUTH": "pw"}),
    ],
)
def test_the_password_is_in_the_environment_and_not_among_the_options(
    address: str, words: list[str], secret: dict[str, str]
) -> None:
    assert options(address) == (words, secret)


def test_it_is_logged_in_and_ends_as_redis_answers(tmp_path: Path, own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "service", "on", ">s/e c", "~*", "+@all", "-@dangerous")
        client.execute_command("ACL", "SETUSER", "default", "resetpass", "-@all")
    address = f"redis://service:s%2Fe%20c@127.0.0.1:{own_redis.port}/0"
    with place(tmp_path, address) as here:
        asked = here.run("-m", "email_ingestion", "redis-cli", "SET", "{email_ingestion}:x", "1")
        assert (asked.returncode, asked.stdout.strip()) == (0, "OK"), asked.stderr
        refused = here.run("-m", "email_ingestion", "redis-cli", "FLUSHALL")
        assert refused.returncode == 1
        assert "NOPERM" in refused.stdout + refused.stderr
        here.set(PATH="/nowhere")
        absent = here.run("-m", "email_ingestion", "redis-cli", "PING")
    assert absent.returncode == 2
    assert "install it" in absent.stderr
