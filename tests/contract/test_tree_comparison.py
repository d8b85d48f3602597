"""A receiver compared by its digest tree: the example's, with random edits in it and in the ledger."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from email_ingestion.errors import SinkFailed
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.reconcile import tree_comparison
from email_ingestion.reconcile.consumer_report import ConsumerReport
from email_ingestion.reconcile.digest_tree import NodeDigest, digest_of, path_of
from email_ingestion.reconcile.tree_comparison import TreeComparison
from tests.contract.edited_sinks import EditedSink
from tests.servers.webhook import SECRET

EXAMPLE = Path(__file__).parents[2] / "examples" / "webhook-receiver" / "receiver.py"
MESSAGES = 400
EDITS = 150


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, with a database of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    spec = importlib.util.spec_from_file_location("receiver", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    module.KEPT.close()


class Given:
    """A ledger whose mail the receiver got an hour ago."""

    def __init__(self, ledger: Ledger, folder: Path, receiver: ModuleType) -> None:
        self.sink = EditedSink(ledger, folder, "files", 3)
        self.sink.name = "webhook"
        self.sink.raw_of = lambda number: b"Subject: letter %d\r\n\r\nhello" % number
        self.receiver = receiver

    def deliver(self, numbers: range, *, to_ledger: bool = True, to_sink: bool = True) -> list[str]:
        ids = self.sink.deliver(numbers, to_ledger=to_ledger, to_sink=False)
        for email_id in ids if to_sink else ():
            self.keep(email_id)
        return ids

    def keep(self, email_id: str, **changes: str) -> None:
        envelope = self.sink.ids[email_id]
        facts = {"email_id": email_id, "account": envelope.account, "sha256": envelope.sha256}
        self.receiver.keep({**facts, "internaldate": envelope.internaldate.isoformat()} | changes)

    def drop(self, email_id: str) -> None:
        self.receiver.KEPT.execute("DELETE FROM mail WHERE email_id = ?", (email_id,))

    def compare(
        self, resend: Callable[[list[str]], int] | None = None, answer: Callable[[str], Any] | None = None
    ) -> ConsumerReport:
        def ask(node: str) -> tuple[Any, int]:
            said = json.dumps((answer or self.receiver.digest)(node))
            return json.loads(said), len(said)

        comparison = TreeComparison(self.sink.ledger, "webhook", ask, resend)
        for _ in comparison.steps():
            pass
        return comparison.report


@pytest.fixture
def given(sqlite_url: str, tmp_path: Path, receiver: ModuleType) -> Iterator[Given]:
    with closing(open_ledger(sqlite_url)) as ledger:
        yield Given(ledger, tmp_path, receiver)


def test_every_edit_is_found_and_nothing_else(ledger: Ledger, tmp_path: Path, receiver: ModuleType) -> None:
    given = Given(ledger, tmp_path, receiver)
    ids = given.deliver(range(MESSAGES))
    whole = given.compare()
    assert (whole.complete, whole.sum("owed"), whole.exchanged_bytes < 500) == (True, MESSAGES, True)
    rng = random.Random(5)
    missing, altered, not_ours = set(), set(), set()
    for number, email_id in enumerate(rng.sample(ids, EDITS), MESSAGES):
        match rng.randrange(5):
            case 0:
                given.drop(email_id)
                missing.add(email_id)
            case 1:
                given.keep(email_id, sha256=64 * "0")
                altered.add(email_id)
            case 2:
                for table in ("deliveries", "attachments", "emails"):
                    given.sink.sql(f"DELETE FROM {table} WHERE email_id = :id", id=email_id)
                not_ours.add(email_id)
            case 3:
                missing |= set(given.deliver(range(number, number + 1), to_sink=False))
            case 4:
                not_ours |= set(given.deliver(range(number, number + 1), to_ledger=False))
    report = given.compare()
    named = {what: sorted(ids) for what, ids in report.named.items()}
    assert named == {"missing": sorted(missing), "altered": sorted(altered), "not_ours": sorted(not_ours)}
    assert report.complete is False


def test_what_is_on_its_way_is_not_missing_and_what_is_missing_is_sent_again(given: Given) -> None:
    ids = given.deliver(range(80))
    waiting, known_there, lost = ids[0], ids[1], ids[2:7]
    given.sink.sql("UPDATE deliveries SET state = 'waiting' WHERE email_id = :id", id=waiting)
    given.sink.sql("UPDATE deliveries SET state = 'waiting' WHERE email_id = :id", id=known_there)
    for email_id in (waiting, *lost):
        given.drop(email_id)
    resent: list[str] = []
    report = given.compare(lambda found: resent.extend(found) or len(found))
    assert (sorted(resent), report.resent, report.sum("in_flight"), report.sum("not_ours")) == (sorted(lost), 5, 2, 0)


def test_a_receiver_that_lost_everything_lacks_everything(given: Given) -> None:
    given.deliver(range(100))
    given.receiver.KEPT.execute("DELETE FROM mail")
    report = given.compare()
    assert (report.sum("missing"), report.exchanged_bytes < 500) == (100, True)


def test_a_day_with_a_thousand_messages_is_divided_further(given: Given) -> None:
    given.sink.mail = lambda numbers: ((each, raw) for each, raw in _same_day(EditedSink.mail(given.sink, numbers)))  # type: ignore[method-assign]
    ids = given.deliver(range(1000))
    given.drop(ids[77])
    report = given.compare()
    assert (report.named["missing"], report.exchanged_bytes < 12_000) == ([ids[77]], True)


def _same_day(mail: Any) -> Any:
    for email, raw in mail:
        envelope = replace(
            email.envelope, account="default", internaldate=datetime.fromisoformat("2026-01-31T23:59:59Z")
        )
        yield replace(email, envelope=envelope), raw


def answer_of(children: dict[str, Any] | None = None, entries: dict[str, str] | None = None) -> dict[str, Any]:
    """An answer that is sound in itself."""
    if entries is not None:
        found = digest_of(entries.items())
        return {"count": found.count, "digest": found.hexadecimal, "entries": entries}
    found = NodeDigest()
    for each in (children or {}).values():
        found.add(NodeDigest(each["count"], int(each["digest"], 16)))
    return {"count": found.count, "digest": found.hexadecimal, "children": children}


def endless(node: str, name: str = "0") -> Any:
    """A receiver that has something more below whatever it is asked for."""
    more = {str(number): {"count": 9, "digest": 64 * "5"} for number in range(10)} if name == "0" else {}
    name = name if node.count("/") >= 2 else f"2026-{len(node):02}" if node else "default"
    return answer_of({name: {"count": 500, "digest": 64 * "3"}, **more})


def in_capitals(given: Given, node: str, *, identities: bool) -> Any:
    """A receiver that keeps SHA-256 or identities as its database spells them."""
    kept = given.receiver.digest(node)
    while "children" in kept:
        (node, *_) = [f"{node}/{name}".lstrip("/") for name in kept["children"]]
        kept = given.receiver.digest(node)
    some = kept["entries"].items()
    return {key.upper() if identities else key: value if identities else value.upper() for key, value in some}


@pytest.mark.parametrize("name", ["0", "", "00", "0/1", "x", "A" * 300])
def test_with_a_receiver_that_has_always_more_there_is_an_end(
    given: Given, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_comparison, "MAX_ASKED", 300)
    given.deliver(range(20))
    with pytest.raises(SinkFailed, match="is wrong"):
        given.compare(answer=lambda node: endless(node, name))


@pytest.mark.parametrize("identities", [True, False])
def test_what_is_spelt_in_capitals_is_not_sent_again(given: Given, *, identities: bool) -> None:
    given.deliver(range(3))
    resent: list[str] = []

    def answer(node: str) -> Any:
        if node.count("/") < 2:
            path = path_of("default", next(iter(given.sink.ids.values())).internaldate)
            name = path[node.count("/") + 1 if node else 0]
            below = answer(f"{node}/{name}".lstrip("/"))
            return answer_of({name: {"count": below["count"], "digest": below["digest"]}})
        return answer_of(entries=in_capitals(given, "", identities=identities))

    with pytest.raises(SinkFailed, match="in capitals"):
        given.compare(lambda found: resent.extend(found) or len(found), answer)
    assert resent == []


def test_a_day_without_entries_is_one_that_is_not_there(given: Given) -> None:
    given.deliver(range(5))
    lost = given.compare(answer=lambda _: answer_of({"default": {"count": 0, "digest": 64 * "0"}}))
    assert (lost.complete, lost.sum("missing")) == (False, lost.sum("owed"))


@pytest.mark.parametrize("fault", ["timezone", "sum", "form", "digits"])
def test_a_digest_that_is_wrong_makes_no_gap(given: Given, fault: str) -> None:
    ids = given.deliver(range(600))
    resent: list[str] = []
    answers: dict[str, Callable[[str], Any]] = {
        "timezone": given.receiver.digest,
        "sum": lambda node: given.receiver.digest(node) | {"count": 7},
        "form": lambda _node: ["no", "tree"],
        "digits": lambda node: given.receiver.digest(node) | {"digest": "xyz"},
    }
    if fault == "timezone":
        for email_id in ids:
            arrived = given.sink.ids[email_id].internaldate + timedelta(hours=9)
            given.keep(email_id, internaldate=arrived.isoformat())
    given.drop(ids[5])
    with pytest.raises(SinkFailed, match="is wrong"):
        given.compare(lambda found: resent.extend(found) or len(found), answers[fault])
    assert resent == []


def test_the_digest_of_the_page_is_the_one_of_the_code() -> None:
    page = (EXAMPLE.parents[2] / "docs" / "completeness.md").read_text()
    assert digest_of([("work:gm:1", 64 * "a")]).hexadecimal in page
