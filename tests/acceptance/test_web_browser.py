"""What a person does in the pages, in a real browser: on the stack as it runs, with mail that came the whole way.

Where SCREENSHOTS names a folder, pictures of the pages are written there, for the README and docs/web.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from cryptography.fernet import Fernet
from playwright.sync_api import Browser, Page, expect

from email_ingestion.web.login_links import Role, make_link
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.browser import NARROW, PATIENCE_MS, WIDE, Visit, running_browser, visit
from tests.servers.dovecot import PASSWORD, USER, running_dovecot
from tests.servers.processes import Place, Running, gmail_settings, place, until
from tests.servers.redis import RedisServer, running_redis

INVENTED = 30  # messages of the sandbox
PDF = b"%PDF-1.4\nthe contract\n%%EOF\n"
KEY = Fernet.generate_key().decode()
TABS = 80  # keys until something is given up as out of reach
# What sticks out of a page that can be scrolled sideways; what scrolls in a box of its own does not count.
TOO_WIDE = """() => { const root = document.documentElement, width = root.clientWidth;
  return root.scrollWidth <= width ? [] : [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > width && !e.closest('.scroll'))
    .map(e => e.outerHTML.slice(0, 200)); }"""
SCREENSHOTS = os.environ.get("SCREENSHOTS", "")
expect.set_options(timeout=PATIENCE_MS)


def _letter(subject: str, text: str, message_id: str, **fields: str) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "Ada Moore <ada@example.com>", "team@example.org", subject
    made["Message-ID"], made["Date"] = message_id, "Thu, 05 Mar 2026 12:00:00 +0000"
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    made.set_content(text)
    return made


def _contract() -> EmailMessage:
    made = _letter("The signed contract", "Here is the contract for the lighthouse.", "<contract@example.com>")
    made.add_alternative(
        "<h2>The contract</h2><p>Here is the <b>contract</b> for the lighthouse.</p>"
        '<p><a href="https://example.com/terms">The terms</a></p><img src="https://pictures.example.com/logo.png">'
        "<script>document.title='ran'</script>",
        subtype="html",
    )
    made.add_attachment(PDF, "application", "pdf", filename="contract 2026.pdf")
    return made


@dataclass
class Stack:
    """The running system and where its pages are."""

    here: Place
    web: Running
    url: str
    sandbox: RunningSandbox
    redis: RedisServer

    def login_link(self, role: Role = "operator") -> str:
        token = (self.here.folder / "data" / "ops-token").read_text().strip()
        return f"{self.url}/login/{make_link(token, 'ada', role)}"

    def email_id(self, subject: str) -> str:
        return str(self.here.rows(f"SELECT email_id FROM emails WHERE subject = '{subject}'")[0][0])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("pages")
    arrived = int(datetime(2026, 3, 5, 12, tzinfo=UTC).timestamp() * 1000)
    with (
        running_redis(tmp_path_factory.mktemp("redis")) as redis,
        running_sandbox(SandboxSettings(mail=str(INVENTED))) as sandbox,
        place(
            folder, redis.url, SINKS=f"files:{folder}/out", TOKEN_ENCRYPTION_KEY=KEY, **gmail_settings(sandbox, folder)
        ) as here,
    ):
        sandbox.deliver(_contract().as_bytes(), internaldate=arrived)
        answer = _letter("Re: The signed contract", "Thanks!", "<a@example.com>", In_Reply_To="<contract@example.com>")
        sandbox.deliver(answer.as_bytes(), internaldate=arrived + 3_600_000)
        sandbox.deliver(_letter("Please forget this", "a secret", "<forget@example.com>").as_bytes())
        wanted = len(sandbox.messages()) - len(_left_out(sandbox))
        web = here.web()
        here.producer()
        here.worker()
        until(lambda: here.rows("SELECT 1 FROM deliveries WHERE state = 'delivered'"), "mail is delivered")
        until(lambda: len(here.rows()) >= wanted, "all mail is there")
        yield Stack(here, web, web.url("web_url"), sandbox, redis)


def _left_out(sandbox: Any) -> list[Any]:
    return [each for each in sandbox.messages() if {"\\Draft", "\\Sent", "\\Trash", "\\Junk"} & set(each.labels)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@contextmanager
def _entered(stack: Stack, browser: Browser, **options: Any) -> Iterator[Visit]:
    """A visit that has logged in; at its end nothing foreign was asked for, and nothing went wrong unseen."""
    with visit(browser, base_url=stack.url, **options) as seen:
        seen.page.goto(stack.login_link())
        seen.page.get_by_role("button", name="Log in").click()
        seen.page.wait_for_load_state()
        yield seen
        assert seen.foreign(f"{stack.url}/", f"blob:{stack.url}/") == []
        assert seen.errors == []
        assert [each for each in seen.console if "Content Security Policy" in each] == []


def test_mail_is_found_by_word_and_date_and_its_attachment_saved(
    stack: Stack, browser: Browser, tmp_path: Path
) -> None:
    with _entered(stack, browser) as seen:
        page = seen.page
        page.get_by_role("link", name="Mail", exact=True).click()
        page.get_by_label("Words in subject").fill("lighthouse")
        page.get_by_text("Filters").click()
        page.get_by_label("Received on or after").fill("2026-03-05")
        page.get_by_label("Received before").fill("2026-03-06")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("status")).to_have_text("1–1 of 1")  # noqa: RUF001 - a range
        expect(page.locator("mark").first).to_have_text("lighthouse")
        page.get_by_role("link", name="The signed contract").click()
        frame = page.frame_locator("iframe.mail")
        expect(frame.get_by_role("heading", name="The contract")).to_be_visible()
        policy = page.request.get(f"{page.url}/html").headers["content-security-policy"]
        assert "sandbox allow-popups" in policy
        assert "script-src" not in policy, "nothing of the pages' own policy"
        expect(page.get_by_role("link", name="Re: The signed contract")).to_be_visible()
        expect(page.get_by_role("row", name="files:")).to_contain_text("delivered")
        with page.expect_download() as saved:
            page.get_by_role("link", name="contract 2026.pdf").click()
        assert saved.value.suggested_filename == "contract 2026.pdf"
        saved.value.save_as(tmp_path / "saved.pdf")
        assert (tmp_path / "saved.pdf").read_bytes() == PDF
        _shoot(page, "mail-message")
        page.goto("/mail?q=contract")
        _shoot(page, "mail-search")


def test_all_of_it_works_with_the_keyboard_alone(stack: Stack, browser: Browser) -> None:
    with visit(browser, base_url=stack.url) as seen:
        page = seen.page
        page.goto(stack.login_link())
        _press_on(page, "Log in as ada")
        page.wait_for_url("**/")
        _press_on(page, "Mail")
        page.wait_for_url("**/mail")
        _tab_to(page, lambda: page.evaluate("document.activeElement.name") == "q", "the words")
        page.keyboard.type("lighthouse")
        page.keyboard.press("Enter")
        page.wait_for_url("**/mail?q=lighthouse*")
        _press_on(page, "The signed contract")
        page.wait_for_url("**/mail/default*")
        with page.expect_download() as saved:
            _press_on(page, "contract 2026.pdf")
        assert saved.value.suggested_filename == "contract 2026.pdf"


def _press_on(page: Page, name: str) -> None:
    """Go to a link or a button with the Tab key, see that one sees where one is, and press Enter."""
    text = "(document.activeElement.innerText || '').trim()"
    _tab_to(page, lambda: page.evaluate(text) == name, name)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "focus is not seen"
    page.keyboard.press("Enter")


def _tab_to(page: Page, reached: Callable[[], bool], what: str) -> None:
    for _ in range(TABS):
        page.keyboard.press("Tab")
        if reached():
            return
    raise AssertionError(f"{what} is not reached with {TABS} times Tab")


def test_mail_is_read_without_javascript(stack: Stack, browser: Browser) -> None:
    with _entered(stack, browser, java_script_enabled=False) as seen:
        page = seen.page
        page.goto("/mail")
        page.get_by_label("Words in subject").fill("contract")
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name="The signed contract", exact=True).click()
        expect(page.frame_locator("iframe.mail").get_by_text("for the lighthouse")).to_be_visible()
        page.get_by_text("Text", exact=True).click()
        expect(page.get_by_text("Here is the contract for the lighthouse.")).to_be_visible()
        page.goto("/")
        expect(page.get_by_role("heading", level=1)).to_be_visible()


def test_a_second_account_is_added_and_its_mail_seen(stack: Stack, browser: Browser) -> None:
    with running_dovecot() as dovecot, _entered(stack, browser) as seen:
        dovecot.deliver([_letter("From the depot", "a pallet", "<depot@example.com>").as_bytes()])
        page = seen.page
        page.get_by_role("link", name="Accounts", exact=True).click()
        page.get_by_label("Name", exact=True).fill("depot")
        page.get_by_label("Address of the mailbox").fill(USER)
        page.get_by_label("Login").select_option("with a password")
        page.get_by_label("Mail server").fill("127.0.0.1")
        page.get_by_label("Port").fill(str(dovecot.imap_port))
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Add").click()
        expect(page.get_by_role("status")).to_contain_text("depot is added")
        until(lambda: stack.here.rows("SELECT 1 FROM emails WHERE account = 'depot'"), "its mail is delivered")
        page.goto("/mail?q=pallet")
        expect(page.get_by_role("link", name="From the depot")).to_be_visible()
        page.goto("/accounts/depot")
        assert _problems(page, "/accounts/depot") == []
        _shoot(page, "account")
        page.get_by_text("Remove…").click()
        page.get_by_role("button", name="Remove depot").click()
        expect(page.get_by_role("status")).to_contain_text("depot is removed")


def _reloaded(page: Page) -> Page:
    page.reload()
    return page


def test_a_dead_consent_is_given_anew(stack: Stack, browser: Browser) -> None:
    def revoke(running: Any) -> None:
        for token in [*running.backend.tokens._refresh, *running.backend.tokens._access]:
            running.backend.tokens.revoke(token)

    stack.sandbox.call(revoke)
    stack.sandbox.arm_fault("session_expiry")
    with visit(browser, base_url=stack.url) as seen:
        page = seen.page
        page.goto(stack.login_link())
        page.get_by_role("button", name="Log in").click()
        page.goto("/accounts/default")
        until(lambda: _reloaded(page).get_by_text("Its consent is gone").is_visible(), "the page tells")
        _shoot(page, "account-dead-consent")
        page.get_by_role("button", name="Authorize again").click()
        with seen.context.expect_page() as opened:
            page.get_by_role("link", name="Give the consent").click()
        address = until(lambda: next((each for each in seen.requests if "code=" in each), ""), "the tab went on")
        opened.value.close()
        page.get_by_label("The address").fill(address)
        page.get_by_role("button", name="Authorize").click()
        expect(page.get_by_role("status")).to_contain_text("default is authorized")
    stack.sandbox.deliver(_letter("After the consent", "it flows", "<after@example.com>").as_bytes())
    until(lambda: stack.here.rows("SELECT 1 FROM emails WHERE subject = 'After the consent'"), "mail flows again")


def test_one_message_is_erased_after_a_look_at_what_goes(stack: Stack, browser: Browser) -> None:
    email_id = stack.email_id("Please forget this")
    until(lambda: _delivered(stack, email_id), "the sink has it too")
    with _entered(stack, browser) as seen:
        page = seen.page
        page.goto("/mail?q=forget")
        page.get_by_role("link", name="Please forget this").click()
        stack.redis.freeze()
        with page.expect_response(lambda answer: answer.status == 503):
            page.get_by_role("link", name="Erase it…").click()
        stack.redis.thaw()  # the page looks once more on its own
        expect(page.get_by_role("row", name="messages in the database")).to_contain_text("1")
        page.get_by_role("button", name="Erase it for good").click()
        expect(page.get_by_text("It is erased")).to_be_visible()  # the page of an order loads itself again
        page.goto("/mail?q=forget")
        expect(page.get_by_role("status")).to_have_text("No mail is found")
    assert stack.here.rows(f"SELECT 1 FROM emails WHERE email_id = '{email_id}'") == []
    assert "a secret" not in "".join(
        path.read_text(errors="replace") for path in (stack.here.folder / "out").rglob("*") if path.is_file()
    )


def _delivered(stack: Stack, email_id: str) -> bool:
    query = f"SELECT 1 FROM deliveries WHERE email_id = '{email_id}' AND state = 'delivered'"
    return bool(stack.here.rows(query))


def test_pages_are_accessible_narrow_in_the_dark_and_wide_in_the_light(stack: Stack, browser: Browser) -> None:
    address = f"/mail/{quote(stack.email_id('The signed contract'))}"
    further = ["/mail?q=contract&from=ada", "/mail?after=x", address, f"{address}/source", f"{address}/audit"]
    further += [f"{address}/erase", "/mail/default:gm:1", "/accounts/default"]
    with _entered(stack, browser, viewport=NARROW, color_scheme="dark") as seen:
        page = seen.page
        own = page.locator("nav[aria-label=Pages] a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert "/mail" in own
        problems = {path: found for path in (*further, *own) if (found := _problems(page, path))}
        assert problems == {}


def _problems(page: Page, path: str) -> list[str]:
    """What axe finds on a page, and what is wider than the screen, in both ways of looking at it."""
    problems = []
    page.goto(path)
    page.evaluate(AXE_SCRIPT)
    # The structure is the same in both; the colours are not.
    for size, scheme, rules in ((NARROW, "dark", "{}"), (WIDE, "light", "{runOnly: ['color-contrast']}")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        found = page.evaluate(f"axe.run({rules}).then(result => result.violations)")
        problems += [f"{scheme} {each['id']}: {[node['html'][:200] for node in each['nodes'][:3]]}" for each in found]
        problems += [f"{scheme}: wider than the screen: {each}" for each in page.evaluate(TOO_WIDE)]
        if path == "/":
            _shoot(page, f"overview-{scheme}")
    return problems


def _shoot(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png")
