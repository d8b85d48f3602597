"""After a scrub no byte of what was erased is in any file of database, Redis, blobs and sinks; the report is signed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.app.erasures import report_erasure, scrub
from email_ingestion.erasure.mail_selector import MailSelector
from email_ingestion.erasure.report import verify_report
from email_ingestion.ledger.maintenance import find_damage
from email_ingestion.stream import Consumer
from email_ingestion.stream.queue_scrub import QueueScrub
from tests.contract.erasing import ANNA, BERT, Installations, Kept, identities, kept_mail, letter, message, with_file
from tests.servers.redis import RedisServer

MARK = secrets.token_hex(24)  # of which no compression leaves nothing
FILE = secrets.token_urlsafe(3_000)


@pytest.fixture
def kept(
    tmp_path: Path, own_database_url: str, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Installations:
    """Anna's mail between that of others, so that what holds it holds theirs too."""
    monkeypatch.chdir(tmp_path)
    sinks = "files:out,maildir:mail,stream,ndjson:lines.jsonl"
    with kept_mail(tmp_path, own_database_url, own_redis.url, sinks) as found:
        marked = [letter(number, ANNA, body=f"{MARK} {number}") for number in range(20)]
        others = [letter(number, BERT) for number in range(20)]
        each = [raw for pair in zip(marked, others, strict=True) for raw in pair]
        found.deliver(*(message(number, raw) for number, raw in enumerate(each[:20], 1)))
        found.deliver(message(21, with_file(21, FILE)), message(22, with_file(22, "x,y", BERT)))
        found.queue(*(message(number, raw) for number, raw in enumerate(each[20:30], 31)))
        found.bury()
        found.queue(*(message(number, raw) for number, raw in enumerate(each[30:], 51)))
        yield found


def data_files(kept: Kept) -> Iterator[Path]:
    """Every file that database, Redis, blob store and sinks keep; not PostgreSQL's log, which the report names."""
    for name in ("redis", "blobs", "out", "mail", "lines.jsonl", "ledger.db", "ledger.db-wal", "ledger.db-shm"):
        path = kept.folder / name
        yield from (each for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())
    if not kept.settings.database_url.startswith("sqlite"):
        with kept.ledger._database.connect() as connection:
            connection.exec_driver_sql("CHECKPOINT")  # what is in memory only, no search of files would find
            base = Path(connection.exec_driver_sql("SHOW data_directory").scalar_one()) / "base"
            oid = connection.exec_driver_sql("SELECT oid FROM pg_database WHERE datname = current_database()").scalar()
        yield from (each for each in (base / str(oid)).rglob("*") if each.is_file())


def places_of(kept: Kept, *needles: bytes) -> set[str]:
    found = set()
    for path in data_files(kept):
        content = path.read_bytes()
        if any(needle in content for needle in needles):
            found.add("database" if path.name.startswith("ledger.db") or "base" in path.parts else path.parts[-2])
    return found


def payloads(kept: Kept) -> list[bytes]:
    """What Redis holds of the mail of Anna, packed: the last bytes of each entry's payload."""
    keys = kept.link.keys
    entries = [fields for key in (keys.dlq, keys.stream) for _, fields in kept.link.client.xrange(key)]
    return [fields[b"raw"] for fields in entries[::2]]


def test_a_byte_search_finds_nothing_after_a_scrub(kept: Kept):
    needles = [MARK.encode(), FILE[:64].encode(), ANNA.encode(), *payloads(kept)]
    assert len(needles) == 3 + 10
    assert {"database", "01", "new", "appendonlydir"} <= places_of(kept, *needles)
    assert "appendonlydir" in places_of(kept, *payloads(kept))
    before = kept.delivered()
    assert kept.erase(sender=ANNA).matched == 21
    assert {"database", "appendonlydir"} <= places_of(kept, *needles)  # free pages, the append-only file
    assert scrub(kept.settings, kept.link, kept.ledger) == []
    assert places_of(kept, *needles) == set()
    assert len(kept.delivered()) == len(before) - 11
    assert kept.in_redis()[:2] == (5, 5)
    assert find_damage(kept.settings.database_url) == []
    assert len(kept.ledger.mail_search.hits("bert", 100)) == 11
    lines = (kept.folder / "lines.jsonl").read_text().splitlines()
    assert {json.loads(each)["email_id"] for each in lines} == kept.delivered()
    kept.deliver(message(90, letter(90, BERT)))
    assert identities(90) < kept.delivered()


def test_a_stream_that_is_written_anew_is_the_same_stream(kept: Kept):
    """Ids, counters, groups, consumers, pending entries with their deliveries; and entries go on as before."""
    consumer = Consumer(kept.link, "here-worker-2", 60.0)
    taken = consumer.read_new(3, block=False)
    key, client = kept.link.keys.stream, kept.link.client
    names = ("length", "last-generated-id", "entries-added", "max-deleted-entry-id", "groups")

    def state() -> tuple[object, ...]:
        info, groups = client.xinfo_stream(key), client.xinfo_groups(key)
        pending = client.xpending_range(key, "email_processor_group", "-", "+", 100)
        facts = [(each["message_id"], each["consumer"], each["times_delivered"]) for each in pending]
        consumers = sorted(each["name"] for each in client.xinfo_consumers(key, "email_processor_group"))
        return [info[name] for name in names], groups, facts, consumers, client.xrange(key)

    before = state()
    assert QueueScrub(kept.link, [kept.link.keys.sink_stream]).run() == []
    assert state() == before
    assert not consumer.ack(taken)
    assert len(consumer.read_new(100, block=False)) == 10 - len(taken)


def test_a_redis_that_lets_nobody_write_its_files_anew_is_told(kept: Kept):
    kept.link.client.execute_command("ACL", "SETUSER", "default", "-bgrewriteaof")
    kept.erase(sender=ANNA)
    (problem,) = scrub(kept.settings, kept.link, kept.ledger)
    assert "BGREWRITEAOF" in problem


def test_the_report_is_signed_and_tells_no_address(kept: Kept):
    with kept.eraser() as eraser:
        selector = MailSelector(sender=ANNA)
        for _ in eraser.erase(selector):
            pass
        written = report_erasure(kept.settings, eraser, selector, scrubbed=False)
    path = Path(written["report"])
    assert verify_report(kept.settings.erasure_dir, path) is None
    record = json.loads(path.read_text())
    assert "example.org" not in path.read_text()
    assert record["matched"] == 21
    assert record["removed"]["messages"] == 11
    stays = " ".join(each["place"] for each in record["stays"])
    for place in ("mail server", "append-only file", "lines.jsonl", "logs", "tombstones", "blocks"):
        assert place in stays
    path.write_text(path.read_text().replace('"matched": 21', '"matched": 27'))
    assert "changed" in (verify_report(kept.settings.erasure_dir, path) or "")
