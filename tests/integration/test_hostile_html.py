"""The HTML of a message neither runs nor loads anything: in a real browser, by its own log of requests.

Each vector of hostile_html.txt is shown in a frame. That the browser and the server that must not be asked would notice
is proved by the same vectors without any fence.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Frame, Page

from email_ingestion.records import Attachment
from email_ingestion.web.message_html import (
    SANDBOX,
    HarmlessHtml,
    clean,
    document,
    inline_pictures,
    response_headers,
)
from tests.servers.browser import Answer, Visit, answering, running_browser, visit

RAN = "4711"  # what a script that runs says
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
LINK = re.compile(r"(?:https?://|mailto:|tel:)", re.IGNORECASE)
# A click, and whatever else a handler may listen to, on everything that is there.
TOUCH_ALL = """() => { for (const e of document.querySelectorAll('*')) {
  for (const name of ['error', 'load', 'focus', 'mouseover', 'click', 'toggle', 'animationstart', 'transitionend',
                      'pointerover', 'wheel', 'scroll', 'submit', 'begin', 'start', 'beforematch'])
    e.dispatchEvent(new Event(name, {cancelable: true}));
  if (e.href && !/^https?:/i.test(e.href)) e.click();
} }"""


def _part(name: str, kind: str, content: bytes) -> Attachment:
    return Attachment(1, None, kind, len(content), "", content, content_id=f"<{name}@example.com>")


PARTS = (
    _part("picture", "image/png", PNG),
    _part("script", "application/javascript", b"console.log(4711)"),
    _part("svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg' onload='console.log(4711)'/>"),
    _part("html", "image/png", b"<!doctype html><script>console.log(4711)</script>"),
    _part("quote", 'image/png" onerror="console.log(4711)', PNG),
)


def _read_vectors() -> dict[str, str]:
    text = (Path(__file__).parent / "hostile_html.txt").read_text()
    found = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    assert len(found) == text.count("\n## "), "two vectors have one name"
    return found


VECTORS = _read_vectors()


def _with_urls(vector: str, canary: str, number: int) -> str:
    text = vector.replace("CANARY", f"{canary}/{number}").replace("HOST", f"{canary.removeprefix('http://')}/{number}")
    return re.sub(r"ESC(\d+)", lambda found: chr(int(found[1])), text.replace("RUN", "console.log(4711)"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@contextmanager
def _shown(browser: Browser, *, cleaned: bool, fenced: bool) -> Iterator[tuple[Visit, list[str], str]]:
    """Show all vectors in the frames of one page; yield the visit, what the canary was asked, and our own URL."""
    asked: list[str] = []
    answers: dict[str, Answer] = {}
    with answering({}, asked) as canary, answering(answers) as ours, visit(browser) as seen:
        for number, vector in enumerate(VECTORS.values()):
            html = _with_urls(vector, canary, number)
            found = clean(html, inline_pictures(PARTS)) if cleaned else HarmlessHtml(html)
            headers = response_headers(remote=False) if fenced else {"Content-Type": "text/html; charset=utf-8"}
            answers[f"/{number}"] = Answer(document(found).encode("utf-8", "replace"), headers)
        sandbox = f' sandbox="{SANDBOX}"' if fenced else ""
        frames = "".join(f'<iframe src="/{number}"{sandbox}></iframe>' for number in range(len(VECTORS)))
        page = f"<!doctype html><title>all</title>{frames}".encode()
        answers["/"] = Answer(page, {"Content-Type": "text/html; charset=utf-8"})
        answers["/settled"] = Answer(b"", {})
        seen.page.goto(ours)
        _settle(seen.page)
        yield seen, asked, ours


def _settle(page: Page) -> None:
    """Return when what the frames had begun has been asked for: the browser asks in turn."""
    for _ in range(5):
        page.evaluate("fetch('/settled').then(a => a.text()).then(() => new Promise(requestAnimationFrame))")


def _frames(page: Page) -> list[Frame]:
    frames = page.frames[1:]
    assert len(frames) == len(VECTORS), "a vector brought a frame of its own, or removed its own"
    return frames


def _assert_quiet(seen: Visit, asked: list[str], ours: str) -> None:
    _settle(seen.page)
    names = list(VECTORS)
    assert [names[int(path.split("/")[1].split("?")[0])] for path in asked if path[1:2].isdigit()] == []
    assert asked == []
    assert seen.foreign(f"{ours}/") == []
    assert RAN not in seen.console
    assert seen.dialogs == []
    assert seen.page.url == f"{ours}/", "a vector led the page away"


def test_more_than_a_hundred_vectors_would_run_or_load_without_the_fences(browser: Browser) -> None:
    with _shown(browser, cleaned=False, fenced=False) as (seen, asked, _):
        reached = {path.split("/")[1].split("?")[0] for path in asked}
        assert len(reached) > 40
        assert seen.console.count(RAN) > 40
    assert len(VECTORS) >= 100


def test_hostile_html_as_it_is_shown_neither_runs_nor_loads_anything(browser: Browser) -> None:
    with _shown(browser, cleaned=True, fenced=True) as (seen, asked, ours):
        frames = _frames(seen.page)
        _assert_quiet(seen, asked, ours)
        own = frames[list(VECTORS).index("cid-picture-with-handler")]
        assert own.evaluate("document.images[0].naturalWidth") == 1, "the message's own picture is shown"
        assert own.evaluate("self.origin") == "null"


@pytest.mark.soak
def test_what_is_left_of_hostile_html_runs_and_loads_nothing_by_itself(browser: Browser) -> None:
    """Without policy and sandbox: the allow-list alone."""
    with _shown(browser, cleaned=True, fenced=False) as (seen, asked, ours):
        for frame in _frames(seen.page):
            frame.evaluate(TOUCH_ALL)
            attributes = frame.evaluate(
                "[...document.querySelectorAll('main *')].flatMap(e => [...e.attributes].map(a => [a.name, a.value]))"
            )
            assert [name for name, _ in attributes if name.startswith("on")] == []
            assert [value for name, value in attributes if name == "href" and not LINK.match(value)] == []
            links = frame.evaluate("[...document.links].map(e => [e.target, e.rel])")
            assert all(link == ["_blank", "noopener noreferrer"] for link in links)
        _assert_quiet(seen, asked, ours)


@pytest.mark.soak
def test_policy_and_sandbox_alone_keep_hostile_html_from_running_and_loading(browser: Browser) -> None:
    """Without the allow-list."""
    with _shown(browser, cleaned=False, fenced=True) as (seen, asked, ours):
        assert asked == []
        assert RAN not in seen.console
        assert seen.dialogs == []
        assert seen.page.url == f"{ours}/"


def test_pictures_of_other_servers_load_over_https_alone_and_only_when_they_are_asked_for(browser: Browser) -> None:
    html = '<img src="https://pictures.example.com/a.png"><img src="http://pictures.example.com/b.png">'
    answers = {"/settled": Answer(b"", {})}
    with answering(answers) as ours, visit(browser) as seen:
        seen.context.route(re.compile("pictures.example.com"), lambda route: route.fulfill(body=PNG))
        for remote, expected in ((False, []), (True, ["https://pictures.example.com/a.png"])):
            found = clean(html, remote=remote)
            assert found.blocked == 2 - len(expected)
            answers[f"/{remote}"] = Answer(document(found).encode(), response_headers(remote=remote))
            page = f'<!doctype html><title>one</title><iframe src="/{remote}" sandbox="{SANDBOX}"></iframe>'
            answers["/"] = Answer(page.encode(), {"Content-Type": "text/html; charset=utf-8"})
            seen.requests.clear()
            seen.page.goto(ours)
            _settle(seen.page)
            assert seen.foreign(f"{ours}/") == expected
