"""Asks again for the messages of one opened mailbox that the server listed but did not send."""

from __future__ import annotations

from collections.abc import Callable

from email_ingestion.events import Observe, Published, QuarantineCounted, Quarantined, Skipped
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.choice import Rules
from email_ingestion.producer.fetch import Fetch
from email_ingestion.producer.picker import Accounted
from email_ingestion.stream import Gaps, Quarantine
from email_ingestion.stream.entry_scan import BEGINNING

AT_ONCE = 20  # so that new mail does not wait for them


class Again:
    """Made anew for each connection."""

    def __init__(
        self,
        account: str,
        opened: SelectedMailbox,
        *,
        quarantine: Quarantine,
        gaps: Gaps,
        fetch: Fetch,
        rules: Rules,
        look: Callable[[], Accounted],
        observe: Observe,
    ) -> None:
        self._account = account
        self._opened = opened
        self._quarantine = quarantine
        self._gaps = gaps
        self._fetch = fetch
        self._rules = rules
        self._look = look
        self._observe = observe

    def run(self) -> None:
        """Ask for those that are due; raises what `Sync.run` raises."""
        held = self._quarantine.messages()
        for each in self._quarantine.due()[:AT_ONCE] if held else ():
            self._ask(each.uid)
        self._observe(QuarantineCounted(self._account, len(self._quarantine.messages()) if held else 0))

    def _ask(self, uid: int) -> None:
        outlines = self._fetch.outlines([uid])
        known = self._look().uids(outlines) if outlines else ()
        reasons = {outline.uid: self._rules.reason_against(outline, known) for outline in outlines}
        messages = list(self._fetch.messages([outline for outline in outlines if not reasons[outline.uid]]))
        refused = self._fetch.take_refused()
        if refused:
            for tries in self._quarantine.add(refused).values():
                self._observe(Quarantined(self._account, self._opened.name, uid, refused[uid], tries))
            return
        for reason in reasons.values():
            if reason:
                self._observe(Skipped(self._account, reason, 1))
        added = self._gaps.fill(messages, BEGINNING)
        for message in messages:
            ids, size = (message.envelope.email_id,), message.envelope.size
            self._observe(Published(self._account, self._opened.name, ids, added, size))
        self._quarantine.remove(uid)
