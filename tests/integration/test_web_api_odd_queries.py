"""A client made from /openapi.json that asks every path with odd values: each answer is one that is described."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from email_ingestion.ledger.store import open_ledger
from tests.servers.api import Api, api, delivered, letter, token
from tests.servers.processes import Place, place
from tests.servers.redis import RedisServer

REQUESTS = 500
LETTERS = 60
ODD = (
    *("", " ", "0", "-1", "1", "1.5", "1e3", "NaN", "inf", "-inf", "true", "null", "None", "1-1", "99:1-1"),
    *("2026-01-31", "7d", "999999w", "0001-01-01", "9999-12-31T23:59:59+14:00", "2026-02-30"),
    *("9223372036854775807", "9223372036854775808", "1" * 400, "18446744073709551615-18446744073709551616"),
    *("\0", "a\0b", "\ud800", "\U0001f600", "é", "ﬁ", "\u202e", "\ufeff", "\r\nX: y", "%", "%25", "%zz", "_", "!"),
    *('"', '"a', "a*", "*", "-a", "--", "''", "'; DROP TABLE emails; --", "NEAR(", "a AND", "{}", "[]"),
    *("..", "/", "?", "#", "\\", "../../etc/passwd", "\\Inbox", "x" * 999, "x" * 4001, "WzEsMl0", "e30"),
    *("default", "default:gm:1790000000000000001", "default:gm:", "default:sha256:", "work:gm:1", ":::"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("odd"), shared_redis.url, WEB_REQUESTS_PER_MINUTE=600_000) as it:
        delivered(it, [letter(number, b"Subject: letter\r\n\r\nhello") for number in range(1, LETTERS + 1)])
        yield it


@pytest.fixture(scope="module")
def reader(here: Place) -> Api:
    return api(here.web(), token(here, "--scope", "read"))


def encoded(value: str) -> str:
    return quote(value.encode("utf-8", "surrogatepass"), safe="")


class Client:
    """Asks what the description offers."""

    def __init__(self, reader: Api, seed: int) -> None:
        self.random = random.Random(seed)
        headers = {"Authorization": f"Bearer {reader.token}"}
        self.http = httpx.Client(base_url=reader.url, headers=headers, timeout=60, trust_env=False)
        described = self.http.get("/openapi.json").json()
        self.paths = {
            path: methods["get"]
            for path, methods in described["paths"].items()
            if "get" in methods and path.startswith("/api/v1/")
        }

    def ask(self) -> tuple[str, dict[str, Any], httpx.Response]:
        path, described = self.random.choice(sorted(self.paths.items()))
        query: list[tuple[str, bytes]] = []
        target = path
        for parameter in described.get("parameters", ()):
            value = self.random.choice(ODD)
            if parameter["in"] == "path":
                target = target.replace(f"{{{parameter['name']}}}", encoded(value) or "%20")
            elif parameter["name"] != "wait" and self.random.random() < 0.3:
                times = 2 if self.random.random() < 0.1 else 1
                query += [(parameter["name"], value.encode("utf-8", "surrogatepass"))] * times
        if self.random.random() < 0.05:
            query.append(("odd", b"1"))
        address = f"{target}?{urlencode(query)}"
        return address, described, self.http.get(httpx.URL(address))


def test_no_odd_value_makes_an_answer_that_is_not_described(reader: Api) -> None:
    client = Client(reader, seed=27)
    seen: set[int] = set()
    with closing(client.http):
        for _ in range(REQUESTS):
            address, described, answer = client.ask()
            status = answer.status_code
            seen.add(status)
            assert status < 500, (address, answer.text)
            assert str(status) in described["responses"] or status == 404, (address, answer.text)
            if status >= 400:
                error = json.loads(answer.content)["error"]
                assert error.keys() == {"code", "message"}, address
                assert error["message"], address
            elif answer.headers["content-type"] == "application/json":
                json.loads(answer.content)
    assert {200, 400, 404} <= seen


def test_pages_stay_in_order_and_whole_while_mail_comes_and_goes(here: Place, reader: Api) -> None:
    stop, stays = threading.Event(), {f"default:gm:{1_790_000_000_000_000_000 + number}" for number in range(1, 41)}

    def disturb() -> None:
        with closing(open_ledger(f"sqlite:///{here.folder}/data/email_ingestion.db")) as ledger:
            number = 1_000
            while not stop.is_set():
                number += 1
                made = letter(number, b"Subject: live\r\n\r\nhello", hours=number - 980)
                ledger.record([made])
                if number % 2:
                    with ledger._database.begin() as connection:
                        connection.exec_driver_sql("DELETE FROM emails WHERE email_id = ?", (made.email.email_id,))
                stop.wait(0.05)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        for _ in range(2):
            found: list[tuple[str, str]] = []
            cursor: str | None = None
            while True:
                query = {"limit": 7, "q": "hello"} | ({"cursor": cursor} if cursor else {})
                page = reader.get("emails", **query).json()
                found += [(each["internaldate"], each["email_id"]) for each in page["items"]]
                cursor = page["next"]
                if cursor is None:
                    break
            ids = [email_id for _, email_id in found]
            assert len(set(ids)) == len(ids)
            assert stays <= set(ids)
            assert [date for date, _ in found] == sorted((date for date, _ in found), reverse=True)
    finally:
        stop.set()
        disturbing.join()
