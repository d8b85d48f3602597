"""Messages that a mail server lists but does not send as they are: which, why, how often, and when each is due again.

    a conversation ends while messages are asked for  ─▶  suspects: after twice, each is asked for by itself
    the server refuses one, sends it empty, or ends the conversation over it alone  ─▶  quarantine

The cursor passes what is in quarantine, so that it does not hold up the mail behind it. A message leaves it when it
came, when the server no longer lists it, or when an operator accepts that it cannot be had. All of this is in Redis:
neither a new connection nor a new process begins from nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from email_ingestion.backoff import backoff
from email_ingestion.stream.redis_link import RedisLink, text
from email_ingestion.stream.stored_values import record, whole_number

FIRST_SECONDS = 5.0
LONGEST_SECONDS = 3600.0
UNPROVEN_SECONDS = 60.0  # the longest delay of a message that perhaps shares the fate of all others
# The delay of a message that ends the conversation, for each attempt costs a login. The first one is short where other
# mail came: perhaps the connection only broke off once too often.
BREAK_SECONDS = 60.0
BREAK_SPACING_SECONDS = 20.0  # between the attempts of several of them
SPACING_SECONDS = 3.0  # between those of others: each takes two or three commands
SUSPECT_SECONDS = 86_400
REASON_CHARS = 300

FetchStep = Literal["summary", "body"]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An operator's decision that a message need not come; `at` in Unix seconds."""

    by: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class QuarantinedMessage:
    """A message in quarantine; times in Unix seconds."""

    uid: int
    tries: int  # how often it was refused
    due: float  # when it is asked for again, unless it is accepted
    reason: str = ""  # in the words of the last error
    since: float = 0.0
    breaks: bool = False  # the conversation ends over it
    proven: bool = True  # others came over the same connection, so it is not the server that is at fault
    accepted: Acceptance | None = None


class Quarantine:
    """The quarantine of one mailbox. Its methods raise like `RedisLink.call`."""

    def __init__(
        self, link: RedisLink, account: str, mailbox: str, uidvalidity: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._link = link
        self._key = link.keys_for(account).quarantine(account, mailbox)
        self._uidvalidity = uidvalidity
        self._clock = clock

    def messages(self) -> list[QuarantinedMessage]:
        """Return all of them by ascending UID; those of another UIDVALIDITY are found again by reconciliation."""
        found = self._link.call(lambda: self._link.client.hgetall(self._key))
        parsed = [_parse(text(field), text(value), self._uidvalidity) for field, value in found.items()]
        return sorted((message for message in parsed if message), key=lambda message: message.uid)

    def due(self, *, server_works: bool = False) -> list[QuarantinedMessage]:
        """Return the messages to fetch again now.

        When the server sends others, these are also the messages that are not proven to be at fault.
        """
        now = self._clock()
        return [
            message
            for message in self.messages()
            if not message.accepted and (message.due <= now or (server_works and not message.proven))
        ]

    def add(
        self, refused: Mapping[int, Exception], *, proven: bool = True, breaks: bool = False
    ) -> dict[int, QuarantinedMessage]:
        """Add refused UIDs, or postpone them; return how they stand now."""
        if not refused:
            return {}
        before = {message.uid: message for message in self.messages()}
        now = self._clock()
        changed: dict[int, QuarantinedMessage] = {}
        for uid, error in refused.items():
            known = before.get(uid) or QuarantinedMessage(uid, 0, 0.0, since=now)
            tries = known.tries + 1
            others = [
                each.due
                for each in (before | changed).values()
                if each.uid != uid and not each.accepted and (each.breaks or not breaks)
            ]
            spacing = BREAK_SPACING_SECONDS if breaks else SPACING_SECONDS
            due = _free_time(now + _delay(tries, proven=proven, breaks=breaks), others, spacing)
            reason = " ".join(str(error).split())[:REASON_CHARS]
            changed[uid] = replace(known, tries=tries, due=due, reason=reason, breaks=breaks, proven=proven)
        self._write(changed.values())
        return changed

    def remove(self, uid: int) -> None:
        """Remove a message that came, or that the server no longer lists."""
        self._link.call(lambda: self._link.client.hdel(self._key, self._field(uid)))

    def accept(self, uid: int, reason: str, by: str) -> QuarantinedMessage | None:
        """Let a message count as given up; return it, or None when it is not in quarantine."""
        found = next((message for message in self.messages() if message.uid == uid), None)
        if found:
            found = replace(found, accepted=Acceptance(by, reason, self._clock()))
            self._write([found])
        return found

    def retry(self, uids: Iterable[int]) -> list[QuarantinedMessage]:
        """Make messages due now, also accepted ones; return those that are in quarantine."""
        wanted = set(uids)
        found = [replace(each, due=0.0, accepted=None) for each in self.messages() if each.uid in wanted]
        if found:
            self._write(found)
        return found

    def _write(self, messages: Iterable[QuarantinedMessage]) -> None:
        fields: list[str] = []
        for message in messages:
            values = asdict(message)
            del values["uid"]
            fields += [self._field(message.uid), json.dumps(values)]
        self._link.call(lambda: self._link.client.hset(self._key, items=fields))

    def _field(self, uid: int) -> str:
        return f"{self._uidvalidity}/{uid}"


def _delay(tries: int, *, proven: bool, breaks: bool) -> float:
    """Return the seconds until a message is asked for again."""
    cap = LONGEST_SECONDS if proven else UNPROVEN_SECONDS
    if breaks and (tries > 1 or not proven):
        return backoff(max(1, tries - 1), base=BREAK_SECONDS, cap=cap)
    return backoff(tries, base=FIRST_SECONDS, cap=cap)


def _free_time(wanted: float, taken: Iterable[float], spacing: float) -> float:
    """Return the first time from `wanted` on that is `spacing` seconds away from every other one."""
    for other in sorted(taken):
        if abs(other - wanted) < spacing:
            wanted = other + spacing
    return wanted


def _parse(field: str, value: str, uidvalidity: int) -> QuarantinedMessage | None:
    """Return a stored message of this UIDVALIDITY; an earlier release wrote only `tries` and `due`."""
    ours, _, uid = field.partition("/")
    number = whole_number(uid)
    if ours != str(uidvalidity) or number is None:
        return None
    stored = record(value, {"tries": int, "due": (int, float)})
    if stored is None:  # somebody else wrote there: the message is asked for again, now
        return QuarantinedMessage(number, 0, 0.0, reason="its record could not be read", since=0.0)
    since = stored.get("since")
    return QuarantinedMessage(
        uid=number,
        tries=stored["tries"],
        due=float(stored["due"]),
        reason=str(stored.get("reason", "")),
        since=float(since if isinstance(since, int | float) else stored["due"]),
        breaks=bool(stored.get("breaks", False)),
        proven=bool(stored.get("proven", True)),
        accepted=_acceptance(stored.get("accepted")),
    )


def _acceptance(stored: Any) -> Acceptance | None:
    """Return who accepted a message; None where that is not said by name, with the reason and the time."""
    found = stored if isinstance(stored, dict) else {}
    by, reason, at = found.get("by"), found.get("reason"), found.get("at")
    is_whole = isinstance(by, str) and isinstance(reason, str) and isinstance(at, int | float)
    return Acceptance(str(by), str(reason), float(at or 0)) if is_whole else None


def quarantined_mailboxes(link: RedisLink, account: str) -> Iterator[tuple[str, Quarantine]]:
    """Yield the mailboxes of an account that have a quarantine, by name; raises like `RedisLink.call`.

    The UIDVALIDITY is that of the cursor: without one nothing is known of the mailbox any more.
    """
    keys = link.keys_for(account)
    prefix = keys.quarantine(account, "")
    pattern = "".join(f"[{char}]" if char in "*?[" else char for char in prefix) + "*"
    names = link.call(lambda: sorted(text(key) for key in link.node_for(keys).scan_iter(match=pattern, count=1000)))
    for name in names:
        mailbox = name.removeprefix(prefix)
        found = link.call(lambda mailbox=mailbox: link.client.hget(keys.cursor(account, mailbox), "uidvalidity"))  # type: ignore[misc]
        if (uidvalidity := whole_number(found)) is not None:
            yield mailbox, Quarantine(link, account, mailbox, uidvalidity)


class Suspects:
    """The messages of one mailbox over which conversations ended. Its methods raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink, account: str, mailbox: str, uidvalidity: int) -> None:
        self._link = link
        self._key = link.keys_for(account).suspects(account, mailbox)
        self._uidvalidity = uidvalidity

    def deaths(self) -> dict[FetchStep, dict[int, int]]:
        """Return how often conversations ended, by what was asked for and UID."""
        found = self._link.call(lambda: self._link.client.hgetall(self._key))
        deaths: dict[FetchStep, dict[int, int]] = {"summary": {}, "body": {}}
        for field, value in found.items():
            uidvalidity, _, place = text(field).partition("/")
            uid, _, step = place.partition("/")
            number, count = whole_number(uid), whole_number(value)
            if uidvalidity == str(self._uidvalidity) and number is not None and count is not None:
                deaths["summary" if step == "summary" else "body"][number] = count
        return deaths

    def add(self, uids: Iterable[int], step: FetchStep) -> None:
        """Count one more end of a conversation for each of `uids`."""
        fields = self._fields(uids, step)

        def write() -> None:
            pipe = self._link.client.pipeline(transaction=False)
            for field in fields:
                pipe.hincrby(self._key, field, 1)
            pipe.expire(self._key, SUSPECT_SECONDS)
            pipe.execute()

        self._link.call(write)

    def clear(self, uids: Iterable[int], step: FetchStep) -> None:
        """Forget what was counted for messages that came after all."""
        fields = self._fields(uids, step)
        if fields:
            self._link.call(lambda: self._link.client.hdel(self._key, *fields))

    def _fields(self, uids: Iterable[int], step: FetchStep) -> list[str]:
        return [f"{self._uidvalidity}/{uid}/{step}" for uid in uids]
