"""A sink that is told of changes: each at least once and in order, whatever the sink, the process and the mail do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.doctor.checks import check_stores
from email_ingestion.errors import PermanentError, SinkFailed, SinkThrottled, SinkUnavailable
from email_ingestion.events import ChangeBacklog, ChangeRefused, ChangesMissed
from email_ingestion.ledger.erasure import MailChoice
from email_ingestion.ledger.model import Marks, StoredEmail
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.records import ChangeEvent, ChangeKind, SinkMessage
from email_ingestion.settings import load_settings
from email_ingestion.sinks.ndjson import FileSink
from email_ingestion.worker import change_dispatcher
from email_ingestion.worker.change_dispatcher import ChangeDispatcher
from tests.contract.ledgers import mail, stored
from tests.servers.links import Heard
from tests.servers.processes import until

KINDS = tuple(each.value for each in ChangeKind if each is not ChangeKind.BORN)


class Listener:
    """A sink that says what it is told to and remembers the changes it took, in their order."""

    name = "box"

    def __init__(self, parallel: int = 0) -> None:
        self.parallel = parallel
        self.taken: list[ChangeEvent] = []
        self.missed: list[int] = []
        self.calls: list[int] = []  # how many changes each had
        self.trouble: Callable[[ChangeEvent], Exception | None] = lambda _: None

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        raise AssertionError

    def ping(self) -> None:
        pass

    def tell_changes(self, events: Sequence[ChangeEvent]) -> None:
        self.calls.append(len(events))
        for event in events:
            if error := self.trouble(event):
                raise error
        self.taken += events

    def tell_missed(self, start_from: int) -> None:
        self.missed.append(start_from)

    def labels(self, number: int) -> list[str]:
        """The label that each change of a message brought, in the order told."""
        email_id = mail(number).email_id
        mine = [each.details or {} for each in self.taken if each.email_id == email_id]
        return [each["labels"][0] for each in mine if "labels" in each]


class Telling:
    """A ledger, and dispatchers to whatever sinks a test has."""

    def __init__(self, ledger: Ledger, cleanup: ExitStack) -> None:
        self.ledger = ledger
        self.heard = Heard()
        self._cleanup = cleanup
        self.running: list[ChangeDispatcher] = []

    def deliver(self, *numbers: int, sink: str = "box", state: str = "delivered") -> None:
        batch = [stored(mail(number)) for number in numbers]
        self.ledger.record([StoredEmail(each.email, each.raw_ref, each.contents, (sink,)) for each in batch])
        claim = self.ledger.outbox.claim(sink, "there", 1000, 60.0)
        ids = [each.envelope.email_id for each in claim.deliveries]
        if state == "delivered":
            self.ledger.outbox.mark_delivered(claim, ids)
        elif state == "waiting":
            self.ledger.outbox.release(claim, ids, 3600)

    def relabel(self, label: str, *numbers: int) -> None:
        self.ledger.server_state.update_marks("INBOX", {mail(number).email_id: Marks((label,)) for number in numbers})

    def begin(self, name: str = "box") -> None:
        """Have the sink's position made, as the first worker's start does."""
        claim = self.ledger.told_changes.claim(name, "first", 60.0)
        assert claim
        self.ledger.told_changes.release(claim)

    def start(self, sink: Any, name: str = "box", *, max_retries: int = 3, instance: str = "here", lease: float = 30.0,
              ledger: Ledger | None = None, **policy: Any) -> ChangeDispatcher:  # fmt: skip
        chosen = BreakerPolicy(**{"fail_max": 3, "recovery_timeout": 0.1, "success_threshold": 1} | policy)
        made = ChangeDispatcher(
            name,
            sink,
            Breaker(f"{name}:changes", chosen, (SinkUnavailable, SinkFailed), self.heard),
            kinds=KINDS,
            ledger=ledger or self.ledger,
            paused=lambda: False,
            lease=lease,
            max_retries=max_retries,
            instance=instance,
            observe=self.heard,
        )
        made.start()
        self.running.append(made)
        self._cleanup.callback(made.join)
        self._cleanup.callback(made.stop)
        return made


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_dispatcher, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(change_dispatcher, "STANDBY_SECONDS", 0.05)
    monkeypatch.setattr(change_dispatcher, "MAIL_SECONDS", 0.05)
    monkeypatch.setattr(change_dispatcher, "BACKLOG_SECONDS", 0.05)
    monkeypatch.setattr(change_dispatcher, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(change_dispatcher, "backoff", lambda attempt, cap=0.02: min(0.02 * attempt, cap))


@pytest.fixture
def telling(tmp_path: Path) -> Iterator[Telling]:
    with ExitStack() as cleanup:
        ledger = cleanup.enter_context(closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")))
        yield Telling(ledger, cleanup)


@pytest.mark.parametrize("parallel", [0, 3])
def test_a_sink_is_told_what_happens_to_the_mail_it_got_from_then_on_and_in_order(telling: Telling, parallel: int):
    telling.deliver(1, 2, 3)
    telling.deliver(4, sink="other")
    telling.relabel("before", 1)
    telling.begin()
    for label in ("a", "b", "c"):
        telling.relabel(label, 1, 2, 3, 4)
    telling.ledger.server_state.note_deleted("INBOX", [mail(2).email_id])
    sink = Listener(parallel)
    made = telling.start(sink)
    until(made.done, "all is told")
    assert [sink.labels(number) for number in (1, 2, 3, 4)] == [["a", "b", "c"]] * 3 + [[]]
    assert Counter(each.kind.value for each in sink.taken) == {"relabelled": 9, "deleted": 1}
    assert [each.kind for each in sink.taken if each.email_id == mail(2).email_id][-1] is ChangeKind.DELETED
    assert len({each.event_id for each in sink.taken}) == 10
    assert parallel or sink.calls == [10]


@pytest.mark.parametrize("parallel", [0, 3])
def test_what_a_sink_refuses_blocks_nothing_is_seen_and_comes_again_by_order(telling: Telling, parallel: int):
    telling.deliver(1, 2)
    telling.begin()
    for label in ("a", "bad", "c"):
        telling.relabel(label, 1, 2)
    sink = Listener(parallel)
    sink.trouble = lambda event: PermanentError("400") if _says(event, "bad") and _is(event, 1) else None
    made = telling.start(sink)
    until(made.done, "all is decided on")
    assert [sink.labels(number) for number in (1, 2)] == [["a", "c"], ["a", "bad", "c"]]
    (refused,) = telling.ledger.told_changes.refused("box")
    assert (refused[0].email_id, refused[1]) == (mail(1).email_id, "400")
    (told,) = telling.heard.of(ChangeRefused)
    assert (told.sink, told.kind, told.email_id) == ("box", "relabelled", mail(1).email_id)
    until(lambda: telling.heard.of(ChangeBacklog)[-1].refused == 1, "it is shown")
    sink.trouble = lambda _: None
    assert telling.ledger.told_changes.try_again("box") == 1
    until(lambda: sink.labels(1) == ["a", "c", "bad"], "it is told after all")
    until(lambda: telling.heard.of(ChangeBacklog)[-1].refused == 0, "nothing is refused any more")


@pytest.mark.parametrize("parallel", [0, 3])
def test_what_follows_a_failing_change_waits_behind_it_and_other_mail_goes_on(telling: Telling, parallel: int):
    telling.deliver(1, 2)
    telling.begin()
    failures = iter([SinkFailed("500")] * 2)
    sink = Listener(parallel)
    sink.trouble = lambda event: next(failures, None) if _says(event, "slow") and _is(event, 1) else None
    for label in ("slow", "b", "c"):
        telling.relabel(label, 1, 2)
    made = telling.start(sink, fail_max=50)
    until(made.done, "all is told")
    assert [sink.labels(number) for number in (1, 2)] == [["slow", "b", "c"]] * 2
    assert telling.ledger.told_changes.refused("box") == []


def test_a_change_that_fails_while_others_get_through_is_refused_in_the_end(telling: Telling):
    telling.deliver(1, 2)
    telling.begin()
    telling.relabel("bad", 1)
    sink = Listener(2)
    sink.trouble = lambda event: SinkFailed("500") if _says(event, "bad") else None
    telling.start(sink, max_retries=2)

    def refused() -> bool:
        telling.relabel(f"label {len(sink.taken)}", 2)
        return bool(telling.ledger.told_changes.refused("box"))

    until(refused, "it is given up")
    assert telling.heard.of(ChangeRefused)[0].attempts == 3


@pytest.mark.parametrize("error", [SinkUnavailable("away"), SinkFailed("500"), SinkThrottled("later", 0.05)])
@pytest.mark.parametrize("parallel", [0, 3])
def test_an_outage_spends_nothing_however_long_it_is(telling: Telling, parallel: int, error: Exception):
    telling.deliver(1, 2)
    telling.begin()
    away = True
    sink = Listener(parallel)
    sink.trouble = lambda _: error if away else None
    made = telling.start(sink, max_retries=5)
    for label in ("a", "b", "c"):
        telling.relabel(label, 1, 2)
    until(lambda: len(sink.calls) > 12, "it was tried often")
    until(lambda: telling.heard.of(ChangeBacklog)[-1].problem == str(error), "it is said why")
    away = False
    until(made.done, "all is told")
    assert [sink.labels(number) for number in (1, 2)] == [["a", "b", "c"]] * 2
    assert telling.ledger.told_changes.refused("box") == []
    until(lambda: telling.heard.of(ChangeBacklog)[-1].problem is None, "it is over")


def test_a_change_waits_for_its_message(telling: Telling):
    telling.deliver(1, state="waiting")
    telling.deliver(2)
    telling.begin()
    telling.relabel("a", 1, 2)
    telling.relabel("b", 1, 2)
    sink = Listener()
    telling.start(sink)
    until(lambda: sink.labels(2) == ["a", "b"], "others are told")
    assert sink.labels(1) == []
    with telling.ledger._database.begin() as connection:
        connection.exec_driver_sql("UPDATE deliveries SET state = 'delivered'")
    telling.relabel("c", 1)
    until(lambda: sink.labels(1) == ["a", "b", "c"], "the message is there")


def test_one_process_tells_a_sink_and_another_goes_on_where_it_ended(telling: Telling):
    telling.deliver(1)
    telling.begin()
    first, second = Listener(), Listener()
    one = telling.start(first, instance="one")
    telling.relabel("a", 1)
    until(lambda: first.labels(1) == ["a"], "the first tells")
    telling.start(second, instance="two")
    telling.relabel("b", 1)
    until(lambda: first.labels(1) == ["a", "b"], "the first goes on")
    assert second.taken == []
    one.stop()
    one.join()
    telling.relabel("c", 1)
    until(lambda: second.labels(1) == ["c"], "the second goes on")
    assert first.labels(1) == ["a", "b"]


def test_a_process_that_lost_its_lease_tells_nothing_more(telling: Telling):
    telling.deliver(1)
    telling.begin()
    sink = Listener()
    telling.start(sink, instance="frozen", lease=30.0)
    telling.relabel("a", 1)
    until(lambda: sink.labels(1) == ["a"], "it tells")
    with telling.ledger._database.begin() as connection:  # as if it had stood still for longer than its lease
        connection.exec_driver_sql("UPDATE change_readers SET holder = 'other', until = '2099-01-01T00:00:00+00:00'")
    heard = len(telling.heard.of(ChangeBacklog))
    telling.relabel("b", 1)
    until(lambda: len(telling.heard.of(ChangeBacklog)) > heard + 20, "it has looked again")
    assert sink.labels(1) in (["a"], ["a", "b"])  # at most what it had in its hands
    told = len(sink.taken)
    telling.relabel("c", 1)
    heard = len(telling.heard.of(ChangeBacklog))
    until(lambda: len(telling.heard.of(ChangeBacklog)) > heard + 5, "and again")
    assert len(sink.taken) == told


def test_a_killed_process_tells_its_last_part_again_and_skips_nothing(telling: Telling):
    """The kill: what was told is not written down."""
    telling.deliver(1, 2)
    telling.begin()
    for label in ("a", "b"):
        telling.relabel(label, 1, 2)
    claim = telling.ledger.told_changes.claim("box", "here", 30.0)  # by a life that told them, and ended
    assert claim
    sink = Listener()
    made = telling.start(sink)
    until(made.done, "all is told")
    assert [sink.labels(number) for number in (1, 2)] == [["a", "b"]] * 2
    assert telling.ledger.told_changes.settle(claim, 99, [], []) is None  # it is nobody's any more


def test_who_missed_changes_is_told_that(telling: Telling):
    telling.deliver(1)
    telling.begin()
    telling.relabel("lost", 1)
    telling.ledger.changes.remove_before(datetime.now(UTC) + timedelta(minutes=1))
    sink = Listener()
    made = telling.start(sink)
    until(lambda: sink.missed, "it is told")
    telling.relabel("next", 1)
    until(made.done, "it goes on")
    assert sink.labels(1) == ["next"]
    (missed,) = telling.heard.of(ChangesMissed)
    assert sink.missed == [missed.start_from]


def test_an_erasure_is_told_behind_what_happened_before_and_only_to_whom_had_the_mail(telling: Telling):
    telling.deliver(1)
    telling.deliver(2, sink="other")
    telling.begin()
    telling.relabel("a", 1, 2)
    ledger = telling.ledger
    erased = list(ledger.erasure.find(MailChoice(email_ids=(mail(1).email_id, mail(2).email_id))))
    ledger.erasure.erase(erased, ["a hash"], ["box"])
    sink = Listener(2)
    made = telling.start(sink)
    until(made.done, "all is told")
    assert [(each.kind.value, each.email_id, each.details) for each in sink.taken] == [
        ("relabelled", mail(1).email_id, None),
        ("erased", mail(1).email_id, None),
    ]
    assert sink.taken[1].erased_at
    assert sink.taken[1].event_id == f"erased:{mail(1).email_id}"
    assert ledger.erasure.pending_notices("box") == []


def test_changes_stand_among_the_lines_of_mail(telling: Telling, tmp_path: Path):
    telling.deliver(1, sink="ndjson")
    telling.begin("ndjson")
    telling.relabel("a", 1)
    made = telling.start(FileSink(tmp_path / "mail.ndjson", 1000), "ndjson")
    until(made.done, "all is told")
    (line,) = [json.loads(each) for each in (tmp_path / "mail.ndjson").read_text().splitlines()]
    assert (line["schema"], line["kind"], line["email_id"]) == ("change.v1", "relabelled", mail(1).email_id)


def test_the_doctor_says_that_nobody_follows_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(sinks="ndjson:out.ndjson", ndjson_events="all", database_url=f"sqlite:///{tmp_path}/l.db")
    found = {each.check: each.verdict for each in check_stores(settings)}
    assert found["changes ndjson:out.ndjson"] == "degraded"
    followed = settings.model_copy(update={"imap_track_labels": True})
    assert "changes ndjson:out.ndjson" not in {each.check for each in check_stores(followed)}


def _is(event: ChangeEvent, number: int) -> bool:
    return event.email_id == mail(number).email_id


def _says(event: ChangeEvent, label: str) -> bool:
    return bool(event.details and event.details["labels"] == [label])
