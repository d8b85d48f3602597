"""Messages a mail server lists but does not send: which, since when, and when each is asked for again.

The cursor passes them, so that one of them does not hold up the mail behind it; they are forgotten when they came,
or when the server no longer lists them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from email_ingestion.backoff import backoff
from email_ingestion.stream.connection import RedisLink, text

FIRST_SECONDS = 5.0
LONGEST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class QuarantinedMessage:
    """One of them; `due` in Unix seconds, `tries` how often it was refused."""

    uid: int
    tries: int
    due: float


class Quarantine:
    """Those of one mailbox. Its methods raise like `RedisLink.call`."""

    def __init__(
        self, link: RedisLink, account: str, mailbox: str, uidvalidity: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._link = link
        self._key = link.keys_for(account).quarantine(account, mailbox)
        self._uidvalidity = uidvalidity
        self._clock = clock

    def messages(self) -> list[QuarantinedMessage]:
        """All of them, ascending; what was held under another UIDVALIDITY is found again by other means."""
        found = self._link.call(lambda: self._link.client.hgetall(self._key))
        known = [self._read(text(field), text(value)) for field, value in found.items()]
        return sorted((held for held in known if held), key=lambda held: held.uid)

    def due(self) -> list[QuarantinedMessage]:
        """Those to be asked for again now."""
        now = self._clock()
        return [held for held in self.messages() if held.due <= now]

    def add(self, refused: Mapping[int, Exception]) -> dict[int, int]:
        """Hold `refused`, or hold them longer; returns how often each was refused by now."""
        if not refused:
            return {}
        before = {held.uid: held.tries for held in self.messages()}
        tries = {uid: before.get(uid, 0) + 1 for uid in refused}
        now = self._clock()
        fields: list[str] = []
        for uid, count in tries.items():
            fields += [self._field(uid), json.dumps({"tries": count, "due": now + _pause(count)})]
        self._link.call(lambda: self._link.client.hset(self._key, items=fields))
        return tries

    def remove(self, uid: int) -> None:
        """It came, or it is gone."""
        self._link.call(lambda: self._link.client.hdel(self._key, self._field(uid)))

    def _field(self, uid: int) -> str:
        return f"{self._uidvalidity}/{uid}"

    def _read(self, field: str, value: str) -> QuarantinedMessage | None:
        uidvalidity, _, uid = field.partition("/")
        if uidvalidity != str(self._uidvalidity):
            return None
        kept = json.loads(value)
        return QuarantinedMessage(int(uid), int(kept["tries"]), float(kept["due"]))


def _pause(tries: int) -> float:
    return backoff(tries, base=FIRST_SECONDS, cap=LONGEST_SECONDS)
