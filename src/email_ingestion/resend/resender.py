"""Finds what one sink is owed again and leaves it to the workers, which deliver it behind live mail.

delivered mail ─▶ part (500 messages) ─▶ had it: again
                                     └─▶ never owed: the routes of today decide, by the stored raw message

A part is one transaction. What was delivered since the resend began is left out, so one that was killed can be given
again with the same start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from email_ingestion.blobs import BlobStore
from email_ingestion.errors import EmailIngestionError, SinkUnavailable
from email_ingestion.ledger.resends import ResendCandidate, ResendChoice
from email_ingestion.ledger.store import Ledger, content_of
from email_ingestion.parsing import parse
from email_ingestion.routing import Router

PART_MESSAGES = 500


@dataclass
class ResendSummary:
    """What a run found; it grows while the run goes on."""

    repeated: int = 0  # the sink had them
    new: int = 0  # it never got them
    waiting: int = 0  # it is owed them anyway
    delivered_since: int = 0  # it got them after the resend had begun
    dead_letters: int = 0  # to be replayed instead
    not_routed: int = 0  # the routes send them elsewhere
    failed: dict[str, str] = field(default_factory=dict)  # why it could not be said whether it is owed, by identity

    @property
    def owed(self) -> int:
        """The messages that the sink gets by this run."""
        return self.repeated + self.new


class Resender:
    """One run for one sink. `started` is when the resend began, by the database's clock."""

    def __init__(self, ledger: Ledger, blobs: BlobStore, router: Router, sink: str, started: datetime) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._router = router
        self._sink = sink
        self._started = started
        self.summary = ResendSummary()

    def run(self, choice: ResendChoice, *, dry_run: bool = False) -> Iterator[int]:
        """Yield the number of messages looked at after each part; `dry_run` writes nothing.

        The routes do not matter for messages that are chosen by their identities.
        """
        after = None
        while found := self._ledger.resends.choose(self._sink, choice, after, PART_MESSAGES):
            after = found[-1].envelope
            repeated = [each.envelope.email_id for each in found if self._is_to_repeat(each)]
            never = [each for each in found if each.state is None]
            new = [each.envelope.email_id for each in never if choice.email_ids or self._is_routed(each)]
            if not dry_run and (repeated or new):
                self._ledger.resends.add(self._sink, repeated, new)
            self.summary.repeated += len(repeated)
            self.summary.new += len(new)
            yield len(found)

    def _is_to_repeat(self, candidate: ResendCandidate) -> bool:
        if candidate.state == "waiting":
            self.summary.waiting += 1
        elif candidate.state == "dead":
            self.summary.dead_letters += 1
        elif candidate.changed_at and candidate.changed_at >= self._started:
            self.summary.delivered_since += 1
        else:
            return candidate.state is not None
        return False

    def _is_routed(self, candidate: ResendCandidate) -> bool:
        if not self._router.chooses_sinks:
            return True
        try:
            raw = content_of(candidate.raw_ref, self._ledger, self._blobs)
            routed = self._sink in self._router.decide(parse(candidate.envelope, raw)).sinks
        except SinkUnavailable:
            raise
        except EmailIngestionError as error:
            self.summary.failed[candidate.envelope.email_id] = str(error)
            return False
        self.summary.not_routed += not routed
        return routed
