"""Coming in: links that are good once, the token, sessions, roles, forms of our own only, and the proxy's word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from email_ingestion.ops.audit_log import read_audit
from email_ingestion.settings import Settings
from email_ingestion.web.login_links import LinkRefused, LoginLinks, make_link
from email_ingestion.web.sessions import COOKIE, FREE_ATTEMPTS, SESSION_SECONDS, AttemptLimiter, Sessions
from tests.servers.web import Visitor, running_pages, web_settings

GOAL = {"goal": "/runbooks"}
PROXY_SECRET = "a-secret-of-some-length"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return web_settings(tmp_path)


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    with running_pages(settings) as address:
        yield address


def _link(settings: Settings, **changes: str) -> str:
    given = {"user": "ada", "role": "operator"} | changes
    token = settings.ops_token_file.read_text().strip()
    return f"/login/{make_link(token, given['user'], given['role'])}?goal=/runbooks"  # type: ignore[arg-type]


def test_nobody_sees_a_page_without_a_login(address: str) -> None:
    with Visitor(address) as visitor:
        page = visitor.get("/runbooks?x=1", follow_redirects=False)
        assert page.status_code == 303
        assert page.headers["location"] == "/login?goal=%2Frunbooks%3Fx%3D1"
        assert visitor.get("/runbooks", headers={"Accept": "*/*"}).status_code == 401


def test_opening_a_link_uses_nothing_up_and_its_button_works_once(address: str, settings: Settings) -> None:
    link = _link(settings)
    with Visitor(address) as preview, Visitor(address) as visitor, Visitor(address) as second:
        for _ in range(3):
            page = preview.get(link)
            assert page.status_code == 200
            assert "Log in as ada" in page.text
            assert preview.head(link).status_code in {200, 405}
        assert COOKIE not in preview.cookies
        entered = visitor.submit(visitor.get(link), "/login/")
        assert entered.status_code == 200
        assert "ada" in entered.text
        refused = second.post(link)
        assert refused.status_code == 403
        assert "was used already" in refused.text
        assert second.get(link).status_code == 403


def test_cookie_is_for_the_server_only_and_secure_where_the_public_address_is(settings: Settings) -> None:
    public = settings.model_copy(update={"web_public_url": "https://mail.example.com"})
    for each, is_secure in ((settings, False), (public, True)):
        with running_pages(each) as address, Visitor(address) as visitor:
            cookie = visitor.post(_link(each), follow_redirects=False).headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=lax" in cookie
            assert "Path=/" in cookie
            assert f"Max-Age={SESSION_SECONDS:.0f}" in cookie
            assert ("Secure" in cookie) is is_secure


def test_token_lets_in_and_guessing_is_slowed(address: str, settings: Settings) -> None:
    token = settings.ops_token_file.read_text().strip()
    with Visitor(address) as visitor, Visitor(address) as guest:
        assert (
            visitor.submit(visitor.get("/login?goal=/runbooks"), "/login", token=token, name="grace").status_code == 200
        )
        for _ in range(FREE_ATTEMPTS):
            assert guest.post("/login", data={"token": "wrong"}).status_code == 401
        slowed = guest.post("/login", data={"token": token})
        assert slowed.status_code == 429
        assert int(slowed.headers["retry-after"]) >= 1
        assert guest.post(_link(settings), data=GOAL).status_code == 200, "a link is not shut out by who guesses tokens"
    records = list(read_audit(settings.log_dir))
    assert [each["user"] for each in records if each["result"] == "done"] == ["grace", "ada"]
    assert any(each["result"] == "refused" and each["reason"] == "wrong token" for each in records)
    assert token not in (settings.log_dir / "audit.log").read_text()


def test_a_cookie_that_was_there_before_the_login_opens_nothing_after_it(address: str, settings: Settings) -> None:
    """Neither one that somebody planted, nor the session that the same browser had before."""
    planted = "planted-by-somebody-else"
    with Visitor(address) as visitor:
        entered = visitor.post(_link(settings), headers={"Cookie": f"{COOKIE}={planted}"}, follow_redirects=False)
        first = entered.cookies[COOKIE]
        again = visitor.post(_link(settings), headers={"Cookie": f"{COOKIE}={first}"}, follow_redirects=False)
        second = again.cookies[COOKIE]
    assert len({planted, first, second}) == 3
    opened = {}
    for name, cookie in {"planted": planted, "first": first, "second": second}.items():
        with Visitor(address) as other:
            answer = other.get("/runbooks", headers={"Cookie": f"{COOKIE}={cookie}"}, follow_redirects=False)
            opened[name] = answer.status_code
    assert opened == {"planted": 303, "first": 303, "second": 200}


def test_logout_ends_the_session_for_every_holder_of_the_cookie(address: str, settings: Settings) -> None:
    with Visitor(address) as visitor, Visitor(address) as thief:
        page = visitor.enter(settings)
        thief.cookies.set(COOKIE, visitor.cookies[COOKIE])
        assert thief.get("/login", follow_redirects=False).status_code == 303
        assert visitor.submit(page, "/logout").url.path == "/login"
        assert thief.get("/login", follow_redirects=False).status_code == 200


def test_a_form_without_the_token_of_the_session_changes_nothing(address: str, settings: Settings) -> None:
    with Visitor(address) as visitor, Visitor(address) as other:
        visitor.enter(settings)
        page = other.enter(settings, user="grace")
        assert visitor.post("/logout").status_code == 403
        assert visitor.submit(page, "/logout").status_code == 403
        assert visitor.get("/login", follow_redirects=False).status_code == 303, "the session lives on"


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_forms_of_other_sites_are_refused(address: str, settings: Settings, headers: dict[str, str]) -> None:
    link = _link(settings)
    with Visitor(address) as visitor:
        assert visitor.post(link, headers=headers).status_code == 403
        assert visitor.post(link, headers={"Origin": address}, data=GOAL).status_code == 200


@pytest.mark.parametrize("goal", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_login_leads_nowhere_else(address: str, settings: Settings, goal: str) -> None:
    with Visitor(address) as visitor:
        assert visitor.post(_link(settings), data={"goal": goal}, follow_redirects=False).headers["location"] == "/"


def test_proxy_is_believed_with_its_secret_only(settings: Settings) -> None:
    behind = settings.model_copy(update={"web_proxy_secret": PROXY_SECRET, "web_proxy_operators": ("grace",)})
    named = {"X-Forwarded-User": "grace"}
    with running_pages(behind) as address, Visitor(address) as visitor:
        assert visitor.get("/login", headers=named, follow_redirects=False).status_code == 200
        wrong = named | {"X-Proxy-Secret": "another-secret-of-length"}
        assert visitor.get("/login", headers=wrong, follow_redirects=False).status_code == 200
        right = named | {"X-Proxy-Secret": PROXY_SECRET}
        assert visitor.get("/login", headers=right, follow_redirects=False).status_code == 303
    with running_pages(settings) as address, Visitor(address) as visitor:
        assert visitor.get("/login", headers=right, follow_redirects=False).status_code == 200, "it is off by default"


def test_an_address_is_believed_of_the_trusted_proxy_only(settings: Settings) -> None:
    claimed = {"X-Forwarded-For": "198.51.100.9, 203.0.113.7", "X-Forwarded-Proto": "https"}
    behind = settings.model_copy(update={"web_proxy_secret": PROXY_SECRET})
    with running_pages(behind) as address, Visitor(address) as visitor:
        for headers in (claimed, claimed | {"X-Proxy-Secret": PROXY_SECRET}):
            assert visitor.post(_link(settings), data=GOAL, headers=headers, follow_redirects=False).status_code == 303
        bad = {"X-Forwarded-For": "<script>", "X-Proxy-Secret": PROXY_SECRET}
        assert visitor.post(_link(settings), data=GOAL, headers=bad, follow_redirects=False).status_code == 303
        for number in range(FREE_ATTEMPTS + 1):  # another address each time, by somebody who is no proxy
            last = visitor.post("/login", data={"token": "wrong"}, headers={"X-Forwarded-For": f"203.0.113.{number}"})
        assert last.status_code == 429
    entered = [each["from"] for each in read_audit(settings.log_dir) if each["result"] == "done"]
    assert entered == ["127.0.0.1", "203.0.113.7", "127.0.0.1"]


def test_every_page_says_what_a_browser_may_load(address: str) -> None:
    with Visitor(address) as visitor:
        policy = visitor.get("/login").headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert visitor.get("/static/style.css").status_code == 200


def test_link_ends_after_ten_minutes_and_is_refused_by_a_younger_process() -> None:
    now = [1000.0]
    links = LoginLinks("the token", lambda: now[0])
    text = make_link("the token", "ada", "reader", lambda: now[0])
    assert links.check(text).role == "reader"
    with pytest.raises(LinkRefused, match="another installation"):
        LoginLinks("another token", lambda: now[0]).check(text)
    now[0] += 1
    with pytest.raises(LinkRefused, match="older than the running web process"):
        LoginLinks("the token", lambda: now[0]).check(text)
    now[0] += 600
    with pytest.raises(LinkRefused, match="ten minutes"):
        links.use(text)


@pytest.mark.parametrize("text", ["", ".", "a.b", "é.é", "x" * 5000, "eyJ9.AAAA", "\x00.\x00"])
def test_a_damaged_link_is_refused(text: str) -> None:
    with pytest.raises(LinkRefused, match="not whole"):
        LoginLinks("the token").check(text)


def test_session_ends_when_it_is_idle_and_at_last_in_any_case() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    idle, used = sessions.open("ada", "reader"), sessions.open("grace", "operator")
    for _ in range(5):
        now[0] += 2 * 3600
        assert sessions.find(used)
    assert sessions.find(idle) is None
    now[0] += 2 * 3600
    assert sessions.find(used) is None


def test_who_guesses_waits_longer_each_time() -> None:
    now = [0.0]
    limiter = AttemptLimiter(lambda: now[0])
    for _ in range(FREE_ATTEMPTS):
        assert limiter.wait_seconds("here") == 0
        limiter.failed("here")
    first = limiter.wait_seconds("here")
    limiter.failed("here")
    assert 0 < first < limiter.wait_seconds("here")
    assert limiter.wait_seconds("elsewhere") == 0
    now[0] += 3600
    assert limiter.wait_seconds("here") == 0


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("https://mail.example.com/", "https://mail.example.com"),
        ("https://Mail.example.com:8443", "https://mail.example.com:8443"),
        ("https://mail.example.com/pages", None),
        ("mail.example.com", None),
        ("https://user:secret@mail.example.com", None),
    ],
)
def test_public_address_is_a_host_without_a_path(written: str, taken: str | None) -> None:
    if taken:
        assert Settings(web_public_url=written).web_public_url == taken
        return
    with pytest.raises(ValidationError, match="without a path"):
        Settings(web_public_url=written)


def test_form_of_an_ended_session_leads_to_the_login_and_back(address: str, settings: Settings) -> None:
    with Visitor(address) as visitor:
        visitor.enter(settings)
        page = visitor.get("/operate")
        visitor.submit(page, "/logout")
        came_from = {"referer": f"{address}/operate"}
        answer = visitor.post("/operate/pause", data={"csrf": "x"}, headers=came_from)
        assert [each.status_code for each in answer.history] == [303], "the form is not sent again by going back"
        assert "Your session has ended, and nothing was done." in answer.text
        assert 'name="goal" value="/operate"' in answer.text
        elsewhere = visitor.post("/operate/pause", headers={"referer": "https://evil.example/operate"})
        assert 'name="goal" value="/"' in elsewhere.text
        assert visitor.post("/operate/pause", headers={"Accept": "*/*"}).json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("path", "status"), [("/no/such", 404), ("/logout", 405), ("/dead-letters/preview?order=eat", 400)]
)
def test_what_goes_wrong_is_a_page_for_a_person(address: str, settings: Settings, path: str, status: int) -> None:
    with Visitor(address) as visitor:
        visitor.enter(settings)
        page = visitor.get(path)
        assert page.status_code == status
        assert 'href="/mail"' in page.text
        assert visitor.get(path, headers={"Accept": "*/*"}).headers["content-type"].startswith("text/plain")
