"""A sink compared with what it was given: every edit is found, and nothing else, on both databases."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from email_ingestion.errors import SinkUnavailable
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.reconcile.consumer_report import ConsumerReport
from email_ingestion.reconcile.sink_comparison import LedgerComparison, SortedRuns
from tests.contract.edited_sinks import CORPUS, EditedSink
from tests.servers.redis import RedisServer

KINDS = ("files", "maildir", "ndjson", "stream")
MESSAGES = 150
EDITS = 100


@pytest.fixture(params=KINDS)
def sink(request: pytest.FixtureRequest, ledger: Ledger, tmp_path: Path, redis_server: RedisServer) -> EditedSink:
    return EditedSink(ledger, tmp_path, request.param, 7, redis_server.url if request.param == "stream" else "")


def found(report: ConsumerReport) -> tuple[set[str], set[str], Counter[str]]:
    missing, altered, not_ours = (report.named[name] for name in ("missing", "altered", "not_ours"))
    assert (len(set(missing)), len(set(altered))) == (len(missing), len(altered))
    return set(missing), set(altered), Counter(not_ours)


def test_every_edit_is_found_and_nothing_else(sink: EditedSink) -> None:
    sink.deliver(range(max(MESSAGES, len(CORPUS))))
    whole = sink.compare()
    assert len(sink.ids) >= len(CORPUS)
    assert (whole.complete, whole.sum("owed"), whole.sum("not_ours"), whole.sum("duplicates")) == (
        True,
        len(sink.ids),
        0,
        0,
    )
    assert found(whole) == (set(), set(), Counter())
    sink.edit(EDITS, fresh=10_000)
    report, expected = sink.compare(), sink.expected
    assert found(report) == (expected.missing, expected.altered, expected.not_ours)
    assert report.complete is False
    assert report.foreign == expected.foreign
    assert report.sum("duplicates") == expected.duplicates
    assert sum(row["missing"] for row in report.rows() if row["month"] == "2026-01") == sum(
        f"{sink.ids[each].internaldate:%Y-%m}" == "2026-01" for each in expected.missing
    )
    sink.tell_changes()  # which is no mail, and nothing foreign
    quick = sink.compare(presence=True)
    assert quick.foreign == expected.foreign
    assert found(quick) == (expected.missing, set(), expected.not_ours)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_edits_are_found_and_nothing_else(
    kind: str, sqlite_url: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    with closing(open_ledger(sqlite_url)) as ledger:
        sink = EditedSink(ledger, tmp_path, kind, 10_000, redis_server.url if kind == "stream" else "")
        sink.deliver(range(12_000))
        sink.edit(10_000, fresh=100_000)
        found: list[str] = []
        report = sink.compare(resend=lambda email_ids: found.extend(email_ids) or len(email_ids))
        expected = sink.expected
        assert sorted(found) == sorted(expected.missing | expected.altered)
        assert (report.sum("missing"), report.sum("altered")) == (len(expected.missing), len(expected.altered))
        assert report.sum("not_ours") == expected.not_ours.total() + expected.foreign
        assert report.sum("duplicates") == expected.duplicates


def test_what_is_on_its_way_young_dead_or_routed_elsewhere_is_not_missing(sink: EditedSink) -> None:
    sink.deliver(range(6))
    waiting, young, dead, elsewhere, erased = sink.deliver(range(6, 11), to_sink=False)
    sink.sql("UPDATE deliveries SET state = 'waiting' WHERE email_id = :id", id=waiting)
    now = sink.ledger.owed.now() - timedelta(seconds=5)
    at = now.isoformat() if sink.ledger._database.engine.dialect.name == "sqlite" else now
    sink.sql("UPDATE deliveries SET changed_at = :at WHERE email_id = :id", id=young, at=at)
    sink.sql("UPDATE deliveries SET state = 'dead' WHERE email_id = :id", id=dead)
    sink.sql("DELETE FROM deliveries WHERE email_id = :id", id=elsewhere)
    sink.sql("DELETE FROM deliveries WHERE email_id = :id", id=erased)
    report = sink.compare()
    assert (report.complete, report.sum("missing"), report.sum("in_flight"), report.sum("dead_letters")) == (
        True,
        0,
        2,
        1,
    )


def test_exactly_what_is_missing_or_altered_is_sent_again(sink: EditedSink) -> None:
    sink.deliver(range(60))
    sink.edit(30, fresh=10_000)
    resent: list[str] = []

    def resend(email_ids: list[str]) -> int:
        resent.extend(email_ids)
        sink.ledger.resends.add(sink.name, email_ids, ())
        return len(email_ids)

    assert sink.compare(resend=resend).resent == len(resent)
    assert sorted(resent) == sorted(sink.expected.missing | sink.expected.altered)
    assert sink.ledger.resends.left(sink.name) == len(resent)
    again = sink.compare(resend=resend)
    assert (again.complete, again.resent, again.sum("in_flight")) == (
        True,
        0,
        len(sink.expected.missing | sink.expected.altered),
    )


def test_what_cannot_be_read_is_never_complete(ledger: Ledger, tmp_path: Path, redis_server: RedisServer) -> None:
    files = EditedSink(ledger, tmp_path, "files", 1)
    files.deliver(range(3))
    folder = next(files.path.glob("*/*/*/*.eml"))
    folder.unlink()
    folder.mkdir()  # whoever runs the tests, it cannot be read as a file
    assert files.compare().complete is False
    lines = EditedSink(ledger, tmp_path, "ndjson", 2)
    lines.deliver(range(100, 103))
    lines.path.with_name("ndjson.1.gz").write_bytes(b"\x1f\x8bno gzip")
    report = lines.compare()
    assert (report.complete, len(report.unreadable)) == (None, 1)
    os.rename(lines.path, tmp_path / "away")
    lines.path.with_name("ndjson.1.gz").unlink()
    with pytest.raises(SinkUnavailable, match="mounted"):
        lines.compare()
    stream = EditedSink(ledger, tmp_path, "stream", 3, redis_server.url)
    stream.deliver(range(200, 203))
    with redis_server.client() as client:
        client.xgroup_create("there", "crm")
        client.xdel("there", client.xrange("there")[0][0])
    report = stream.compare()
    assert (report.complete, report.unknown, report.sum("missing")) == (None, 1, 0)


def test_rotated_lines_count(ledger: Ledger, tmp_path: Path) -> None:
    sink = EditedSink(ledger, tmp_path, "ndjson", 4)
    sink.deliver(range(4))
    sink.path.with_name("ndjson-20260131.gz").write_bytes(gzip.compress(sink.path.read_bytes()))
    sink.path.unlink()
    sink.deliver(range(4, 8))
    sink.path.with_name("ndjsonish").write_bytes(b"not of it\n")
    report = sink.compare()
    assert (report.complete, report.sum("owed"), report.foreign) == (True, 8, 0)


def test_the_database_is_compared_with_itself(ledger: Ledger, tmp_path: Path) -> None:
    sink = EditedSink(ledger, tmp_path, "files", 5)
    ids = sink.deliver(range(12))
    sink.blobs.put(b"a large content")
    assert _look(sink).complete is True
    by_hash = next(each for each in ids if ":sha256:" in each)
    by_number = [each for each in ids if ":gm:" in each]
    sink.sql("UPDATE emails SET sha256 = :sha WHERE email_id = :id", sha=64 * "b", id=by_hash)
    sink.sql("UPDATE emails SET raw_ref = :ref WHERE email_id = :id", ref="sha256:" + 64 * "c", id=by_number[0])
    sink.sql("UPDATE contents SET data = :data WHERE sha256 = :sha", data=b"x", sha=sink.ids[by_number[1]].sha256)
    report = _look(sink)
    assert (set(report.named["missing"]), set(report.named["altered"])) == ({by_number[0]}, {by_hash, by_number[1]})


def _edit_rows(sink: EditedSink, number: int, fresh: int) -> tuple[set[str], set[str]]:
    """Edit rows and contents at random, and insert mail that is whole; return what is missing and altered then."""
    missing: set[str] = set()
    altered: set[str] = set()
    sink.blobs.put(b"a large content")  # a store without any is taken for one that is not mounted
    for email_id in sink.rng.sample(sorted(sink.ids), number):
        fresh += 1
        sha = sink.ids[email_id].sha256
        match sink.rng.randrange(5):
            case 0:  # a reference to nothing
                sink.sql(
                    "UPDATE emails SET raw_ref = :ref WHERE email_id = :id", ref=f"sha256:{fresh:064}", id=email_id
                )
                missing.add(email_id)
            case 1:
                sink.sql("DELETE FROM contents WHERE sha256 = :sha", sha=sha)
                missing.add(email_id)
            case 2:
                sink.sql(
                    "UPDATE contents SET data = :data WHERE sha256 = :sha", data=b"x", sha=sink.ids[email_id].sha256
                )
                altered.add(email_id)
            case 3:  # another identity than the row's name says
                column, value = ("sha256", f"{fresh:064}") if ":sha256:" in email_id else ("gm_msgid", fresh)
                sink.sql(f"UPDATE emails SET {column} = :value WHERE email_id = :id", value=value, id=email_id)
                altered.add(email_id)
            case _:
                sink.deliver(range(fresh, fresh + 1))
    return missing, altered


def test_every_edit_of_the_database_is_found_and_nothing_else(ledger: Ledger, tmp_path: Path) -> None:
    sink = EditedSink(ledger, tmp_path, "files", 11)
    sink.deliver(range(80))
    expected = _edit_rows(sink, 60, fresh=10_000)
    report = _look(sink)
    assert (set(report.named["missing"]), set(report.named["altered"])) == expected


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_edits_of_the_database_are_found_and_nothing_else(sqlite_url: str, tmp_path: Path) -> None:
    with closing(open_ledger(sqlite_url)) as ledger:
        sink = EditedSink(ledger, tmp_path, "files", 10_000)
        sink.deliver(range(12_000))
        missing, altered = _edit_rows(sink, 10_000, fresh=100_000)
        report = _look(sink)
        assert (report.sum("missing"), report.sum("altered")) == (len(missing), len(altered))
        assert set(report.named["missing"]) <= missing
        assert set(report.named["altered"]) <= altered


def _look(sink: EditedSink) -> ConsumerReport:
    comparison = LedgerComparison(sink.ledger, sink.blobs, presence=False)
    for _ in comparison.steps():
        pass
    return comparison.report


def test_runs_on_the_disk_come_out_sorted() -> None:
    with SortedRuns(size=7) as runs:
        for number in range(100):
            runs.add([f"{number * 37 % 100:03}", number])
        assert [each[0] for each in runs.sorted()] == [f"{number:03}" for number in range(100)]
