"""What to do when a conversation with the server ends while messages are asked for.

Dovecot hangs up over a file it cannot read, others answer BYE or nothing at all: without more, an account would ask for
the same messages for ever. A portion over which the conversation ended twice is asked for message by message; the one
over which it ends then is quarantined, and the watcher connects again at once and goes on without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from email_ingestion.errors import IMAPConnectionError, IMAPThrottledError, TransientError
from email_ingestion.events import Observe, Quarantined
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import MailboxGone, MessageTooLong
from email_ingestion.stream import Quarantine, Suspects
from email_ingestion.stream.quarantine import FetchStep

DEATHS_TOGETHER = 2  # after so many, messages are asked for one by one
SUSPECT_SECONDS = 10.0  # of silence, from the second time on: a hanging message must not hold up the others for long


class MessageQuarantined(TransientError):
    """The conversation ended over one message, which is in quarantine now: connect again and go on without it.

    `others_came`: over the same connection, so it is not the server that is at fault.
    """

    def __init__(self, message: str, *, others_came: bool) -> None:
        super().__init__(message)
        self.others_came = others_came


class Suspicion:
    """Watches the fetches of one connection to one mailbox.

    With `always_singly` every message counts as one over which a conversation ended before.
    """

    def __init__(
        self,
        account: str,
        mailbox: str,
        connection: ImapMailbox,
        *,
        quarantine: Quarantine,
        suspects: Suspects,
        observe: Observe,
        always_singly: bool = False,
    ) -> None:
        self._account = account
        self._mailbox = mailbox
        self._connection = connection
        self._quarantine = quarantine
        self._suspects = suspects
        self._observe = observe
        self._always_singly = always_singly
        self._deaths: dict[FetchStep, dict[int, int]] | None = None

    def split(self, uids: Sequence[int], step: FetchStep) -> tuple[list[int], list[int]]:
        """Return the UIDs to ask for together, and those to ask for one by one."""
        if self._always_singly:
            return [], list(uids)
        counts = self._known()[step]
        if not counts:
            return list(uids), []
        singly = [uid for uid in uids if counts.get(uid, 0) >= DEATHS_TOGETHER]
        return [uid for uid in uids if counts.get(uid, 0) < DEATHS_TOGETHER], singly

    def others_came(self, step: FetchStep) -> bool:
        """Whether the server has sent messages over this connection."""
        return bool(self._connection.bodies_read or (step == "summary" and self._connection.summaries_read))

    @contextmanager
    def watching(self, uids: Sequence[int], step: FetchStep, *, singly: bool) -> Iterator[None]:
        """Ask for `uids` inside: write down when the conversation ends over them, forget it when it does not.

        Raises MessageQuarantined when it ends over a single message, or over one that the server names itself.
        """
        others_came = self.others_came(step)
        try:
            if not self._always_singly and (singly or any(uid in self._known()[step] for uid in uids)):
                with self._connection.limited_silence(SUSPECT_SECONDS):
                    yield
            else:
                yield
        except (IMAPThrottledError, MailboxGone):
            raise
        except MessageTooLong as error:
            uid = error.uid if error.uid in uids else uids[0] if singly or len(uids) == 1 else None
            if uid is None:
                self._add(uids, step)
                raise
            self._quarantine_over(uid, error, step, others_came=True)
        except IMAPConnectionError as error:
            if not singly:
                self._add(uids, step)
                raise
            self._quarantine_over(uids[0], error, step, others_came=others_came)
        self._clear(uids, step)

    def _quarantine_over(self, uid: int, error: IMAPConnectionError, step: FetchStep, *, others_came: bool) -> None:
        added = self._quarantine.add({uid: error}, proven=others_came, breaks=True)
        self._observe(Quarantined(self._account, self._mailbox, uid, error, added[uid].tries))
        self._clear([uid], step)
        text = f"the conversation ended over UID {uid}, which is in quarantine now: {error}"
        raise MessageQuarantined(text, others_came=others_came) from error

    def _known(self) -> dict[FetchStep, dict[int, int]]:
        if self._deaths is None:
            self._deaths = self._suspects.deaths()
        return self._deaths

    def _add(self, uids: Sequence[int], step: FetchStep) -> None:
        self._deaths = None
        with suppress(TransientError):  # the error of the server is the one to tell
            self._suspects.add(uids, step)

    def _clear(self, uids: Sequence[int], step: FetchStep) -> None:
        counts = self._known()[step]
        if counts and (cleared := [uid for uid in uids if counts.pop(uid, None)]):
            self._suspects.clear(cleared, step)
