"""Dead letters in a browser: grouped, previewed, then put back or purged with progress and a line in the audit log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from email_ingestion.ops.audit_log import read_audit
from email_ingestion.settings import Settings
from email_ingestion.stream import DeadLetterQueue, Keys, open_link
from email_ingestion.stream.dead_letter_file import verify_file
from tests.servers.links import fill_dead_letters
from tests.servers.redis import RedisServer
from tests.servers.web import SECONDS, Visitor, running_pages, web_settings

PATH = "/dead-letters"


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer) -> Settings:
    """A queue with three letters of one kind and two of another."""
    fill_dead_letters(redis_server.url, "it <b>does not</b> fit")
    return web_settings(tmp_path, redis_server.url)


@pytest.fixture
def visitor(settings: Settings) -> Iterator[Visitor]:
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        yield visitor


def _finished(visitor: Visitor, page: httpx.Response) -> str:
    deadline = time.monotonic() + SECONDS
    while 'http-equiv="refresh"' in page.text:
        assert time.monotonic() < deadline, "the order does not end"
        time.sleep(0.05)
        page = visitor.get(page.url)
    return page.text


def _group(visitor: Visitor, kind: str) -> str:
    deadline = time.monotonic() + SECONDS
    while not (found := re.search(rf'href="/dead-letters/group/([0-9a-f]+)">{kind}<', visitor.get(PATH).text)):
        assert time.monotonic() < deadline, f"there is no group of {kind}"
        time.sleep(0.05)
    return found[1]


def test_a_group_is_previewed_and_put_back(visitor: Visitor, settings: Settings, redis_server: RedisServer) -> None:
    fingerprint = _group(visitor, "PermanentError")
    listed = visitor.get(PATH).text
    assert "does not" in listed
    assert "<b>does not</b>" not in listed
    assert "5 in 2 groups" in listed
    page = visitor.get(f"{PATH}/group/{fingerprint}").text
    assert page.count('<th scope="row"') == 3
    preview = visitor.get(f"{PATH}/preview", params={"order": "replay", "fingerprint": fingerprint})
    assert "puts <strong>3</strong> dead letters back" in preview.text
    with redis_server.client() as client:
        assert client.xlen(Keys().stream) == 0, "a preview changes nothing"
        done = _finished(visitor, visitor.submit(preview, f"{PATH}/replay"))
        assert "3 dead letters put back into the stream." in done
        assert client.xlen(Keys().stream) == 3
        assert client.xlen(Keys().dlq) == 2
    record = list(read_audit(settings.log_dir))[-1]
    wanted = {"user": "ada", "via": "web", "action": "dlq replay", "matched": 3, "replayed": 3, "result": "done"}
    assert wanted.items() <= record.items()
    assert record["filter"] == {"fingerprint": fingerprint}


def test_a_purge_writes_the_messages_to_a_file_first(
    visitor: Visitor, settings: Settings, redis_server: RedisServer
) -> None:
    fingerprint = _group(visitor, "TransientError")
    preview = visitor.get(f"{PATH}/preview", params={"order": "purge", "fingerprint": fingerprint})
    assert "writes <strong>2</strong> dead letters" in preview.text
    done = _finished(visitor, visitor.submit(preview, f"{PATH}/purge"))
    assert "2 dead letters deleted; they are in" in done
    (exported,) = settings.backup_dir.glob("dlq-*.jsonl")
    assert len(verify_file(exported).letters) == 2
    assert DeadLetterQueue(open_link(redis_server.url, "test")).depth() == 3


def test_a_reader_sees_them_and_gives_no_orders(visitor: Visitor, settings: Settings) -> None:
    fingerprint = _group(visitor, "PermanentError")
    with Visitor(str(visitor.base_url)) as reader:
        reader.enter(settings, "reader", "grace")
        preview = reader.get(f"{PATH}/preview", params={"order": "replay", "fingerprint": fingerprint})
        assert "Your role is reader" in preview.text
        csrf = re.search(r'name="csrf" value="([^"]+)"', preview.text)
        assert csrf
        refused = reader.post(f"{PATH}/replay", data={"csrf": csrf[1], "fingerprint": fingerprint})
        assert refused.status_code == 403
    record = list(read_audit(settings.log_dir))[-1]
    assert (record["user"], record["result"]) == ("grace", "refused")
    assert "5 in 2 groups" in visitor.get(PATH).text


def test_all_letters_are_not_meant_by_silence(visitor: Visitor, redis_server: RedisServer) -> None:
    _group(visitor, "PermanentError")
    page = visitor.get(f"{PATH}/preview", params={"order": "replay"})
    csrf = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert csrf
    assert visitor.post(f"{PATH}/replay", data={"csrf": csrf[1]}).status_code == 409
    done = _finished(visitor, visitor.submit(page, f"{PATH}/replay"))
    assert "5 dead letters put back" in done
    with redis_server.client() as client:
        assert client.xlen(Keys().dlq) == 0


def test_without_redis_the_number_is_not_known(tmp_path: Path) -> None:
    settings = web_settings(tmp_path)
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        page = visitor.get(PATH).text
        assert "Not known: Redis" in page
        assert "There are none" not in page
        preview = visitor.get(f"{PATH}/preview", params={"order": "purge"}).text
        assert "Not known, how many there are" in preview
