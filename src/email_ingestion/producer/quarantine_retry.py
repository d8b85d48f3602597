"""Fetches again the messages in quarantine: those that the server listed but did not send as they are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from email_ingestion.events import Observe, Published, QuarantineCounted, Quarantined, Skipped
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.fetcher import MessageFetcher
from email_ingestion.producer.known_mail import KnownMail
from email_ingestion.producer.selection import FetchFilter, mark_history
from email_ingestion.stream import Appender, Quarantine, QuarantinedMessage
from email_ingestion.stream.entry_scan import BEGINNING

MAX_PER_RUN = 20  # so that new mail does not wait for them
LOOK_SECONDS = 5.0  # the longest wait while there are such messages, for an operator may accept one


class QuarantineRetry:
    """Retries for one mailbox; made anew for each connection. Its fetcher asks for every message by itself."""

    def __init__(
        self,
        account: str,
        mailbox: SelectedMailbox,
        *,
        quarantine: Quarantine,
        appender: Appender,
        fetcher: MessageFetcher,
        fetch_filter: FetchFilter,
        known_mail: Callable[[], KnownMail],
        observe: Observe,
    ) -> None:
        self._account = account
        self._mailbox = mailbox
        self._quarantine = quarantine
        self._appender = appender
        self._fetcher = fetcher
        self._fetch_filter = fetch_filter
        self._known_mail = known_mail
        self._observe = observe
        self.seconds_until_due = math.inf
        self._held: set[int] = set()  # the UIDs in quarantine at the last look, without those taken out here

    def run(self) -> bool:
        """Retry the messages that are due; return whether others vanished from quarantine. Raises as `NewMailSync.run`.

        Then Redis lost them, and only a comparison of the mailbox finds them again; or they were erased, which it does
        not mind.
        """
        before = self._held
        held = self._report()
        vanished = not before <= {each.uid for each in held}
        due = self._quarantine.due(server_works=self._fetcher.others_came) if held else ()
        for entry in due[:MAX_PER_RUN]:
            self._retry(entry.uid)
        if due:
            held = self._report()
        waiting = [each.due for each in held if not each.accepted]
        seconds = max(1.0, min(waiting) - time.time()) if waiting else math.inf
        self.seconds_until_due = min(seconds, LOOK_SECONDS) if held else math.inf
        self._held = {each.uid for each in held}
        return vanished

    def _report(self) -> Sequence[QuarantinedMessage]:
        held = self._quarantine.messages()
        waiting = tuple((each.uid, each.reason) for each in held if not each.accepted)
        accepted = len(held) - len(waiting)
        self._observe(QuarantineCounted(self._account, self._mailbox.name, waiting, accepted))
        return held

    def _retry(self, uid: int) -> None:
        summaries = self._fetcher.summaries([uid])
        known = self._known_mail().uids(summaries) if summaries else ()
        reasons = {summary.uid: self._fetch_filter.exclusion_reason(summary, known) for summary in summaries}
        messages = list(self._fetcher.messages([summary for summary in summaries if not reasons[summary.uid]]))
        failures = self._fetcher.pop_failures()
        if failures:
            for held in self._quarantine.add(failures, proven=self._fetcher.others_came).values():
                self._observe(Quarantined(self._account, self._mailbox.name, uid, failures[uid], held.tries))
            return
        for reason in reasons.values():
            if reason:
                self._observe(Skipped(self._account, reason, 1))
        cursor = self._appender.cursor(self._account, self._mailbox.name)
        messages = mark_history(messages, cursor.rescan if cursor else 0)
        added = self._appender.append_missing(messages, BEGINNING)
        for message in messages:
            ids, size = (message.envelope.email_id,), message.envelope.size
            self._observe(Published(self._account, self._mailbox.name, ids, added, size))
        self._quarantine.remove(uid)
