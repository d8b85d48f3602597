"""Fetches again the messages in quarantine: those that the server listed but did not send."""

from __future__ import annotations

from collections.abc import Callable

from email_ingestion.events import Observe, Published, QuarantineCounted, Quarantined, Skipped
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.fetcher import MessageFetcher
from email_ingestion.producer.known_mail import KnownMail
from email_ingestion.producer.selection import FetchFilter, mark_history
from email_ingestion.stream import Appender, Quarantine
from email_ingestion.stream.entry_scan import BEGINNING

MAX_PER_RUN = 20  # so that new mail does not wait for them


class QuarantineRetry:
    """Retries for one mailbox; made anew for each connection."""

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

    def run(self) -> None:
        """Retry the messages that are due; raises as `NewMailSync.run` does."""
        held = self._quarantine.messages()
        for entry in self._quarantine.due()[:MAX_PER_RUN] if held else ():
            self._retry(entry.uid)
        self._observe(QuarantineCounted(self._account, len(self._quarantine.messages()) if held else 0))

    def _retry(self, uid: int) -> None:
        summaries = self._fetcher.summaries([uid])
        known = self._known_mail().uids(summaries) if summaries else ()
        reasons = {summary.uid: self._fetch_filter.exclusion_reason(summary, known) for summary in summaries}
        messages = list(self._fetcher.messages([summary for summary in summaries if not reasons[summary.uid]]))
        failures = self._fetcher.pop_failures()
        if failures:
            for tries in self._quarantine.add(failures).values():
                self._observe(Quarantined(self._account, self._mailbox.name, uid, failures[uid], tries))
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
