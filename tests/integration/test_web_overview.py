"""The overview: live numbers of a real Redis, and what it says when Redis, database or processes cannot be asked."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from email_ingestion.stream import Keys
from email_ingestion.web.flow_judgement import (
    BREAKER,
    CRASH,
    DATABASE,
    DEAD_LETTERS,
    MEMORY,
    OF_SECTION,
    REDIS,
    TOKEN,
    graph_link,
)
from tests.servers.processes import ROOT
from tests.servers.redis import RedisServer
from tests.servers.web import SECONDS, Visitor, running_pages, web_settings

HANG_SECONDS = 5.0  # well below what a client of Redis waits; the page itself gives up after less than a second


def _within(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def test_redis_that_goes_down_is_red_and_leads_to_its_section(tmp_path: Path, own_redis: RedisServer) -> None:
    settings = web_settings(tmp_path, own_redis.url)
    with own_redis.client() as client:
        for _ in range(3):
            client.xadd(Keys().stream, {"account": "default"})
        client.xadd(Keys().dlq, {"account": "default"})
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings, "reader")
        _within(lambda: "3 queued" in visitor.get("/").text)
        page = visitor.get("/").text
        assert "1 dead letter<" in page
        assert "Redis cannot be read" not in page
        own_redis.kill()
        _within(lambda: "Redis cannot be read" in visitor.get("/").text)
        page = visitor.get("/").text
        assert "3 queued" not in page, "what was true before is not shown as the present"
        assert "queue not known" in page
        assert '<g class="ok">' not in page.split('class="flow flow-wide"')[1].split("</svg>")[0]
        problem = next(part for part in page.split("<li") if "Redis cannot be read" in part)
        target = re.search(r'href="([^"]+)"', problem)
        assert target
        assert target[1] == "/runbooks/incident_response#21-redis-down"
        assert 'id="21-redis-down"' in visitor.get(target[1]).text


def test_problems_lead_to_their_panels_in_grafana(tmp_path: Path) -> None:
    settings = web_settings(tmp_path, grafana_url="https://grafana.example.com/")
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings, "reader")
        _within(lambda: "Redis cannot be read" in visitor.get("/").text)
        page = visitor.get("/").text
        problem = next(part for part in page.split("<li") if "Redis cannot be read" in part)
        assert 'href="https://grafana.example.com/d/email-ingestion?viewPanel=13"' in problem
        assert 'href="https://grafana.example.com/d/email-ingestion"' in page


def test_panels_are_those_of_the_shipped_dashboard() -> None:
    panels = json.loads((ROOT / "config" / "grafana_dashboard.json").read_text())["panels"]
    titles = {each["id"]: each["title"] for each in panels}
    found = {section: titles[panel] for section, panel in OF_SECTION.items()}
    assert found[REDIS] == found[DATABASE] == "Dependencies"
    assert (found[TOKEN], found[BREAKER], found[DEAD_LETTERS]) == (
        "Life of the tokens",
        "Circuit breakers",
        "Dead letters",
    )
    assert (found[CRASH], found[MEMORY]) == ("Processes", "Memory of the processes")
    assert graph_link(None) == ""
    own = "https://grafana.example.com/d/abc/mail?orgId=2"
    assert graph_link(own, TOKEN) == f"{own}&viewPanel=17"
    assert graph_link(own, "no-such-section") == own


def test_page_answers_in_a_second_while_redis_hangs_and_says_what_it_does_not_know(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts and never answers
        settings = web_settings(tmp_path, f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        with running_pages(settings) as address, Visitor(address) as visitor:
            visitor.enter(settings)
            for path in ("/", "/dead-letters", "/dead-letters/preview?order=replay", "/operate", "/audit"):
                began = time.monotonic()
                assert visitor.get(path).status_code == 200
                assert time.monotonic() - began < HANG_SECONDS, path
            assert "Not known: Redis" in visitor.get("/dead-letters").text
            page = visitor.get("/").text
            assert "not known: what waits in the queue" in page
            assert "not known: no producer answers here" in page
            assert "state not known" in page
            assert "Nothing needs attention" not in page


def test_numbers_move_without_another_request_and_stop_with_the_session(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    settings = web_settings(tmp_path, redis_server.url)
    with running_pages(settings) as address, Visitor(address) as visitor:
        page = visitor.enter(settings)
        with visitor.stream("GET", "/events/overview") as events, redis_server.client() as client:
            lines = (json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: "))
            assert "<svg" in next(lines)
            client.xadd(Keys().stream, {"account": "default"})
            assert any("1 queued" in part for part in lines)
            visitor.submit(page, "/logout")
            for _ in lines:
                pass  # the stream ends


def test_page_without_javascript_loads_itself_again(tmp_path: Path) -> None:
    settings = web_settings(tmp_path)
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        assert '<noscript><meta http-equiv="refresh"' in visitor.get("/").text
