"""Requests made to hurt, to a real web process: each gets its answer in words, soon, and nothing is held up by it."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from email_ingestion.ops.audit_log import read_audit
from email_ingestion.ops.http_server import MAX_CONNECTIONS
from email_ingestion.web.context import GUESSES_PER_MINUTE
from email_ingestion.web.login_links import make_link
from tests.servers.api import Api, api, delivered, letter, token
from tests.servers.ports import free_port
from tests.servers.processes import Place, Running, place, until

MAIL = "/api/v1/emails"
OLD = "2026-01-01T10:00:00+00:00"


def cursor(*place: str) -> str:
    plain = json.dumps(place, separators=(",", ":"))
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(
        tmp_path_factory.mktemp("web"), f"redis://127.0.0.1:{free_port()}/0", WEB_REQUESTS_PER_MINUTE=60_000
    ) as it:
        made = EmailMessage()
        made["From"], made["Subject"] = "Ann <ann@example.org>", "a letter"
        made.set_content("Hello")
        delivered(it, [letter(number, made.as_bytes()) for number in range(1, 4)])
        yield it


@pytest.fixture(scope="module")
def web(here: Place) -> Running:
    return here.web()


@pytest.fixture(scope="module")
def reader(here: Place, web: Running) -> Api:
    return api(web, token(here, "--scope", "operate"))


@pytest.fixture(scope="module")
def cookie(here: Place, web: Running) -> str:
    """That of somebody who has logged in."""
    url = web.url("web_url")
    link = make_link((here.folder / "data" / "ops-token").read_text().strip(), "ada", "operator")
    entered = httpx.post(f"{url}/login/{link}", headers={"Accept": "text/html"})
    return entered.headers["set-cookie"].partition(";")[0]


def sent(web: Running, data: bytes) -> bytes:
    """Everything that is answered to these bytes until the other side closes."""
    with closing(socket.create_connection(("127.0.0.1", _port(web)), timeout=60)) as connection:
        got = b""
        try:
            connection.sendall(data)
            while more := connection.recv(65536):
                got += more
        except ConnectionError:  # it hung up while we were still talking
            pass
        return got


def _port(web: Running) -> int:
    return int(web.url("web_url").rpartition(":")[2])


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def get(web: Running, path: str, *fields: str) -> bytes:
    head = "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *fields, "", ""])
    return sent(web, head.encode("latin-1"))


QUERIES: dict[str, tuple[str, int]] = {
    "a megabyte": ("q=" + "a" * 1_000_000, 400),
    "60 KB": ("q=" + "a" * 60_000, 431),
    "10,000 parameters": ("&".join("label=a" for _ in range(10_000)), 431),
    "1,900 labels": ("&".join("label=a" for _ in range(1900)), 400),
    "repeated": ("q=a&q=b", 400),
    "repeated limit": ("limit=1&limit=1000", 400),
    "repeated cursor": (f"cursor=&cursor={cursor(OLD, 'a')}", 400),
    "NUL": ("q=a%00b", 400),
    "NUL in a filter": ("account=%00", 400),
    "not UTF-8": ("q=%ff%fe", 400),
    "half a character": ("subject=%ed%a0%80", 400),
    "encoded twice": ("q=%2500%25ff", 200),
    "limit of 5,000 digits": ("limit=" + "9" * 5000, 400),
    "limit in Arabic digits": ("limit=%D9%A3", 400),
    "limit below one": ("limit=-1", 400),
    "date before all": ("after=0001-01-01T00:00:00%2B23:59", 400),
    "date of 5,000 digits": ("before=" + "9" * 5000, 400),
    "span beyond all": ("after=999999d", 400),
    "size beyond all": ("min_size=9223372036854775808", 400),
    "size in words": ("max_size=nan", 400),
    "forged cursor": ("cursor=" + "A" * 900, 400),
    "cursor with half a character": ("cursor=" + cursor(OLD, "\ud800"), 400),
    "cursor of another filter": (f"from=nobody&cursor={cursor(OLD, 'default:gm:1')}", 200),
    "cursor before all": ("cursor=" + cursor("0001-01-01T00:00:00+00:00", "a"), 200),
    "a token": ("access_token=ei_secret", 400),
    "FTS5": ("q=" + quote('" OR * NEAR(a b, 10) AND NOT {subject}:^a'), 200),
    "brackets": ("q=" + quote("(" * 3900), 200),
    "a thousand OR": ("q=" + quote("a OR " * 790), 200),
    "prefixes": ("q=" + quote("a* b* " * 650), 200),
    "all excluded": ("q=" + quote("-a* " * 900), 200),
    "quotes": ("q=" + quote('"' * 3999), 200),
    "stars": ("subject=" + quote("*a" * 490), 200),
    "signs of LIKE": ("from=" + quote("%_!" * 300) + "&filename=" + "*" * 1000, 200),
}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_made_to_hurt_is_answered_in_words(web: Running, reader: Api, cookie: str, name: str) -> None:
    query, status = QUERIES[name]
    answer = get(web, f"{MAIL}?{query}", f"Authorization: Bearer {reader.token}")
    assert status_of(answer) == status
    if status != 200 and name != "a megabyte":  # which h11 refuses before anything is known of it
        assert re.search(rb'"message":\s*"[^"]{10,300}"', answer)
    page = get(web, f"/mail?{query}", f"Cookie: {cookie}", "Accept: text/html")
    allowed = {status, 200} if name.startswith(("repeated", "limit", "size", "a token")) else {status}
    assert status_of(page) in allowed, "limits are the form's own, and unknown names change nothing"
    assert b"nobody foresaw" not in answer + page
    assert b"Not known" not in page


@pytest.mark.parametrize(
    "path",
    [
        *("/api/v1/threads/" + "9" * 20, "/api/v1/emails/%25%25%25%25%25%25", "/api/v1/emails/" + "a" * 600),
        *("/api/v1/emails/default:gm:1/attachments/" + "9" * 5000, "/api/v1/changes?after=" + "9" * 20),
        *("/api/v1/changes?wait=nan", "/api/v1/changes?wait=inf", "/api/v1/orders/%2e%2e", "/api/v1/emails/a%00b"),
        *("/static/..%2f..%2f..%2fetc/passwd", "/static/%2e%2e/%2e%2e/server.py", "/static/..%5c..%5cserver.py"),
        *("/static/%252e%252e/server.py", "/static/" + "a" * 5000, "//static/mail.css", "/static//etc/passwd"),
        *("http://evil.example/healthz", "*", "/mail/%ff", "/runbooks/..%2f..%2fetc%2fpasswd", "/login/%00"),
    ],
)
def test_a_path_made_to_hurt_leads_nowhere(web: Running, reader: Api, path: str) -> None:
    answer = get(web, path, f"Authorization: Bearer {reader.token}")
    assert status_of(answer) in {303, 400, 401, 403, 404, 410}
    assert b"root:" not in answer
    assert b"import annotations" not in answer


HOST = b"Host: localhost\r\n"
CHUNKS = b"\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n" + CHUNKS,
        b"POST /login HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n" + CHUNKS,
        b"GET /healthz HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n" + CHUNKS,
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"Content-Length: +4\r\n\r\nabcd",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n" + CHUNKS,
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n" + CHUNKS,
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"Transfer-Encoding : chunked\r\n" + CHUNKS,
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
)
def test_a_request_with_two_ends_or_hosts_is_refused_once_and_the_connection_ends(web: Running, data: bytes) -> None:
    answer = sent(web, data)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status_of(answer) == 400
    assert b"connection: close" in answer.lower()


def test_other_protocols_and_methods_get_nothing(web: Running, reader: Api) -> None:
    for method in ("TRACE", "CONNECT", "DEBUG", "PUT", "PATCH"):
        head = f"{method} /api/v1/emails HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Secret: hush\r\n\r\n"
        answer = sent(web, head.encode())
        assert (status_of(answer), b"hush" in answer) == (405, False)
    upgraded = get(web, "/healthz", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    assert b"101" not in upgraded[:20]
    assert status_of(sent(web, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) >= 400
    preflight = httpx.options(
        reader.url + MAIL, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    )
    asked = reader.ask(MAIL, {"limit": 1}, Origin="https://evil.example")
    assert (preflight.status_code, asked.status_code) == (405, 200)
    assert not [name for each in (preflight, asked) for name in each.headers if name.startswith("access-control")]


def test_guessing_tokens_is_slowed_and_who_has_one_is_not(here: Place, web: Running, reader: Api) -> None:
    assert reader.get("emails", limit=1).status_code == 200
    answers = [api(web, f"ei_guess-{number}").get("emails") for number in range(GUESSES_PER_MINUTE + 20)]
    seen = [each.status_code for each in answers]
    assert seen[:5] == [401] * 5
    assert seen[-1] == 429
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert reader.get("emails", limit=1).status_code == 200
    refused = [each for each in read_audit(here.folder / "logs") if each.get("reason") == "this token is not known"]
    assert 1 <= len(refused) < 10, "told, and not once for each guess"


def test_no_token_reaches_a_log(here: Place, web: Running, reader: Api) -> None:
    secret = (here.folder / "data" / "ops-token").read_text().strip()
    for path in (f"/login?token={secret}", f"/mail?token={secret}", f"{MAIL}?access_token={reader.token}"):
        get(web, path)
    get(web, MAIL, f"Authorization: Basic {reader.token}")
    texts = [file.read_bytes() for file in (here.folder / "logs").iterdir()]
    assert not [text for text in texts if secret.encode() in text or str(reader.token).encode() in text]


@pytest.mark.parametrize(
    "held",
    [
        b"GET /healthz HTTP/1.1\r\nHost: local",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntoken=",
        b"POST /api/v1/pause HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    ],
)
def test_requests_that_do_not_end_keep_no_other_out(web: Running, held: bytes) -> None:
    with ExitStack() as open_:
        for _ in range(4 * MAX_CONNECTIONS):
            connection = open_.enter_context(socket.create_connection(("127.0.0.1", _port(web)), timeout=60))
            connection.sendall(held)
        assert status_of(get(web, "/healthz")) == 200
        sockets = [each for each in Path(f"/proc/{web.process.pid}/fd").iterdir() if _is_socket(each)]
        assert len(sockets) < 2 * MAX_CONNECTIONS
    until(lambda: status_of(get(web, "/healthz")) == 200, "it answers afterwards too")


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:
        return False


def test_nothing_of_all_that_was_unforeseen(web: Running) -> None:
    """Last of the module: what the tests before did stands in the log."""
    assert get(web, "/healthz").startswith(b"HTTP/1.1 200")
    assert '"level": "ERROR"' not in web.log()
    assert "Traceback" not in web.log()
