"""Every key in Redis, its type and its meaning.

    {email_ingestion}:stream                      stream  mail on its way, an entry a message (fields: `codec`)
    {email_ingestion}:priority                    zset    ids of entries whose priority is not 5: it, negated
    {email_ingestion}:volume                      string  bytes of payload in the stream, kept by the scripts
    {email_ingestion}:dlq                         stream  dead letters: the entry's fields and `dead_…` ones
    {email_ingestion}:out                         stream  output of the sink `stream`, unless it names another key
    {email_ingestion}:replayed                    string  dead letters ever replayed
    {email_ingestion}:cursor:<account>/<mailbox>  hash    uidvalidity, uid: read up to here; rescan, history: see
                                                          Cursor; modseq: labels are the server's up to it
    {email_ingestion}:lease:<account>             string  "<seat> <term>" of the process that reads it, expires
    {email_ingestion}:alive:<instance>            string  JSON presence of a process, expires
    {email_ingestion}:processes                   hash    by instance the last presence of every process that did not
                                                          stop orderly: one without `alive` is dead
    {email_ingestion}:control                     hash    operators' overrides by name, JSON with their ends; expires
    {email_ingestion}:budget:<account>            hash    bytes downloaded, by hour since the epoch
    {email_ingestion}:receipts:<run>              list    receipts of synthetic messages, JSON; expires
    {email_ingestion}:doctor                      string  write probe of the doctor; expires
    {email_ingestion}:probe                               never there: commands are tried on it without an effect
    {email_ingestion}:restoring:<name>                    what a restore has loaded so far, to become <name> in one step
    {email_ingestion}:foreign:<name>                      what was in the place of <name> and of another type
    {email_ingestion}:lockout:<account>           hash    until (Unix seconds), seconds: locked out by the mail server
    {email_ingestion}:quarantine:<account>/<mailbox>  hash  <uidvalidity>/<uid>: JSON; messages the server refuses
    {email_ingestion}:suspects:<account>/<mailbox>  hash  <uidvalidity>/<uid>/<summary or body>: how often a
                                                          conversation ended while it was asked for; expires
    {email_ingestion}:miscounts:<account>         hash    row: messages in a row whose size the server miscounted;
                                                          until (Unix seconds): it is not asked twice; expires
    {email_ingestion}:scrub                       hash    position, lost: of the scrub of stored bytes that goes on;
                                                          ended: Unix seconds of the last one
    {email_ingestion}:proofs                      hash    by sink, JSON: when it was compared with the database last,
                                                          and what was missing there
    {email_ingestion}:proving:<sink>              string  there while a worker has it compared, or that failed; expires
    {email_ingestion}:ledger                      string  JSON: how far the database had come, how often it went back
    {email_ingestion}:ledger:losses               string  how often a worker missed what it had recorded
    {email_ingestion}:queue:losses                string  how often mail left the stream and no worker took it
    {email_ingestion}:partitions                  string  number of partitions; missing when it is one

The braces make one hash tag of all keys of a partition, so that every script touches a single slot. Partition 0 has
the tag above, every other one {email_ingestion:n}; what belongs to an account is in the account's partition, what
belongs to none (alive, processes, control, doctor, out, partitions, proofs, scrub) in partition 0, a stream with its
dead letters in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

TAG = "email_ingestion"
GROUP = "email_processor_group"
# The consumer that no process is: workers of an older release give it the entries that only a newer one can read.
NEWER_RELEASE = "newer-release"
# Another one: messages that take long to parse wait there while a worker's slow lane is full.
SLOW_MAIL = "slow-mail"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one partition."""

    tag: str = TAG
    partition: int = 0

    def format_entry_id(self, entry_id: str) -> str:
        """Return an entry id as commands and files show it: with the partition before it, unless that is 0."""
        return f"{self.partition}:{entry_id}" if self.partition else entry_id

    def name(self, name: str) -> str:
        """Return a key of the partition by its short name."""
        return f"{{{self.tag}}}:{name}"

    @property
    def stream(self) -> str:
        """Stream: mail on its way."""
        return self.name("stream")

    @property
    def volume(self) -> str:
        """Bytes of payload in the stream."""
        return self.name("volume")

    @property
    def priority(self) -> str:
        """Zset: entries to deliver before or after the others."""
        return self.name("priority")

    @property
    def dlq(self) -> str:
        """Dead letters."""
        return self.name("dlq")

    @property
    def sink_stream(self) -> str:
        """Stream: the output of the sink `stream`."""
        return self.name("out")

    @property
    def replayed(self) -> str:
        """How many dead letters were ever replayed."""
        return self.name("replayed")

    def cursor(self, account: str, mailbox: str) -> str:
        """How far a mailbox has been read."""
        return self.name(f"cursor:{account}/{mailbox}")

    def lease(self, account: str) -> str:
        """Who reads an account."""
        return self.name(f"lease:{account}")

    def alive(self, instance: str) -> str:
        """Presence of one process; `*` for all."""
        return self.name(f"alive:{instance}")

    @property
    def processes(self) -> str:
        """Last presence of every process that did not stop orderly."""
        return self.name("processes")

    @property
    def scrub(self) -> str:
        """When all stored bytes were read last."""
        return self.name("scrub")

    @property
    def proofs(self) -> str:
        """What the last comparison of each sink with the database found."""
        return self.name("proofs")

    def proving(self, sink: str) -> str:
        """There while a sink is compared with the database, or cannot be."""
        return self.name(f"proving:{sink}")

    @property
    def ledger(self) -> str:
        """How far the database had come."""
        return self.name("ledger")

    @property
    def ledger_losses(self) -> str:
        """How often a worker missed in the database what it had recorded."""
        return self.name("ledger:losses")

    @property
    def queue_losses(self) -> str:
        """How often mail left the stream and no worker took it."""
        return self.name("queue:losses")

    @property
    def partitions(self) -> str:
        """Number of partitions that mail is spread over."""
        return self.name("partitions")

    @property
    def control(self) -> str:
        """Operators' overrides for all processes."""
        return self.name("control")

    def receipts(self, run: str) -> str:
        """Receipts of a run of synthetic messages."""
        return self.name(f"receipts:{run}")

    def budget(self, account: str) -> str:
        """Bytes downloaded lately."""
        return self.name(f"budget:{account}")

    def lockout(self, account: str) -> str:
        """Until when the mail server has locked an account out."""
        return self.name(f"lockout:{account}")

    def quarantine(self, account: str, mailbox: str) -> str:
        """Messages that the server lists but does not send."""
        return self.name(f"quarantine:{account}/{mailbox}")

    def suspects(self, account: str, mailbox: str) -> str:
        """Messages over which a conversation with the server ended."""
        return self.name(f"suspects:{account}/{mailbox}")

    def miscounts(self, account: str) -> str:
        """Whether the server's sizes can be believed."""
        return self.name(f"miscounts:{account}")


@lru_cache
def partition_keys(partitions: int) -> tuple[Keys, ...]:
    """Return the keys of every partition.

    The slots of the tags lie one in each of `partitions` equal parts of all slots, in their order: masters that share
    the slots evenly get as many partitions each, give or take one. The number in a tag is the partition's, or that
    plus a multiple of `partitions`.
    """
    first = _part(TAG, partitions)
    found = [Keys()]
    for partition in range(1, partitions):
        wanted, number = (first + partition) % partitions, partition
        while _part(f"{TAG}:{number}", partitions) != wanted:
            number += partitions
        found.append(Keys(f"{TAG}:{number}", partition))
    return tuple(found)


def _part(tag: str, parts: int) -> int:
    return key_slot(tag.encode()) * parts // REDIS_CLUSTER_HASH_SLOTS


def partition_of(account: str, partitions: int) -> int:
    """Return the partition of an account: its cursors, its lease and its stream are in one place."""
    return crc32(account.encode()) % partitions


def parse_entry_id(formatted_id: str) -> tuple[int, str]:
    """Return partition and entry id of an id that `Keys.format_entry_id` made."""
    partition, _, entry_id = formatted_id.rpartition(":")
    return int(partition or 0), entry_id


def entry_order(formatted_id: str) -> tuple[int, int]:
    """Return a sort key: the time at which an entry was added, whatever its partition."""
    milliseconds, _, number = parse_entry_id(formatted_id)[1].partition("-")
    return int(milliseconds), int(number)


def entry_time(entry_id: str | bytes) -> float:
    """Return when an entry was added, in Unix seconds: its id begins with Redis' milliseconds."""
    formatted_id = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return int(parse_entry_id(formatted_id)[1].split("-", 1)[0]) / 1000
