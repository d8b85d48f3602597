"""The numbers of an account that must never go backwards, saved with every change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .folders import FIRST_LABEL_UIDVALIDITY

if TYPE_CHECKING:
    from collections.abc import Container

    from .state import State

_SEQUENCE_BITS = 20
_LATEST = (1 << 63 - _SEQUENCE_BITS) - 1  # the largest date that fits into a signed 64-bit identity


class Counters:
    """MODSEQ, the low bits of X-GM-MSGID, UIDVALIDITY of labels."""

    def __init__(self, state: State) -> None:
        """Continue where the state ended."""
        self._state = state
        self.modseq = int(str(state.meta("modseq", 1)))
        self._sequence = int(str(state.meta("sequence", 0)))
        self._uidvalidity = int(str(state.meta("uidvalidity", FIRST_LABEL_UIDVALIDITY)))
        state.before_commit = self._save

    def _save(self) -> None:
        self._state.put_meta("modseq", self.modseq)
        self._state.put_meta("sequence", self._sequence)
        self._state.put_meta("uidvalidity", self._uidvalidity)

    def next_modseq(self) -> int:
        """Return the MODSEQ of one more change; there is one for the whole account."""
        self.modseq += 1
        return self.modseq

    def next_msgid(self, milliseconds: int, taken: Container[int]) -> int:
        """Return a new X-GM-MSGID: the INTERNALDATE in milliseconds, then a sequence number."""
        msgid = -1
        while msgid < 0 or msgid in taken:
            self._sequence = (self._sequence + 1) % (1 << _SEQUENCE_BITS)
            msgid = min(max(milliseconds, 0), _LATEST) << _SEQUENCE_BITS | self._sequence
        return msgid

    def next_uidvalidity(self) -> int:
        """Return a UIDVALIDITY that was never used."""
        self._uidvalidity += 1
        return self._uidvalidity - 1
