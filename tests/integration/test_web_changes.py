"""`GET /api/v1/changes` of a real web process, as a reader of the feed sees it."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import httpx
import pytest

from email_ingestion.ledger.model import Marks
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.settings import Settings
from email_ingestion.web.context import WebContext
from email_ingestion.web.feed_watch import LOOK_SECONDS, MAX_WAITING
from tests.servers.api import Api, api, delivered, letter, token
from tests.servers.event_schemas import judge
from tests.servers.ports import free_port
from tests.servers.processes import ROOT, Place, Running, place

SOON = 60.0  # seconds: what comes at once, on a busy machine


def raw(number: int) -> bytes:
    made = EmailMessage()
    made["From"], made["Subject"] = "Ann <ann@example.org>", f"letter {number}"
    made.set_content("Hello")
    return made.as_bytes()


def deliver(here: Place, *numbers: int, account: str = "default") -> list[str]:
    made = [letter(number, raw(number), account=account) for number in numbers]
    delivered(here, made)
    return [each.email.email_id for each in made]


def ledger_of(here: Place) -> Ledger:
    return open_ledger(f"sqlite:///{here.folder}/data/email_ingestion.db")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    redis_is_down = f"redis://127.0.0.1:{free_port()}/0"
    with place(tmp_path, redis_is_down, WEB_REQUESTS_PER_MINUTE=60_000) as it:
        (it.folder / "config").mkdir()
        (it.folder / "config" / "settings.toml").write_text(
            '[[accounts]]\nname = "default"\n[[accounts]]\nname = "work"\n'
        )
        yield it


@pytest.fixture
def web(here: Place) -> Running:
    return here.web()


@pytest.fixture
def reader(here: Place, web: Running) -> Api:
    return api(web, token(here, "--scope", "read"))


def test_a_reader_follows_the_feed_and_waits_for_what_comes(here: Place, web: Running, reader: Api) -> None:
    assert reader.get("changes").json() == {"items": [], "next": 0, "total": None}
    ids = deliver(here, 1, 2, 3)
    first = reader.get("changes", after=0, limit=2).json()
    assert [each["email_id"] for each in first["items"]] == ids[:2]
    assert first["items"][0].keys() == {"seq", "at", "kind", "account", "email_id", "details"}
    assert (first["items"][0]["kind"], first["items"][0]["details"]) == ("born", None)
    assert datetime.now(UTC) - datetime.fromisoformat(first["items"][0]["at"]) < timedelta(minutes=5)
    rest = reader.get("changes", after=first["next"], wait=30).json()
    for answer in (first, rest):
        judge("changes").validate(answer)
    assert [each["email_id"] for each in rest["items"]] == ids[2:]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(reader.get, "changes", after=rest["next"], wait=20)
        time.sleep(2 * LOOK_SECONDS)
        assert not waiting.done()
        with closing(ledger_of(here)) as ledger:
            ledger.server_state.update_marks("INBOX", {ids[0]: Marks(("Plans",))})
        (change,) = waiting.result(SOON).json()["items"]
    assert (change["kind"], change["email_id"]) == ("relabelled", ids[0])
    judge("changes").validate({"items": [change], "next": change["seq"], "total": None})
    assert change["details"] == {"labels": ["Plans"], "added": ["Plans"], "removed": ["\\Inbox"]}

    of_work = api(web, token(here, "--scope", "read", "--account", "work"))
    page = of_work.get("changes", wait=LOOK_SECONDS).json()
    assert (page["items"], page["next"]) == ([], change["seq"])  # it saw nothing, and came on all the same
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(of_work.get, "changes", after=page["next"], wait=20)
        deliver(here, 4)
        (mine,) = deliver(here, 5, account="work")
        assert [each["email_id"] for each in waiting.result(SOON).json()["items"]] == [mine]
    assert of_work.get("changes", account="default").status_code == 403
    assert [each["account"] for each in reader.items("changes", account="work")] == ["work"]

    assert _seen_by_the_documented_reader(reader) == reader.items("changes")

    assert httpx.get(api(web).url + "/api/v1/changes", trust_env=False, timeout=30).status_code == 401
    for wrong in ({"since": 1}, {"after": -1}, {"after": "x"}, {"wait": 61}, {"limit": 0}, {"limit": 1001}):
        assert reader.get("changes", **wrong).status_code == 400, wrong


def _seen_by_the_documented_reader(reader: Api) -> list[object]:
    """Run the reader of docs/changes.md until it has seen the last change."""
    (example,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "changes.md").read_text(), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Callable[..., None]] = {}
    exec(example, names)
    end = reader.get("changes").json()["next"]
    seen: list[object] = []
    started_again: list[object] = []

    def handle(change: dict[str, object]) -> None:
        seen.append(change)
        if change["seq"] == end:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        names["follow"](reader.url, reader.token, handle, started_again.append)
    assert started_again == []
    return seen


def test_who_must_start_again_is_told_from_where_and_a_stop_answers_who_waits(
    here: Place, web: Running, reader: Api
) -> None:
    ids = deliver(here, 1, 2, 3)
    ahead = reader.get("changes", after=9)
    assert (ahead.status_code, ahead.json()["error"]["code"]) == (410, "gone")
    with closing(ledger_of(here)) as ledger:
        assert ledger.changes.remove_before(datetime.now(UTC) + timedelta(minutes=1)) == 3
    gone = reader.get("changes", after=1, wait=20)
    assert gone.status_code == 410
    assert gone.json()["error"].keys() == {"code", "message"}
    assert "the changes after 3" in gone.json()["error"]["message"]
    start = int(gone.headers["Change-Feed-Start"])
    assert {each["email_id"] for each in reader.items("emails")} == {*ids}
    (later,) = deliver(here, 4)
    assert [each["email_id"] for each in reader.items("changes", after=start)] == [later]

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(reader.get, "changes", after=start + 1, wait=50)
        time.sleep(2 * LOOK_SECONDS)
        web.process.send_signal(signal.SIGTERM)
        assert waiting.result(SOON).json() == {"items": [], "next": start + 1, "total": None}
    assert web.process.wait(SOON) == 0


def test_who_waits_holds_no_connection_of_the_database(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path}/ledger.db", accounts=())
    open_ledger(settings.database_url).close()
    context = WebContext.from_settings(settings)
    looks = 0

    async def last() -> int:
        nonlocal looks
        looks += 1
        return await context.access.ask(lambda ledger: ledger.changes.last(), SOON)

    async def connected() -> bool:
        return False

    async def wait_all() -> list[bool]:
        waiting = [
            asyncio.ensure_future(context.feed.wait(0, 4 * LOOK_SECONDS, last, connected))
            for _ in range(MAX_WAITING + 5)
        ]
        await asyncio.sleep(0)
        done = [each for each in waiting if each.done()]
        assert len(done) == 5  # more than it lets wait
        held = []
        while not all(each.done() for each in waiting):
            held.append(context.access.ledger._database.engine.pool.checkedout())  # type: ignore[attr-defined]
            await asyncio.sleep(LOOK_SECONDS / 10)
        assert max(held) <= 1
        assert 0 in held
        return [each.result() for each in waiting]

    try:
        assert not any(asyncio.run(wait_all()))
        assert looks <= 12  # for all of them together
        threading.Timer(LOOK_SECONDS, context.feed.close).start()
        assert asyncio.run(context.feed.wait(0, SOON, last, connected)) is False
    finally:
        context.close()
