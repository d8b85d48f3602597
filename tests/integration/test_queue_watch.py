"""Mail that left the queue untaken is noticed at the next look, whichever keys of ours went with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from email_ingestion.events import QueuedMailVanished
from email_ingestion.records import Cursor
from email_ingestion.settings import RedisAddress
from email_ingestion.stream import GROUP, Appender, Consumer, DeadLetterQueue, Keys
from email_ingestion.stream.dead_letters import dead_letter_fields
from email_ingestion.stream.queue_watch import FEW, QueueWatch
from tests.servers.links import Heard, link, message
from tests.servers.redis import RedisServer

KEYS = Keys()


class Queue:
    """A producer's and a worker's side of one Redis."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.link = link(url)
        self.client = self.link.client
        self.appender = Appender(self.link)
        self.consumer = Consumer(self.link, "here-worker-1", 60.0)
        self.uid = 0

    def append(self, count: int) -> None:
        cursor = self.appender.cursor("default", "INBOX")
        cursor = cursor or self.appender.restart_cursor("default", "INBOX", Cursor(1, 0))
        self.uid += count
        added = [message(uid) for uid in range(self.uid - count + 1, self.uid + 1)]
        self.appender.append("default", "INBOX", cursor, self.uid, added)

    def work(self) -> None:
        while taken := self.consumer.read_new(100, block=False):
            self.consumer.ack(taken)


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return Queue(redis_server.url)


def watch_of(queue: Queue, heard: Heard | None = None) -> QueueWatch:
    """A producer's watch that has looked once."""
    made = QueueWatch(link(queue.url), heard or Heard())
    assert made.lost_mail() is False
    return made


def _swap(client: redis.Redis) -> None:
    client.execute_command("SWAPDB", 0, 1)


def _set_back(client: redis.Redis) -> None:
    """Bring back what the stream was when it had one entry."""
    (first, *_) = client.xrange(KEYS.stream)
    client.delete(KEYS.stream, KEYS.volume)
    client.xadd(KEYS.stream, first[1], id=first[0])


LOSSES: dict[str, Callable[[redis.Redis], object]] = {
    "stream": lambda client: client.delete(KEYS.stream),
    "stream and its count": lambda client: client.delete(KEYS.stream, KEYS.volume),
    "stream renamed": lambda client: client.rename(KEYS.stream, "elsewhere"),
    "stream and count renamed": lambda client: [
        client.rename(KEYS.stream, "elsewhere"),
        client.rename(KEYS.volume, "count"),
    ],
    "all but the cursors": lambda client: client.delete(
        *(key for key in client.scan_iter() if b":cursor:" not in key and b":lease:" not in key)
    ),
    "everything": lambda client: client.flushdb(),
    "every database": lambda client: client.flushall(),
    "database swapped": _swap,
    "entries trimmed": lambda client: client.xtrim(KEYS.stream, maxlen=1, approximate=False),
    "one entry deleted": lambda client: client.xdel(KEYS.stream, client.xrange(KEYS.stream, count=1)[0][0]),
    "older state": _set_back,
}


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("after", ["nothing follows", "mail follows", "a worker is first"])
def test_mail_that_vanished_is_missed_by_every_producer(queue: Queue, loss: str, after: str):
    heard = Heard()
    queue.append(3)
    queue.work()
    queue.append(4)
    first, second = watch_of(queue, heard), watch_of(queue)
    LOSSES[loss](queue.client)
    if after == "mail follows":
        queue.append(1)
    if after == "a worker is first":
        queue.work()
    assert [first.lost_mail(), second.lost_mail()] == [True, True]
    assert [first.lost_mail(), second.lost_mail(), first.lost_mail()] == [False, False, False]
    assert heard.of(QueuedMailVanished)
    queue.work()
    queue.append(2)
    queue.work()
    assert not first.lost_mail()
    assert not watch_of(queue).lost_mail()


def test_what_we_do_ourselves_is_no_loss(queue: Queue):
    watch = watch_of(queue)
    for count in (1, 3, 2):
        queue.append(count)
        assert not watch.lost_mail()
        queue.work()
        assert not watch.lost_mail()
    queue.append(2)
    for each in queue.consumer.read_new(10, block=False):
        assert queue.consumer.dead_letter(each, dead_letter_fields("operator", 1, None, "", "here-worker-1"))
    assert not watch.lost_mail()
    dead = DeadLetterQueue(queue.link)
    assert list(dead.replay([each.id for each in dead.letters()]))
    assert not watch.lost_mail()
    queue.work()
    assert not watch.lost_mail()
    assert queue.client.get(KEYS.volume) == b"0"


def test_a_fresh_redis_is_no_loss_whoever_comes_first(queue: Queue):
    queue.work()
    watch = watch_of(queue)
    Consumer(link(queue.url), "here-worker-2", 60.0).read_new(1, block=False)
    assert not watch.lost_mail()


def test_dead_letters_that_somebody_deleted_are_missed(queue: Queue):
    queue.append(1)
    (letter,) = queue.consumer.read_new(10, block=False)
    assert queue.consumer.dead_letter(letter, dead_letter_fields("operator", 1, None, "", "here-worker-1"))
    watch = watch_of(queue)
    queue.client.delete(KEYS.dlq)
    assert watch.lost_mail()
    assert not watch.lost_mail()


def test_a_worker_that_comes_first_after_a_loss_tells_it(queue: Queue):
    """Mail that came afterwards hides it otherwise: the stream has more than it ever had."""
    queue.append(1)
    watch = watch_of(queue)
    queue.client.set(KEYS.ledger, "{}")  # some producer has worked here
    queue.client.delete(KEYS.stream, KEYS.volume)
    queue.append(5)
    queue.work()
    assert watch.lost_mail()


def test_a_destroyed_group_is_told_and_read_from_the_beginning(queue: Queue):
    queue.append(2)
    watch = watch_of(queue)
    queue.client.set(KEYS.ledger, "{}")
    queue.client.xgroup_destroy(KEYS.stream, GROUP)
    queue.work()
    queue.work()
    assert queue.client.xlen(KEYS.stream) == 0
    assert watch.lost_mail()


def test_a_long_stream_is_not_counted_and_the_first_short_one_tells(queue: Queue):
    queue.append(FEW + 20)
    watch = watch_of(queue)
    queue.client.xtrim(KEYS.stream, maxlen=FEW + 10, approximate=False)
    assert not watch.lost_mail()
    taken = queue.consumer.read_new(20, block=False)
    queue.consumer.ack(taken)
    assert watch.lost_mail()
    assert not watch.lost_mail()


def test_a_count_that_is_off_tells_nothing_and_hides_nothing(queue: Queue):
    queue.append(1)
    queue.work()
    watch = watch_of(queue)
    queue.client.set(KEYS.volume, -5)
    assert not watch.lost_mail()
    assert queue.client.get(KEYS.volume) == b"0"
    queue.client.delete(KEYS.volume)
    queue.client.rpush(KEYS.volume, "theirs")
    assert not watch.lost_mail()


def test_the_number_of_partitions_is_stored_again(queue: Queue):
    """Else the next process to start would refuse: a stream without a number counts as one partition."""
    address = RedisAddress(queue.url, partitions=3)
    watch = QueueWatch(link(address), Heard())
    watch.lost_mail()
    queue.client.delete(KEYS.partitions)
    watch.lost_mail()
    assert Appender(link(address)).backlog().depth == 0
