"""What the read API says of Redis: dead letters page by page, and the numbers of the queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from email_ingestion.errors import PermanentError
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.stream.dead_letters import dead_letter_fields
from tests.servers.api import Api, api, delivered, token
from tests.servers.links import link, message
from tests.servers.processes import Place, place
from tests.servers.redis import RedisServer, running_redis


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        letters = DeadLetterQueue(link(server.url))
        for number in range(5):
            text = "bad" if number % 2 else "ab"[number == 4] * 3
            fields = dead_letter_fields("permanent", 1, PermanentError(text), "secret traceback", "here-worker-1")
            letters.add(message(number, account="work" if number == 4 else "default"), fields)
        yield server


@pytest.fixture(scope="module")
def here(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("state"), redis.url) as made:
        delivered(made, [])
        yield made


@pytest.fixture(scope="module")
def reader(here: Place) -> Api:
    return api(here.web(), token(here))


def test_dead_letters_come_page_by_page_without_their_bytes(reader: Api) -> None:
    first = reader.get("dead-letters", limit=2).json()
    assert (len(first["items"]), first["total"]) == (2, 5)
    second = reader.get("dead-letters", limit=2, cursor=first["next"]).json()
    third = reader.get("dead-letters", limit=2, cursor=second["next"]).json()
    assert third["next"] is None
    items = [*first["items"], *second["items"], *third["items"]]
    assert len({item["id"] for item in items}) == 5
    assert all("traceback" not in item and item["reason"] == "permanent" for item in items)


def test_dead_letters_are_filtered_and_those_of_others_are_not_told(here: Place, reader: Api) -> None:
    like = reader.items("dead-letters")[1]["fingerprint"]
    alike = reader.get("dead-letters", fingerprint=like).json()
    assert (len(alike["items"]), alike["total"]) == (2, 2)
    assert [item["account"] for item in reader.items("dead-letters", account="work")] == ["work"]
    of_work = Api(reader.url, token(here, "--account", "default"))
    assert {item["account"] for item in of_work.items("dead-letters")} == {"default"}
    page = of_work.get("dead-letters", limit=2).json()
    assert (len(page["items"]), page["total"]) == (2, 4)


def test_the_queue_and_the_dead_letters_are_counted(reader: Api) -> None:
    stats = reader.get("stats").json()
    assert stats["stream"]["depth"] == 0
    assert stats["dead_letters"] == {"depth": 5}
    assert stats["problems"] == []


def test_a_frozen_redis_keeps_nobody_waiting(redis: RedisServer, reader: Api) -> None:
    redis.freeze()
    try:
        answer = reader.get("dead-letters")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert reader.get("emails").status_code == 200
    finally:
        redis.thaw()
