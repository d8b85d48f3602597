"""Several sinks at once: one that is broken delays no other, and gets everything once when it works again."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from email_ingestion.blobs import BlobStore, open_blobs
from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import Reject, Retry, SinkFailed, SinkThrottled, SinkTimedOut, SinkUnavailable
from email_ingestion.events import (
    BreakerChanged,
    DeadLettered,
    Deferred,
    LoopTick,
    SinkBacklog,
    SinkCalls,
    SinkDelivered,
    SinkHung,
)
from email_ingestion.ledger.model import LedgerWrite
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.parsing import parse
from email_ingestion.records import RawMessage, SinkMessage
from email_ingestion.sinks import Sink
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.sinks.python import PythonSink
from email_ingestion.sinks.webhook import WebhookSink
from email_ingestion.stream import DeadLetterQueue, Keys
from email_ingestion.stream.codec import decode
from email_ingestion.worker import SinkDispatcher, sink_dispatcher
from tests.servers.links import Heard, link, message
from tests.servers.processes import until
from tests.servers.redis import RedisServer
from tests.servers.webhook import SECRET, Receiver, receiving


class Box:
    """A sink that says what it is told to and remembers what it took."""

    name = "box"

    def __init__(self, parallel: int = 0) -> None:
        self.parallel = parallel
        self.taken: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.trouble: Callable[[str], Exception | None] = lambda _: None
        self.away = False
        self.at: dict[str, float] = {}

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        ids = [message.email.email_id for message in batch]
        self.asked.update(ids)
        for email_id in ids:
            if error := self.trouble(email_id):
                raise error
        self.taken.update(ids)

    def ping(self) -> None:
        if self.away:
            raise SinkUnavailable("away")


class Sinks:
    """A ledger, and couriers to whatever sinks a test has; what they announce is in `heard`."""

    def __init__(self, folder: Path, server: RedisServer, cleanup: ExitStack) -> None:
        self.heard = Heard()
        self.paused = False
        self.link = link(server.url)
        self.ledger: Ledger = cleanup.enter_context(closing(open_ledger(f"sqlite:///{folder}/ledger.db")))
        self.blobs: BlobStore = open_blobs(f"file:{folder}/blobs")
        self._database = DatabaseSink(self.ledger, self.blobs, 1000)
        self._cleanup = cleanup
        self.dispatchers: list[SinkDispatcher] = []
        self.made: list[SinkDispatcher] = []
        self.names: tuple[str, ...] = ()
        self.breakers: dict[str, Breaker] = {}
        self.suspects = threading.Lock()

    def dispatcher(
        self, name: str, sink: Sink, *, max_retries: int = 3, start: bool = True, timeout: float = 15.0, **policy: Any
    ) -> SinkDispatcher:
        chosen = BreakerPolicy(**{"fail_max": 3, "recovery_timeout": 0.2, "success_threshold": 1} | policy)
        self.breakers[name] = Breaker(name, chosen, (SinkUnavailable, SinkFailed), self.heard)
        made = SinkDispatcher(
            name,
            sink,
            self.breakers[name],
            ledger=self.ledger,
            blobs=self.blobs,
            dead_letters=DeadLetterQueue(self.link),
            paused=lambda: self.paused,
            batch=10,
            lease=30.0,
            timeout=timeout,
            max_retries=max_retries,
            instance="here",
            suspects=self.suspects,
            observe=self.heard,
        )
        self.made.append(made)
        self.names += (name,)
        if start:
            self.run(made)
        return made

    def run(self, dispatcher: SinkDispatcher) -> None:
        self.dispatchers.append(dispatcher)
        dispatcher.start()
        self._cleanup.callback(dispatcher.join)
        self._cleanup.callback(dispatcher.stop)

    def record(self, *uids: int, raw: bytes | None = None, again: str | None = None) -> list[str]:
        """What the worker does with messages."""
        sent = [message(uid, raw=raw) for uid in uids]
        self._database.deliver(
            [
                LedgerWrite(parse(each.envelope, each.raw), each.raw, owed_to=self.names, only_sink=again)
                for each in sent
            ]
        )
        for dispatcher in self.dispatchers:
            dispatcher.wake()
        return [each.envelope.email_id for each in sent]

    def sink_message(self, uid: int) -> SinkMessage:
        sent = message(uid)
        return SinkMessage(parse(sent.envelope, sent.raw), sent.raw)

    def letters(self) -> list[tuple[str, str, str, str]]:
        found = DeadLetterQueue(self.link).letters()
        return [(letter.email_id, letter.reason, letter.sink, letter.error) for letter in found]

    def hurry(self) -> None:
        """What waits for another attempt is due now."""
        with self.ledger._database.begin() as connection:
            connection.exec_driver_sql("UPDATE deliveries SET due = '2020-01-01T00:00:00+00:00' WHERE holder IS NULL")
        for dispatcher in self.dispatchers:
            dispatcher.wake()


@pytest.fixture
def sinks(tmp_path: Path, redis_server: RedisServer) -> Iterator[Sinks]:
    with ExitStack() as cleanup:
        yield Sinks(tmp_path, redis_server, cleanup)


@pytest.mark.parametrize("parallel", [0, 3])
def test_every_sink_gets_every_message_once(sinks: Sinks, parallel: int):
    boxes = [Box(parallel), Box()]
    for number, box in enumerate(boxes):
        sinks.dispatcher(f"box-{number}", box)
    ids = sinks.record(*range(1, 31))
    until(lambda: all(dispatcher.done() for dispatcher in sinks.dispatchers), "all is delivered")
    assert [box.taken for box in boxes] == [Counter(ids)] * 2

    def announced() -> int:
        return sum(event.count for event in sinks.heard.of(SinkDelivered) if event.result == "delivered")

    until(lambda: announced() >= 60, "all is announced")
    assert announced() == 60


def test_a_broken_sink_neither_delays_another_nor_spends_attempts(sinks: Sinks):
    with receiving() as receiver, closing(_webhook(receiver)) as webhook:
        receiver.fail(500)
        box = Box()
        broken = sinks.dispatcher("webhook", webhook, max_retries=0, fail_max=3)
        sinks.dispatcher("box", box)
        ids = [email_id for start in range(1, 300, 30) for email_id in sinks.record(*range(start, start + 30))]
        until(lambda: box.taken == Counter(ids), "the other one has everything while the webhook fails")
        until(lambda: not sinks.breakers["webhook"].closed, "the breaker of the webhook is open")
        assert not receiver.taken
        receiver.work()
        until(broken.done, "the webhook has everything")
        assert receiver.taken == Counter(ids)
        assert box.taken == Counter(ids)
        assert sinks.letters() == []
        assert sinks.heard.of(Deferred) == []


def test_a_hanging_sink_delays_no_other(sinks: Sinks):
    free = threading.Event()
    pending_entry, box = Box(), Box()
    pending_entry.trouble = lambda _: free.wait() and None
    sinks.dispatcher("stuck", pending_entry)
    sinks.dispatcher("box", box)
    ids = sinks.record(1, 2, 3)
    until(lambda: box.taken == Counter(ids), "the other one has everything")
    assert not pending_entry.taken
    free.set()


def test_a_call_that_does_not_return_is_shown_and_nothing_is_called_meanwhile(sinks: Sinks):
    """The sink of another package, which runs in a thread: nobody can end that."""
    free = threading.Event()
    box = Box(parallel=2)
    box.trouble = lambda email_id: free.wait() and None if email_id.endswith(":1001") else None
    dispatcher = sinks.dispatcher("box", box, timeout=0.2)
    (stuck,) = sinks.record(1)
    (hung,) = until(lambda: sinks.heard.of(SinkHung), "it is noticed")
    assert (hung.sink, hung.email_id) == ("box", stuck)
    (later,) = sinks.record(2)
    problems = until(lambda: [event for event in sinks.heard.of(SinkCalls) if event.problem], "it is a problem")
    assert problems[0].calls[0][0] == stuck
    assert stuck in problems[0].problem
    backlogs = until(lambda: [event for event in sinks.heard.of(SinkBacklog) if event.waiting == 2], "both are owed")
    assert backlogs[0].oldest
    assert not box.taken
    assert len(sinks.heard.of(SinkHung)) == 1
    free.set()
    until(dispatcher.done, "both are delivered")
    assert box.taken == Counter([stuck, later])
    until(lambda: sinks.heard.of(SinkCalls)[-1] == SinkCalls("box", (), None), "it is over")


def test_what_is_wrong_with_a_sink_is_shown_until_it_takes_a_message_though_its_pings_succeed(sinks: Sinks):
    box = Box()
    box.trouble = lambda _: SinkUnavailable("the webhook answers 301: set WEBHOOK_URL to where it leads")
    dispatcher = sinks.dispatcher("box", box, fail_max=1, recovery_timeout=0.05)
    ids = sinks.record(1, 2)

    def closed_again() -> bool:
        return sum(change.new == "CLOSED" for change in sinks.heard.of(BreakerChanged)) > 2

    until(closed_again, "its pings have closed the breaker more than once")
    shown = [event.problem for event in sinks.heard.of(SinkCalls)]
    assert set(shown) == {"the webhook answers 301: set WEBHOOK_URL to where it leads"}
    box.trouble = lambda _: None
    until(dispatcher.done, "both are delivered")
    assert box.taken == Counter(ids)
    until(lambda: sinks.heard.of(SinkCalls)[-1].problem is None, "it is over")


def test_what_a_hanging_sink_has_not_got_is_left_to_other_workers(sinks: Sinks):
    free = threading.Event()
    box = Box(parallel=1)
    box.trouble = lambda email_id: free.wait() and None if email_id.endswith(":1001") else None
    sinks.dispatcher("box", box, timeout=0.2, start=False)
    ids = sinks.record(1, 2, 3)
    sinks.run(sinks.made[0])
    until(lambda: sinks.heard.of(SinkHung), "it is noticed")
    claim = until(
        lambda: len((claim := sinks.ledger.outbox.claim("box", "other", 10, 30.0)).deliveries) == 2 and claim,
        "another worker gets them",
    )
    assert {delivery.envelope.email_id for delivery in claim.deliveries} == set(ids[1:])
    assert [delivery.attempt for delivery in claim.deliveries] == [1, 1]
    free.set()
    until(lambda: box.taken, "the first one is delivered")
    sinks.ledger.outbox.mark_delivered(claim, ids[1:])
    until(sinks.dispatchers[0].done, "all is settled")
    assert box.taken == Counter(ids[:1])


class Leaver(Box):
    """Calls `sys.exit` for some messages, and in its ping when it is away."""

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        if any(self.trouble(parcel.email.email_id) for parcel in batch):
            sys.exit("what a script says at its end")
        super().deliver(batch)

    def ping(self) -> None:
        if self.away:
            sys.exit(1)


@pytest.mark.parametrize("parallel", [0, 1, 3])
def test_a_sink_that_calls_sys_exit_ends_no_thread(sinks: Sinks, parallel: int):
    box = Leaver(parallel)
    box.trouble = lambda email_id: SystemExit() if email_id.endswith(":1002") else None
    dispatcher = sinks.dispatcher("box", box, max_retries=0)
    (first, bad, last) = sinks.record(1, 2, 3)
    until(dispatcher.done, "all is settled")
    assert box.taken == Counter([first, last])
    assert [letter[:3] for letter in sinks.letters()] == [(bad, "max_retries", "box")]
    assert ("box", "failed") in {(event.sink, event.result) for event in sinks.heard.of(SinkDelivered)}


def test_a_ping_that_calls_sys_exit_ends_no_thread(sinks: Sinks):
    box = Leaver()
    box.away = True
    box.trouble = lambda _: SystemExit() if box.away else None
    dispatcher = sinks.dispatcher("box", box, fail_max=1, recovery_timeout=0.05)
    ids = sinks.record(1)
    until(lambda: not sinks.breakers["box"].closed, "the breaker is open")
    turns = len(sinks.heard.of(LoopTick))
    until(lambda: len(sinks.heard.of(LoopTick)) > turns + 2, "it has looked again")
    box.away = False
    until(dispatcher.done, "it is delivered")
    assert box.taken == Counter(ids)


@pytest.fixture
def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with a function that hangs the first time it gets a message whose number is below three."""
    name = f"hanging_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def handle(email):\n"
        "    with Path('calls').open('a') as calls: calls.write(email.email_id + '\\n')\n"
        "    known = Path('calls').read_text().split().count(email.email_id) > 1\n"
        "    if email.envelope.uid < 3 and not known: time.sleep(700)\n"
        "    if email.envelope.uid == 9: time.sleep(700)\n"
        "    with Path('taken').open('a') as taken: taken.write(email.email_id + '\\n')\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_a_function_that_hangs_is_ended_and_called_again_with_the_same_identity(
    sinks: Sinks, function: str, tmp_path: Path
):
    with closing(PythonSink(function, "handle", 1.0)) as sink:
        dispatcher = sinks.dispatcher("python", sink, timeout=1.0)
        ids = sinks.record(1, 2, 3)
        until(lambda: len(sinks.heard.of(Deferred)) == 2, "two have failed")
        assert {type(event.error) for event in sinks.heard.of(Deferred)} == {SinkTimedOut}
        sinks.hurry()
        until(dispatcher.done, "all is delivered")
        assert sorted((tmp_path / "taken").read_text().split()) == ids
        assert Counter((tmp_path / "calls").read_text().split()) == Counter(ids + ids[:2])
        assert sinks.letters() == []
        assert [event.problem for event in sinks.heard.of(SinkCalls)][-1] is None


@pytest.mark.parametrize("which", ["running", "behind"])
def test_a_revoked_delivery_is_a_dead_letter_of_its_sink(sinks: Sinks, function: str, tmp_path: Path, which: str):
    """The one that a function hangs over, and one behind it, which has not begun."""
    with closing(PythonSink(function, "handle", 60.0)) as sink:
        dispatcher = sinks.dispatcher("python", sink, timeout=60.0, start=False)
        running, behind = sinks.record(9, 10)
        sinks.run(dispatcher)
        until((tmp_path / "calls").exists, "it hangs")
        assert not dispatcher.revoke("default:gm:1")
        assert dispatcher.revoke(running if which == "running" else behind)
        if which == "behind":
            assert dispatcher.revoke(running)
        until(dispatcher.done, "all is settled")
        letters = {letter[:3] for letter in sinks.letters()}
        assert letters == {
            (each, "operator", "python") for each in ([running] if which == "running" else [running, behind])
        }
        taken = (tmp_path / "taken").read_text().split() if (tmp_path / "taken").exists() else []
        assert taken == ([behind] if which == "running" else [])


def test_a_webhook_that_trickles_its_answer_has_a_deadline(sinks: Sinks):
    with trickling() as url:
        webhook = WebhookSink(httpx.URL(url), [Webhook(SECRET)], timeout=0.6, parallel=2, max_attachment_bytes=10**6)
        with closing(webhook):
            began = time.monotonic()
            with pytest.raises(SinkTimedOut, match=r"within 0\.6 s"):
                webhook.deliver([sinks.sink_message(1)])
            assert time.monotonic() - began < 5
            with pytest.raises(SinkUnavailable, match=r"within 0\.6 s"):
                webhook.ping()


@contextmanager
def trickling() -> Iterator[str]:
    """A server that sends a header line now and then, for ever."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not over.wait(0.05):
                    self.wfile.write(b"X-More: to come\r\n")

        do_OPTIONS = do_POST  # noqa: N815 - the name that the server looks for

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def test_one_bad_message_of_a_batch_takes_no_other_along(sinks: Sinks):
    box = Box()
    box.trouble = lambda email_id: Reject("not this one") if email_id.endswith(":1003") else None
    dispatcher = sinks.dispatcher("box", box)
    ids = sinks.record(*range(1, 6))
    until(dispatcher.done, "all is settled")
    assert box.taken == Counter(set(ids) - {"default:gm:1003"})
    assert sinks.letters() == [("default:gm:1003", "permanent", "box", "not this one")]


def test_used_up_attempts_end_as_a_dead_letter_that_names_the_sink(sinks: Sinks):
    box, other = Box(parallel=2), Box()
    box.trouble = lambda email_id: Retry("busy", after=0) if email_id.endswith(":1001") else None
    dispatcher = sinks.dispatcher("box", box, max_retries=2)
    sinks.dispatcher("other", other)
    (bad, *good) = sinks.record(1, 2)
    until(dispatcher.done, "all is settled")
    assert (box.asked[bad], box.taken) == (3, Counter(good))
    assert sinks.letters() == [(bad, "max_retries", "box", "busy")]
    assert [(event.sink, event.attempt) for event in sinks.heard.of(Deferred)] == [("box", 1), ("box", 2)]
    until(lambda: [event.sink for event in sinks.heard.of(DeadLettered)] == ["box"], "it is announced")
    until(lambda: other.taken == Counter([bad, *good]), "the other sink has both")


def test_a_replayed_letter_goes_to_its_sink_alone(sinks: Sinks):
    box, other = Box(), Box()
    box.trouble = lambda _: Reject("no")
    dispatcher = sinks.dispatcher("box", box)
    sinks.dispatcher("other", other)
    (bad,) = sinks.record(1)
    until(lambda: dispatcher.done() and other.taken, "all is settled")
    box.trouble = lambda _: None
    replayed = _replayed(sinks)
    assert (replayed.only_sink, replayed.envelope.email_id) == ("box", bad)
    sinks.record(1, again=replayed.only_sink)
    until(lambda: box.taken, "it is delivered")
    assert (box.taken, other.taken) == (Counter([bad]), Counter([bad]))


def _replayed(sinks: Sinks) -> RawMessage:
    """The entry of the stream that a replay of all letters makes."""
    dead_letters = DeadLetterQueue(sinks.link)
    assert list(dead_letters.replay([letter.id for letter in dead_letters.letters()])) == [1]
    ((_, fields),) = sinks.link.client.xrange(Keys().stream)
    return decode(fields)


@pytest.mark.parametrize("size", [10, 5000])
def test_a_letter_keeps_the_message_wherever_it_lies(sinks: Sinks, size: int):
    box = Box()
    box.trouble = lambda _: Reject("no")
    dispatcher = sinks.dispatcher("box", box)
    raw = b"Subject: x\r\n\r\n" + b"y" * size
    sinks.record(1, raw=raw)
    until(dispatcher.done, "it is buried")
    buried = _replayed(sinks)
    kept = buried.raw if buried.raw is not None else sinks.blobs.get(buried.raw_ref or "")
    assert kept == raw
    assert (buried.raw is None) == (size == 5000)


def test_a_message_too_many_for_the_sink_waits_without_an_attempt(sinks: Sinks):
    box = Box()
    box.trouble = lambda _: SinkThrottled("slowly", 0.05)
    dispatcher = sinks.dispatcher("box", box, max_retries=0)
    ids = sinks.record(1, 2)
    until(lambda: sum(box.asked.values()) > 10, "it was asked often enough")
    assert sinks.breakers["box"].closed
    box.trouble = lambda _: None
    until(dispatcher.done, "all is delivered")
    assert (box.taken, sinks.letters()) == (Counter(ids), [])


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_pause_holds_for_the_rest_of_a_claim(sinks: Sinks, parallel: int):
    box = Box(parallel)
    box.trouble = lambda _: SinkThrottled("slowly", 600.0)
    dispatcher = sinks.dispatcher("box", box, start=False)
    sinks.record(*range(1, 11))
    sinks.run(dispatcher)
    until(lambda: box.asked, "it was asked")
    until(lambda: not sinks.ledger.outbox.started(), "what it has not got is given back, and no attempt is spent")
    assert sum(box.asked.values()) <= parallel
    assert sinks.ledger.outbox.backlog("box").waiting == 10


def test_a_sink_is_asked_with_a_ping_before_it_gets_mail_again(sinks: Sinks):
    box = Box()
    box.away = True
    box.trouble = lambda _: SinkUnavailable("away") if box.away else None
    dispatcher = sinks.dispatcher("box", box, fail_max=1, recovery_timeout=0.05)
    sinks.record(1)
    until(lambda: sinks.breakers["box"].snapshot().failure_count > 5 or not sinks.breakers["box"].closed, "it is open")
    asked = sum(box.asked.values())
    time.sleep(0.3)  # several recovery time-outs: each is spent on a ping
    assert sum(box.asked.values()) == asked == 1
    box.away = False
    until(dispatcher.done, "it is delivered")


def test_a_message_that_kills_its_worker_again_and_again_is_poison(sinks: Sinks):
    box = Box()
    dispatcher = sinks.dispatcher("box", box, max_retries=1, start=False)
    (bad,) = sinks.record(1)
    for _ in range(2):  # a worker that claims it and dies
        sinks.ledger.outbox.claim("box", "here", 10, 0.0)
    sinks.run(dispatcher)
    until(dispatcher.done, "it is settled")
    assert not box.taken
    assert [letter[:3] for letter in sinks.letters()] == [(bad, "poison", "box")]


def test_what_a_killed_worker_had_in_hand_is_delivered_by_its_next_life(sinks: Sinks):
    box = Box()
    dispatcher = sinks.dispatcher("box", box, start=False)
    ids = sinks.record(1, 2, 3)
    sinks.ledger.outbox.claim("box", "here", 10, 3600.0)
    sinks.run(dispatcher)
    until(dispatcher.done, "all is delivered")
    assert box.taken == Counter(ids)


def test_a_paused_worker_hands_nothing_over(sinks: Sinks):
    box = Box()
    sinks.paused = True
    dispatcher = sinks.dispatcher("box", box)
    ids = sinks.record(1)
    turns = len(sinks.heard.of(LoopTick))
    until(lambda: len(sinks.heard.of(LoopTick)) > turns + 2, "the courier has looked again")
    assert not box.asked
    sinks.paused = False
    until(dispatcher.done, "it is delivered")
    assert box.taken == Counter(ids)


def test_it_tells_what_is_owed_and_since_when(sinks: Sinks):
    box = Box()
    dispatcher = sinks.dispatcher("box", box, start=False)
    before = time.time()
    sinks.record(1, 2)
    sinks.run(dispatcher)
    (first,) = until(lambda: sinks.heard.of(SinkBacklog), "it is told")
    assert (first.sink, first.waiting) == ("box", 2)
    assert before - 1 <= first.oldest <= time.time()


@pytest.mark.soak
def test_while_one_sink_fails_for_a_minute_no_other_waits_for_a_second(sinks: Sinks):
    with receiving() as receiver, closing(_webhook(receiver)) as webhook:
        receiver.fail(500)
        box = Box()
        box.trouble = lambda email_id: box.at.setdefault(email_id, time.monotonic()) and None
        broken = sinks.dispatcher("webhook", webhook, max_retries=0, fail_max=5, recovery_timeout=5.0)
        sinks.dispatcher("box", box)
        recorded: dict[str, float] = {}
        began, slowest = time.monotonic(), 0.0  # the longest that nothing but the disk took for a transaction
        while (now := time.monotonic()) - began < 60:
            start = len(recorded) + 1
            ids = sinks.record(*range(start, start + 20))
            recorded |= dict.fromkeys(ids, time.monotonic())
            slowest = max(slowest, time.monotonic() - now)
            time.sleep(0.1)
        until(lambda: box.taken.copy() == Counter(recorded.keys()), "the other one has everything")
        assert not receiver.taken
        delays = sorted(box.at[email_id] - then for email_id, then in recorded.items())
        states = [change.new for change in sinks.heard.of(BreakerChanged) if change.name == "webhook"]
        posts, pings = sum(receiver.asked.values()), receiver.pinged
        receiver.work()
        until(broken.done, "the webhook has everything", 120)
        print(  # noqa: T201 - what was measured, for whoever runs it with -s
            f"\n{len(recorded)} messages in a minute, at the other sink after {median(delays):.3f} s in the middle and "
            f"{delays[-1]:.3f} s at most; the broken one: {posts} posts, {pings} pings, breaker {' '.join(states)}; "
            f"attempts spent: {len(sinks.heard.of(Deferred))}, dead letters: {len(sinks.letters())}, "
            f"one message taken {max(box.taken.values())} and {max(receiver.taken.values())} times at most"
        )
        assert (box.taken, receiver.taken, sinks.letters()) == (*[Counter(recorded.keys())] * 2, [])
        assert delays[-1] < 1.0 + 2 * slowest  # to claim one and to settle it
        assert sinks.heard.of(Deferred) == []
        assert posts <= 10  # one batch, and no mail until it answers otherwise
        assert (states[0], "CLOSED" in states) == ("OPEN", False)


def test_a_stopped_courier_gives_back_what_it_has_not_begun(sinks: Sinks):
    free, begun = threading.Event(), threading.Event()
    box = Box(parallel=1)

    def wait(_: str) -> None:
        begun.set()
        free.wait()

    box.trouble = wait
    dispatcher = sinks.dispatcher("box", box)
    sinks.record(1, 2, 3)
    begun.wait()
    dispatcher.stop()
    free.set()
    dispatcher.join()
    assert sum(box.taken.values()) == 1
    left = sinks.ledger.outbox.claim("box", "another", 10, 30.0)
    assert [owed.attempt for owed in left.deliveries] == [1, 1]


def test_a_letter_that_redis_does_not_take_is_kept_in_the_database(sinks: Sinks, redis_server: RedisServer):
    box = Box()
    box.trouble = lambda _: Reject("no")
    with redis_server.client() as client:
        client.config_set("maxmemory", "1")
        try:
            dispatcher = sinks.dispatcher("box", box)
            sinks.record(1)
            until(lambda: sinks.heard.of(Deferred), "it waits")
            assert not dispatcher.done()
        finally:
            client.config_set("maxmemory", "0")
    sinks.hurry()
    until(dispatcher.done, "it is buried")
    assert [letter[1] for letter in sinks.letters()] == ["permanent"]


def test_a_message_whose_bytes_are_gone_ends_as_a_dead_letter(sinks: Sinks, tmp_path: Path):
    box = Box()
    dispatcher = sinks.dispatcher("box", box, max_retries=0, start=False)
    raw = b"Subject: x\r\n\r\n" + b"y" * 5000
    (bad,) = sinks.record(1, raw=raw)
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    sinks.run(dispatcher)
    until(dispatcher.done, "it is settled")
    assert [letter[:3] for letter in sinks.letters()] == [(bad, "max_retries", "box")]


def _webhook(receiver: Receiver) -> WebhookSink:
    return WebhookSink(httpx.URL(receiver.url), [Webhook(SECRET)], timeout=5, parallel=4, max_attachment_bytes=1000)


def test_while_another_suspect_is_in_hand_none_is_claimed_and_all_other_mail_goes_on(sinks: Sinks):
    box = Box()
    dispatcher = sinks.dispatcher("box", box, start=False)
    (suspect,) = sinks.record(1)
    sinks.ledger.outbox.claim("box", "here", 1, 30.0)  # and that life was killed
    (other,) = sinks.record(2)
    with sinks.suspects:
        sinks.run(dispatcher)
        until(lambda: box.taken[other], "other mail is delivered")
        assert not box.asked[suspect]
    until(lambda: box.taken[suspect], "then it is tried")
    until(lambda: not sinks.suspects.locked(), "it is settled")
    assert sinks.heard.of(DeadLettered) == []


def _fail_at_first(monkeypatch: pytest.MonkeyPatch, sinks: Sinks, method: str, times: int, error: Exception) -> None:
    """Have the first calls of a method of the outbox raise an error."""
    outbox, failures = sinks.ledger.outbox, iter(range(times))
    call = getattr(outbox, method)

    def fail_at_first(*arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise error
        return call(*arguments)

    monkeypatch.setattr(outbox, method, fail_at_first)


def test_a_failure_of_ours_before_a_call_ends_no_thread_and_is_told(sinks: Sinks, monkeypatch: pytest.MonkeyPatch):
    """Whoever asks the database whether the claim is still ours may get no file descriptor for that."""
    monkeypatch.setattr(sink_dispatcher, "HELD_SECONDS", -1.0)
    _fail_at_first(monkeypatch, sinks, "is_held", 3, OSError(errno.EMFILE, "Too many open files"))
    box = Box(parallel=1)
    dispatcher = sinks.dispatcher("box", box, max_retries=0)
    ids = sinks.record(1, 2, 3)
    until(dispatcher.done, "all is delivered")
    assert (box.taken, sinks.letters()) == (Counter(ids), [])
    assert "nothing could be handed over: Too many open files" in {call.problem for call in sinks.heard.of(SinkCalls)}


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_failure_of_ours_in_the_middle_of_a_claim_confuses_no_later_one(
    sinks: Sinks, monkeypatch: pytest.MonkeyPatch, parallel: int
):
    """Results of the calls that went on were taken for those of the next claim, which then never got any."""
    monkeypatch.setattr(sink_dispatcher, "MARK_SECONDS", 0.0)
    _fail_at_first(monkeypatch, sinks, "mark_delivered", 1, RuntimeError("nobody foresaw it"))
    box = Box(parallel)
    box.trouble = lambda _: time.sleep(0.05)
    dispatcher = sinks.dispatcher("box", box, start=False)
    ids = sinks.record(*range(1, 31))
    sinks.run(dispatcher)
    until(dispatcher.done, "all is delivered")
    assert box.taken == Counter(ids)


def test_what_could_not_be_given_back_is_given_back_when_the_database_is_there_again(
    sinks: Sinks, monkeypatch: pytest.MonkeyPatch
):
    """It came as mail over which a worker was killed: when its lease was over, one at a time, an attempt spent."""
    _fail_at_first(monkeypatch, sinks, "release", 3, SinkUnavailable("it takes nothing"))
    box = Box()
    box.trouble = lambda _: SinkUnavailable("away") if len(box.asked) == 1 and box.asked.total() == 1 else None
    dispatcher = sinks.dispatcher("box", box, max_retries=0, start=False)
    ids = sinks.record(1, 2, 3)
    with sinks.suspects:  # none of them is one
        sinks.run(dispatcher)
        until(dispatcher.done, "all is delivered")
    assert box.taken == Counter(ids)


def test_a_slow_store_of_contents_delays_the_first_message_by_no_whole_batch(
    sinks: Sinks, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sink_dispatcher, "READ_SECONDS", 0.0)
    read: list[str] = []
    read_at_first: list[int] = []
    get = sinks.blobs.get

    def note(reference: str) -> bytes:
        read.append(reference)
        return get(reference)

    monkeypatch.setattr(sinks.blobs, "get", note)
    box = Box()
    box.trouble = lambda _: read_at_first.append(len(read))
    dispatcher = sinks.dispatcher("box", box, max_retries=0, start=False)
    ids = [each for uid in (1, 2, 3) for each in sinks.record(uid, raw=b"Subject: %d\r\n\r\n" % uid + b"y" * 5000)]
    sinks.run(dispatcher)
    until(dispatcher.done, "all is delivered")
    assert box.taken == Counter(ids)
    assert read_at_first == [1, 2, 3]


def _defer(sinks: Sinks, dispatcher: SinkDispatcher) -> None:
    del dispatcher
    claim = sinks.ledger.outbox.claim("box", "here", 10, 30.0)
    sinks.ledger.outbox.defer(claim, {owed.envelope.email_id: 600.0 for owed in claim.deliveries})


def _pause(sinks: Sinks, dispatcher: SinkDispatcher) -> None:
    del dispatcher
    sinks.paused = True


def _claim_elsewhere(sinks: Sinks, dispatcher: SinkDispatcher) -> None:
    del dispatcher
    sinks.ledger.outbox.claim("box", "elsewhere", 10, 600.0)


def _abandon(sinks: Sinks, dispatcher: SinkDispatcher) -> None:
    del dispatcher
    sinks.ledger.outbox.claim("box", "elsewhere", 10, 0.0)
    sinks.suspects.acquire()


def _open_breaker(sinks: Sinks, dispatcher: SinkDispatcher) -> None:
    del dispatcher
    sinks.breakers["box"].force("OPEN", 600.0)


@pytest.mark.parametrize(
    ("hold_up", "reason"),
    [
        (_pause, "an operator has paused it"),
        (_defer, "attempt 1 at default:gm:1001 failed, and it is due in"),
        (_claim_elsewhere, "elsewhere has default:gm:1001 in hand"),
        (_abandon, "elsewhere let default:gm:1001 go without a word, so it is tried alone, and another such message"),
        (_open_breaker, "its circuit breaker is OPEN"),
    ],
)
def test_whatever_holds_mail_up_is_told(
    sinks: Sinks, monkeypatch: pytest.MonkeyPatch, hold_up: Callable[[Sinks, SinkDispatcher], None], reason: str
):
    monkeypatch.setattr(sink_dispatcher, "BACKLOG_SECONDS", 0.05)
    box = Box()
    dispatcher = sinks.dispatcher("box", box, start=False)
    sinks.record(1)
    hold_up(sinks, dispatcher)
    sinks.run(dispatcher)
    told = until(lambda: [each.reason for each in sinks.heard.of(SinkBacklog) if each.reason], "it is told")
    assert told[0].startswith(reason)
    assert not box.asked
