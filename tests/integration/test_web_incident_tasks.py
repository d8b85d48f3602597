"""Tasks of a person in a real browser: by keyboard, without JavaScript, on a telephone; no page shuts anybody out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from email_ingestion.settings import Settings
from email_ingestion.stream import Keys
from email_ingestion.web.login_links import make_link
from tests.servers.browser import NARROW, WIDE, running_browser, visit
from tests.servers.redis import RedisServer
from tests.servers.web import running_pages, web_settings

FINGERPRINT = "1f0c9a6be2d4"
DEAD = {
    "account": "default",
    "dead_reason": "permanent",
    "dead_error_type": "ValueError",
    "dead_error": "it does not fit",
    "dead_fingerprint": FINGERPRINT,
}
PAGES = (
    *("/dead-letters", f"/dead-letters/group/{FINGERPRINT}"),
    f"/dead-letters/preview?order=purge&fingerprint={FINGERPRINT}",
    *("/runbooks/dlq_management", "/runbooks?q=redis"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def settings(tmp_path: Path, own_redis: RedisServer) -> Settings:
    with own_redis.client() as client:
        for _ in range(3):
            client.xadd(Keys().dlq, DEAD)
    return web_settings(tmp_path, own_redis.url)


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    with running_pages(settings) as address:
        yield address


def _enter(page: Page, address: str, settings: Settings) -> None:
    link = make_link(settings.ops_token_file.read_text().strip(), "ada", "operator")
    page.goto(f"{address}/login/{link}")
    page.get_by_role("button", name="Log in as ada").click()
    expect(page.get_by_role("heading", name="Overview", level=1)).to_be_visible()


def _tab_to(page: Page, name: str) -> None:
    """Press Tab until the link that begins so has the focus."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()").startswith(name):
            return
    raise AssertionError(f"the keyboard does not reach {name}")


def test_redis_is_down_and_the_keyboard_leads_to_what_helps(
    browser: Browser, address: str, settings: Settings, own_redis: RedisServer
) -> None:
    with visit(browser) as there:
        page = there.page
        _enter(page, address, settings)
        expect(page.locator("#live-flow .flow-wide")).to_contain_text("3 dead letters")
        own_redis.kill()
        expect(page.locator("#live-problems")).to_contain_text("Redis cannot be read")  # without another request
        expect(page.locator("#live-flow .flow-wide .bad .title")).to_have_text("Stream")
        _tab_to(page, "What to do about: Redis cannot be read")
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{address}/runbooks/incident_response#21-redis-down")
        expect(page.get_by_role("heading", name="2.1 Redis Down")).to_be_in_viewport()
        assert there.foreign(address) == []


def test_page_says_that_its_numbers_are_old_when_the_web_process_is_gone(browser: Browser, settings: Settings) -> None:
    with visit(browser) as there:
        with running_pages(settings) as address:
            _enter(there.page, address, settings)
            expect(there.page.locator("#live-flow .flow-wide")).to_contain_text("3 dead letters")
            expect(there.page.locator("#live-stale")).to_be_hidden()
        expect(there.page.locator("#live-stale")).to_contain_text("does not answer")


def test_a_group_of_dead_letters_is_put_back(
    browser: Browser, address: str, settings: Settings, own_redis: RedisServer
) -> None:
    with visit(browser) as there, own_redis.client() as client:
        page = there.page
        _enter(page, address, settings)
        page.get_by_role("navigation").get_by_role("link", name="Dead letters").click()
        page.get_by_role("link", name=f"Replay {FINGERPRINT}…").click()
        page.get_by_role("button", name="Replay 3 dead letters").click()
        expect(page.get_by_role("status")).to_have_text("3 dead letters put back into the stream.")
        assert client.xlen(Keys().stream) == 3
        assert client.xlen(Keys().dlq) == 0
        assert there.errors == there.console == []


@pytest.mark.parametrize(("viewport", "colours"), [(WIDE, "light"), (NARROW, "dark")])
def test_no_page_shuts_anybody_out(
    browser: Browser, address: str, settings: Settings, viewport: dict[str, int], colours: str
) -> None:
    found = []
    with visit(browser, viewport=viewport, color_scheme=colours) as there:
        page = there.page
        page.goto(f"{address}/login")
        found += _barriers(page)
        _enter(page, address, settings)
        for path in PAGES:
            page.goto(address + path)
            found += _barriers(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], path
        assert there.foreign(address) == there.errors == there.console == []
    assert found == []


def _barriers(page: Page) -> list[str]:
    violations = Axe().run(page).response["violations"]
    return [f"{page.url}: {each['id']}: {each['nodes'][0]['html'][:200]}" for each in violations]


def test_pages_are_read_and_orders_given_without_javascript(browser: Browser, address: str, settings: Settings) -> None:
    with visit(browser, java_script_enabled=False) as there:
        page = there.page
        _enter(page, address, settings)
        expect(page.locator(".flow-wide")).to_contain_text("Mailboxes")
        page.get_by_role("navigation").get_by_role("link", name="Dead letters").click()
        page.get_by_role("link", name=f"Replay {FINGERPRINT}…").click()
        page.get_by_role("button", name="Replay 3 dead letters").click()
        expect(page.get_by_role("status")).to_have_text("3 dead letters put back into the stream.")
        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(f"{address}/login")
