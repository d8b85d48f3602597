"""Messages that a mail server lists but does not send: which, how often they failed, and when each is due again.

The cursor passes them, so that one of them does not hold up the mail behind it; they are removed when they came, or
when the server no longer lists them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from email_ingestion.backoff import backoff
from email_ingestion.stream.redis_link import RedisLink, text

FIRST_SECONDS = 5.0
LONGEST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class QuarantinedMessage:
    """A message in quarantine; `due` in Unix seconds, `tries` how often it was refused."""

    uid: int
    tries: int
    due: float


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
        parsed = [self._parse(text(field), text(value)) for field, value in found.items()]
        return sorted((message for message in parsed if message), key=lambda message: message.uid)

    def due(self) -> list[QuarantinedMessage]:
        """Return the messages to fetch again now."""
        now = self._clock()
        return [message for message in self.messages() if message.due <= now]

    def add(self, refused: Mapping[int, Exception]) -> dict[int, int]:
        """Add refused UIDs, or postpone them; return how often each was refused by now."""
        if not refused:
            return {}
        before = {message.uid: message.tries for message in self.messages()}
        tries = {uid: before.get(uid, 0) + 1 for uid in refused}
        now = self._clock()
        fields: list[str] = []
        for uid, count in tries.items():
            due = now + backoff(count, base=FIRST_SECONDS, cap=LONGEST_SECONDS)
            fields += [self._field(uid), json.dumps({"tries": count, "due": due})]
        self._link.call(lambda: self._link.client.hset(self._key, items=fields))
        return tries

    def remove(self, uid: int) -> None:
        """Remove a message that came, or that the server no longer lists."""
        self._link.call(lambda: self._link.client.hdel(self._key, self._field(uid)))

    def _field(self, uid: int) -> str:
        return f"{self._uidvalidity}/{uid}"

    def _parse(self, field: str, value: str) -> QuarantinedMessage | None:
        uidvalidity, _, uid = field.partition("/")
        if uidvalidity != str(self._uidvalidity):
            return None
        stored = json.loads(value)
        return QuarantinedMessage(int(uid), int(stored["tries"]), float(stored["due"]))
