"""Every key in Redis, its type and its meaning.

    {email_ingestion}:stream                      stream  mail on its way, an entry a message (fields: `codec`)
    {email_ingestion}:volume                      string  bytes of payload in the stream, kept by the scripts
    {email_ingestion}:dlq                         stream  dead letters: the entry's fields and `dead_…` ones
    {email_ingestion}:out                         stream  what the sink `stream` hands on, unless it names another key
    {email_ingestion}:replayed                    string  dead letters put back into the stream, ever
    {email_ingestion}:cursor:<account>/<mailbox>  hash    uidvalidity, uid: read up to here; rescan, history: see
                                                          Cursor; modseq: labels are the server's up to it
    {email_ingestion}:lease:<account>             string  "<seat> <term>" of the process that reads it, expires
    {email_ingestion}:alive:<instance>            string  JSON presence of a process, expires
    {email_ingestion}:control                     hash    orders to all processes by name, JSON with their ends; expires
    {email_ingestion}:budget:<account>            hash    bytes downloaded, by hour since the epoch
    {email_ingestion}:doctor                      string  written and removed at once, as a trial; expires
    {email_ingestion}:restoring:<name>                    what a restore has loaded so far, to become <name> in one step
    {email_ingestion}:lockout:<account>           hash    until (Unix seconds), seconds: shut out by the mail server
    {email_ingestion}:quarantine:<account>/<mailbox>  hash  <uidvalidity>/<uid>: JSON; the server does not send it

The braces make one hash tag of all keys of a partition, so that every script touches a single slot.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = "email_processor_group"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one partition."""

    tag: str = "email_ingestion"

    def name(self, name: str) -> str:
        """Any key of the partition by its short name."""
        return f"{{{self.tag}}}:{name}"

    @property
    def stream(self) -> str:
        """Mail on its way."""
        return self.name("stream")

    @property
    def volume(self) -> str:
        """Bytes of payload in the stream."""
        return self.name("volume")

    @property
    def dlq(self) -> str:
        """Dead letters."""
        return self.name("dlq")

    @property
    def outlet(self) -> str:
        """What the sink `stream` hands on."""
        return self.name("out")

    @property
    def replayed(self) -> str:
        """How many dead letters were put back into the stream."""
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
    def control(self) -> str:
        """Orders of operators to all processes."""
        return self.name("control")

    def budget(self, account: str) -> str:
        """Bytes downloaded lately."""
        return self.name(f"budget:{account}")

    def lockout(self, account: str) -> str:
        """Until when the mail server has shut an account out."""
        return self.name(f"lockout:{account}")

    def quarantine(self, account: str, mailbox: str) -> str:
        """Messages the server lists but does not send."""
        return self.name(f"quarantine:{account}/{mailbox}")
