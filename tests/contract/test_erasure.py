"""What was erased is nowhere any more, what it shares with other mail stays, and nothing brings it back."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from email_ingestion.app import erasures
from email_ingestion.cli.drain_refill import FORM
from email_ingestion.erasure import eraser as eraser_module
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.errors import OperationFailed, SinkUnavailable
from email_ingestion.ledger.search_filter import SearchFilter
from email_ingestion.records import ChangeEvent, ChangeKind
from email_ingestion.sinks import load_sink
from email_ingestion.sinks.ndjson import FileSink
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.stream.dead_letter_file import read_entries, write_entries
from email_ingestion.stream.queue_dump import QueueDump
from email_ingestion.stream.sink import StreamSink
from tests.contract.erasing import ANNA, BERT, Installations, Kept, identities, kept_mail, letter, message, with_file
from tests.servers.redis import RedisServer
from tests.servers.webhook import SECRET, receiving

LARGE = "a,b\r\n" * 1_000


@pytest.fixture
def kept(
    tmp_path: Path, database_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Installations:
    monkeypatch.chdir(tmp_path)
    with kept_mail(tmp_path, database_url, redis_server.url) as found:
        yield found


def test_a_senders_mail_is_gone_everywhere_and_the_others_stays(kept: Kept):
    kept.deliver(message(1, letter(1)), message(2, letter(2, BERT)), message(3, with_file(3, LARGE)))
    kept.queue(message(4, letter(4)), message(5, letter(5, BERT)))
    kept.bury()
    kept.queue(message(6, letter(6)), message(7, letter(7, BERT)))
    assert kept.in_redis() == (2, 2, 3)
    found = kept.erase(sender="Anna@Example.org")
    assert found.matched == 4
    assert kept.delivered() == identities(2)
    assert kept.in_redis() == (1, 1, 1)
    assert [each for each in kept.files() if "500" in each] == [
        *("mail/new/1767225600.default-gm-5002.email-ingestion", "out/2026/01/01/default-gm-5002.eml"),
        "out/2026/01/01/default-gm-5002.json",
    ]
    assert not [each for each in kept.files() if each.startswith("blobs")]
    assert kept.ledger.mail_search.hits("number1") == []
    assert kept.ledger.mail_search.hits("", 5, SearchFilter(filename="list3.csv")) == []
    assert len(kept.ledger.mail_search.hits("number2")) == 1
    assert not found.unreadable
    assert found.removed["messages"] == 2
    assert found.removed["dead_letters"] == found.removed["stream"] == 1
    assert found.removed["sink files:out"] == found.removed["sink maildir:mail"] == 2


def test_a_content_that_other_mail_has_too_stays(kept: Kept):
    kept.deliver(message(1, with_file(1, LARGE)), message(2, with_file(2, LARGE, BERT)))
    before = [each for each in kept.files() if each.startswith("blobs")]
    kept.erase(sender=ANNA)
    blobs = [each for each in kept.files() if each.startswith("blobs")]
    assert len(before) == 3  # two messages, and the file of both
    assert len(blobs) == 2
    (left,) = kept.ledger.contents.messages()
    assert all(kept.blobs.exists(ref) for ref in (left.raw_ref, *left.attachment_refs))


def test_a_small_content_that_other_mail_has_too_stays(kept: Kept):
    kept.deliver(message(1, with_file(1, "x,y")), message(2, with_file(2, "x,y", BERT)))
    assert kept.erase(sender=ANNA).removed["contents"] == 1
    (left,) = kept.ledger.contents.messages()
    assert kept.ledger.content(left.attachment_refs[0]) == b"x,y"
    kept.erase(sender=BERT)
    assert kept.ledger.content(left.attachment_refs[0]) is None


@pytest.mark.parametrize(
    ("extra", "to", "found"),
    [
        ("Cc: Anna <ANNA@example.org>\r\n", BERT, True),
        ("Bcc: anna@example.org\r\n", BERT, True),
        ("Reply-To: anna@example.org\r\n", BERT, True),
        ("Sender: =?utf-8?q?Ann=C3=A4?= <anna@example.org>\r\n", BERT, True),
        ("", f"{BERT}, Anna <anna@example.org>", True),
        ("", "joanna@example.org", False),
        ("", "anna@example.org.evil.example", False),
        ("X-Note: anna@example.org\r\n", BERT, False),
    ],
)
def test_an_address_is_found_in_every_address_field_and_nowhere_else(kept: Kept, extra: str, to: str, *, found: bool):
    kept.deliver(message(1, letter(1, BERT, to=to, extra=extra)))
    kept.queue(message(2, letter(2, BERT, to=to, extra=extra)))
    assert kept.preview(address=ANNA).matched == 2 * found
    assert kept.preview(sender=ANNA).matched == 0
    assert kept.erase(address=ANNA).matched == 2 * found
    assert len(kept.delivered()) == 1 - found


def test_a_domain_an_account_and_an_age_are_conditions(kept: Kept):
    old = datetime(2020, 1, 1, tzinfo=UTC)
    kept.deliver(
        message(1, letter(1), internaldate=old),
        message(2, letter(2)),
        message(3, letter(3, "x@sub.example.org"), internaldate=old),
        message(4, letter(4), account="work", internaldate=old),
    )
    assert kept.preview(sender="@example.org").matched == 3
    assert kept.preview(before=datetime(2025, 1, 1, tzinfo=UTC)).matched == 3
    assert kept.preview(before=datetime(2025, 1, 1, tzinfo=UTC), account="work").by_account == {"work": 1}
    kept.erase(sender="@example.org", before=datetime(2025, 1, 1, tzinfo=UTC), account="default")
    assert kept.delivered() == {*identities(2, 3), "work:gm:5004"}


def test_a_preview_changes_nothing(kept: Kept):
    kept.deliver(message(1, letter(1)))
    kept.queue(message(2, letter(2)))
    before = (kept.delivered(), kept.in_redis(), kept.files())
    assert kept.preview(sender=ANNA).matched == 2
    assert (kept.delivered(), kept.in_redis(), kept.files()) == before
    assert not (kept.folder / "erasure").exists()


def test_what_was_erased_is_not_recorded_again(kept: Kept):
    """A worker had it in its hands, or another process brings it once more; large contents go too."""
    large = message(2, with_file(2, LARGE))
    kept.deliver(message(1, letter(1)), large, message(3, letter(3, BERT)))
    kept.erase(sender=ANNA)
    kept.deliver(message(1, letter(1)), large, message(4, letter(4, BERT)))
    assert kept.delivered() == identities(3, 4)
    kept.erase(email_ids=("default:gm:9",))
    assert not [each for each in kept.files() if each.startswith("blobs")]


def test_the_same_bytes_under_another_identity_stay_away_too(kept: Kept):
    """An mbox file does not tell X-GM-MSGID, so the message comes by its SHA-256."""
    kept.deliver(message(1, letter(1)))
    kept.erase(email_ids=tuple(identities(1)))
    kept.deliver(message(1, letter(1), plain=True))
    assert kept.delivered() == set()


def test_a_second_copy_stays_when_only_the_first_is_erased(kept: Kept):
    kept.deliver(message(1, letter(1)), message(2, letter(1)))
    kept.erase(email_ids=tuple(identities(1)))
    kept.reapply()
    assert kept.delivered() == identities(2)
    (left,) = kept.ledger.contents.messages()
    assert kept.ledger.content(left.raw_ref) == letter(1)


def test_the_tombstones_tell_nothing_and_lie_outside_of_the_database(kept: Kept):
    kept.deliver(message(1, letter(1), plain=True))
    kept.erase(sender=ANNA)
    path = kept.folder / "erasure" / "tombstones.jsonl"
    record = json.loads(path.read_text())
    assert len(record["tombstones"]) == 2  # its identity, which is its content, and its place
    assert "default" not in path.read_text()
    assert "example" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(kept.ledger.erasure.tombstones()) == set(record["tombstones"])


def test_a_damaged_file_of_tombstones_is_told(kept: Kept):
    kept.deliver(message(1, letter(1)), message(2, letter(2, BERT)))
    kept.erase(sender=ANNA)
    kept.erase(sender=BERT)
    path = kept.folder / "erasure" / "tombstones.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(second)
    assert TombstoneFile(path.parent).read().breaks
    with pytest.raises(OperationFailed, match="from a backup"):
        kept.reapply()
    path.write_text(first + second + '{"half a line')  # its writer was killed: nothing was erased for it
    kept.reapply()
    kept.deliver(message(3, letter(3)))
    kept.erase(sender=ANNA)
    assert not TombstoneFile(path.parent).read().breaks


def test_file_and_database_make_each_other_good(kept: Kept):
    """A machine whose file is new, and a database that older code or an old backup left without tombstones."""
    kept.deliver(message(1, letter(1)))
    kept.erase(sender=ANNA)
    path = kept.folder / "erasure" / "tombstones.jsonl"
    path.unlink()
    kept.reapply()
    assert TombstoneFile(path.parent).read().tombstones == set(kept.ledger.erasure.tombstones()) != set()
    with kept.ledger._database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM erased")
    kept.deliver(message(1, letter(1)))  # as older code does, which does not know them
    kept.queue(message(1, letter(1)))
    assert kept.delivered() == identities(1)
    assert kept.reapply().matched == 1
    assert kept.delivered() == set()
    assert kept.in_redis()[0] == 0


@pytest.mark.parametrize("killed_at", ["append", "erase", "sweep", "remove_contents", "_remove_blobs"])
def test_an_erasure_that_was_killed_is_finished_by_the_next(
    kept: Kept, killed_at: str, monkeypatch: pytest.MonkeyPatch
):
    kept.deliver(message(1, with_file(1, LARGE)), message(2, letter(2, BERT)))
    kept.queue(message(1, with_file(1, LARGE)), message(3, letter(3)))
    owners = (eraser_module.Eraser, eraser_module.TombstoneFile, eraser_module.QueueErasure, type(kept.ledger.erasure))
    owner = next(each for each in owners if killed_at in vars(each) and (killed_at != "erase" or each is owners[3]))

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, killed_at, die)
        with pytest.raises(KeyboardInterrupt):
            kept.erase(sender=ANNA)
    kept.erase(sender=ANNA)
    assert kept.delivered() == identities(2)
    assert kept.in_redis()[:2] == (0, 0)
    assert not [each for each in kept.files() if each.startswith("blobs") or "5001" in each]


def test_a_message_that_a_sink_is_handling_is_waited_for(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    """The sink writes its file after the erasure has begun, and it is gone all the same."""
    kept.deliver(message(1, letter(1)))
    claim = kept.ledger.outbox.claim("files:out", "here-worker-1", 10, 60.0)
    assert len(claim.deliveries) == 1
    waited = threading.Event()
    monkeypatch.setattr(eraser_module, "POLL_SECONDS", 0.01)

    def finish() -> None:
        assert waited.wait(30)
        kept.sinks["files:out"].deliver([])
        (kept.folder / "out" / "2026" / "01" / "01" / "default-gm-5001.eml").write_bytes(letter(1))
        kept.ledger.outbox.mark_delivered(claim, ["default:gm:5001"])

    thread = threading.Thread(target=finish)
    thread.start()
    usual = type(kept.ledger.erasure).withdraw_deliveries

    def watched(*args):
        busy = usual(*args)
        waited.set()
        return busy

    monkeypatch.setattr(type(kept.ledger.erasure), "withdraw_deliveries", watched)
    found = kept.erase(sender=ANNA)
    thread.join()
    assert not found.busy_sinks
    assert not [each for each in kept.files() if "5001" in each]


def test_a_blob_that_was_stored_just_now_is_waited_for_while_processes_run(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    """Another message with the same file is about to be recorded: the file must not be taken from under it."""
    kept.deliver(message(1, with_file(1, LARGE)))
    waits = []

    def record_meanwhile(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            kept.deliver(message(2, with_file(2, LARGE, BERT)))
        else:
            monkeypatch.setattr(eraser_module, "GRACE_SECONDS", -1.0)

    monkeypatch.setattr(erasures, "read_presences", lambda _link: ({"instance": "here-worker-1"},))
    usual = eraser_module.Eraser.__init__
    monkeypatch.setattr(
        eraser_module.Eraser,
        "__init__",
        lambda *args, **options: usual(*args, **{**options, "pause": record_meanwhile}),
    )
    kept.erase(sender=ANNA)
    assert len(waits) == 2
    (left,) = kept.ledger.contents.messages()
    assert all(kept.blobs.exists(ref) for ref in (left.raw_ref, *left.attachment_refs))


def test_what_could_not_be_looked_at_is_told(kept: Kept):
    raw = letter(1, body="x" * 4_000)
    ref = kept.blobs.put(raw)
    kept.blobs.put(b"something else that is there" * 200)
    kept.queue(message(1, raw).__class__(message(1, raw).envelope, None, ref))
    (kept.folder / "blobs" / ref[7:9] / ref[9:11] / ref[7:]).unlink()
    found = kept.preview(sender=ANNA)
    assert found.matched == 0
    assert len(found.unreadable) == 1
    assert kept.erase(email_ids=tuple(identities(1))).matched == 1
    assert kept.in_redis()[0] == 0


def test_an_empty_blob_store_is_not_taken_for_a_clean_one(kept: Kept):
    """Its disk is not mounted: the content would come back with it."""
    kept.deliver(message(1, with_file(1, LARGE)))
    (kept.folder / "blobs").rename(kept.folder / "away")
    (kept.folder / "blobs").mkdir()
    with pytest.raises(SinkUnavailable, match="mounted"):
        kept.erase(sender=ANNA)
    (kept.folder / "blobs").rmdir()
    (kept.folder / "away").rename(kept.folder / "blobs")
    kept.erase(sender=ANNA)
    assert not [each for each in kept.files() if each.startswith("blobs")]


def test_a_dead_letter_that_no_release_wrote_is_erased_by_its_addresses(kept: Kept):
    import zstandard  # noqa: PLC0415

    packed = zstandard.ZstdCompressor().compress(letter(1))
    kept.link.client.xadd(kept.link.keys.dlq, {"account": "../../etc", "raw": packed, "dead_reason": "malformed"})
    kept.link.client.xadd(kept.link.keys.dlq, {"account": "x", "raw": b"no zstd", "dead_reason": "malformed"})
    found = kept.erase(sender=ANNA)
    assert found.matched == 1
    assert len(found.unreadable) == 1
    assert DeadLetterQueue(kept.link).depth() == 1


def test_a_drained_queue_brings_no_erased_message_back(kept: Kept):
    kept.queue(message(1, letter(1)), message(2, letter(2, BERT)), message(3, letter(3)))
    dump = QueueDump(kept.link)
    write_entries(kept.folder / "queue.jsonl", dump.entries(), {}, lambda: None, form=FORM)
    kept.erase(email_ids=tuple(identities(3)))
    kept.link.client.delete(kept.link.keys.stream)
    kept.ledger.close()
    with erasures.erased_names(kept.settings) as erased:
        again = QueueDump(kept.link)
        assert list(again.refill(read_entries(kept.folder / "queue.jsonl"), erased)) == [(3, 2)]
        assert again.left_out == 1
    (kept.folder / "erasure" / "tombstones.jsonl").unlink()
    kept.link.client.delete(kept.link.keys.stream)
    with erasures.erased_names(kept.settings) as erased:  # another machine, where only the database knows
        assert list(QueueDump(kept.link).refill(read_entries(kept.folder / "queue.jsonl"), erased)) == [(3, 2)]


def test_a_webhook_is_told_once_it_takes_that_and_only_of_what_it_got(kept: Kept):
    with receiving() as receiver:
        changes = {"sinks": ("database", "webhook"), "webhook_url": receiver.url, "webhook_secret": SECRET}
        kept.settings = kept.settings.model_copy(update=changes)
        kept.deliver(*(message(number, letter(number)) for number in (1, 2, 3)), owed_to=("webhook",))
        claim = kept.ledger.outbox.claim("webhook", "here-worker-1", 2, 60.0)
        kept.ledger.outbox.mark_delivered(claim, [each.envelope.email_id for each in claim.deliveries])
        receiver.taken.clear()
        kept.erase(email_ids=tuple(identities(1)))
        assert not [each for each in receiver.asked if each.startswith("erased")]
        kept.settings = kept.settings.model_copy(update={"webhook_erased": True})
        receiver.fail(503)
        assert kept.erase(sender=ANNA).untold
        receiver.work()
        assert not kept.erase(sender=BERT).untold
        assert kept.ledger.erasure.pending_notices("webhook") == []
        assert [each for each in receiver.taken if each.startswith("erased")] == ["erased:default:gm:5002"]
        told = receiver.bodies["erased:default:gm:5002"]
        assert told["type"] == "email.erased"
        assert told["data"]["email_id"] == "default:gm:5002"


def test_workers_tell_of_an_erasure_with_the_changes_and_the_nightly_run_of_what_they_did_not(kept: Kept):
    with receiving() as receiver:
        changes = {"sinks": ("database", "webhook"), "webhook_url": receiver.url, "webhook_secret": SECRET}
        kept.settings = kept.settings.model_copy(update={**changes, "webhook_events": ("erased",)})
        kept.deliver(message(1, letter(1)), owed_to=("webhook",))
        claim = kept.ledger.outbox.claim("webhook", "here-worker-1", 2, 60.0)
        kept.ledger.outbox.mark_delivered(claim, [each.envelope.email_id for each in claim.deliveries])
        assert not kept.erase(email_ids=tuple(identities(1))).untold
        (notice,) = kept.ledger.erasure.pending_notices("webhook")
        receiver.taken.clear()
        assert not [each for each in receiver.asked if each.startswith("erased")]
        with kept.ledger._database.begin() as connection:
            connection.exec_driver_sql("UPDATE erasure_notices SET erased_at = '2026-01-01T00:00:00+00:00'")
        kept.erase(sender=BERT)
        assert receiver.taken == {f"erased:{notice.email_id}": 1}
        assert kept.ledger.erasure.pending_notices("webhook") == []


def test_of_what_sinks_were_told_only_the_erasure_itself_stays(kept: Kept):
    kept.deliver(message(1, letter(1)))
    (name,) = identities(1)
    stream = cast("StreamSink", load_sink("stream", kept.settings))
    lines = FileSink(kept.folder / "lines.jsonl", 1000)
    now = datetime.now(UTC)
    told = [
        ChangeEvent(1, now, ChangeKind.RELABELLED, "default", name, {"labels": ["Ann Example"]}),
        ChangeEvent(2, now, ChangeKind.ERASED, "default", name, None, now),
    ]
    for sink in (stream, lines):
        sink.tell_changes(told)
        sink.tell_missed(3)
    stream.close()
    kept.erase(email_ids=(name,))
    assert lines.erase_lines(lambda each: each == name) == 1
    entries = [fields for _, fields in kept.link.client.xrange(kept.link.keys.sink_stream)]
    kinds = [json.loads(each[b"json"]).get("kind") for each in entries]
    assert kinds == ["erased", None]
    assert [json.loads(each).get("kind") for each in (kept.folder / "lines.jsonl").read_text().splitlines()] == kinds
