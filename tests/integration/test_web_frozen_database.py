"""A PostgreSQL server that is frozen while the web process has it open: every answer comes soon, and says so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
from sqlalchemy import create_engine

from email_ingestion.ledger.store import open_ledger
from tests.servers.api import letter
from tests.servers.ports import free_port
from tests.servers.postgres import running_postgres
from tests.servers.processes import place
from tests.servers.web import Visitor, web_settings

LIMITS = httpx.Limits(max_connections=40)
HANG_SECONDS = 5.0  # far below the 25 s after which a statement is given up; a page itself takes less than one
MAIL = letter(1, b"From: a@example.org\r\nSubject: one\r\n\r\nhello")
ID = MAIL.email.email_id
PAGES = {
    503: (
        "/mail",
        "/mail?q=hello",
        f"/mail/{ID}",
        f"/mail/{ID}/html",
        f"/mail/{ID}/source",
        f"/mail/{ID}/erase",
        "/accounts/stored",
    ),
    200: ("/", "/accounts", "/dead-letters", "/operate", "/audit", "/runbooks", "/healthz"),
}
CALLS = (
    *("emails", "emails?q=hello", f"emails/{ID}", f"emails/{ID}/raw", f"emails/{ID}/attachments/1", f"threads/{ID}"),
    *("accounts", "dead-letters", "stats", "changes?after=0&wait=30"),
)


@contextmanager
def frozen(url: str) -> Iterator[None]:
    """Stop all processes of the server: the kernel goes on to take connections for it."""
    engine = create_engine(url)
    with engine.connect() as connection:
        postmaster = psutil.Process(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()).parent()
    engine.dispose()
    assert postmaster
    stopped = [postmaster.pid, *(each.pid for each in postmaster.children())]
    for pid in stopped:
        with suppress(ProcessLookupError):  # that of the connection from before may have ended
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_every_page_and_call_answers_soon_and_says_what_is_not_known(tmp_path: Path) -> None:
    redis_url = f"redis://127.0.0.1:{free_port()}/0"
    with running_postgres() as url, place(tmp_path, redis_url, DATABASE_URL=url) as here:
        with closing(open_ledger(url)) as ledger:
            ledger.record([MAIL])
            token, _ = ledger.api_tokens.create("read", "a test", None, None)
        address = here.web().url("web_url")
        settings = web_settings(tmp_path, redis_url, ops_token_file=here.folder / "data/ops-token")
        headers = {"Authorization": f"Bearer {token}"}
        with (
            Visitor(address) as visitor,
            httpx.Client(
                base_url=f"{address}/api/v1/", headers=headers, timeout=60, trust_env=False, limits=LIMITS
            ) as api,
        ):
            visitor.enter(settings)
            assert visitor.get(f"/mail/{ID}").status_code == 200
            assert api.get(f"emails/{ID}").status_code == 200
            with frozen(url):
                for status, paths in PAGES.items():
                    for path in paths:
                        page = timely(visitor, path)
                        assert page.status_code == status, (path, page.text)
                        assert status == 200 or "known" in page.text, path
                deadline = time.monotonic() + 60
                while "not known, how the database is" not in (page := timely(visitor, "/").text):
                    assert time.monotonic() < deadline, "the overview calls a frozen database well"
                    time.sleep(0.1)
                assert "database serves" not in page
                form = {"csrf": visitor.get("/operate").text.split('name="csrf" value="')[1].split('"', maxsplit=1)[0]}
                ordered = visitor.post("/accounts/stored/pause", data=form)
                answers = ("not known, whether it is done", "is being opened, and does not answer")
                assert any(each in ordered.text for each in answers), ordered.text
                assert ordered.elapsed.total_seconds() < HANG_SECONDS
                with ThreadPoolExecutor(40) as pool:  # more than there are threads for the database
                    for answer in pool.map(partial(timely, api), CALLS * 4):
                        assert answer.json()["error"]["code"] == "unavailable", (answer.url, answer.text)
            deadline = time.monotonic() + 60
            while visitor.get(f"/mail/{ID}").status_code != 200:
                assert time.monotonic() < deadline, "it does not come back"
                time.sleep(0.1)
            assert api.get("emails").status_code == 200


def timely(client: httpx.Client, path: str) -> httpx.Response:
    answer = client.get(path)
    assert answer.elapsed.total_seconds() < HANG_SECONDS, path
    return answer
