"""What is said to an IMAP server: open a mailbox read-only, list, fetch, wait. Belongs to one thread.

Errors come out as ours (`imap_errors` says which): after an IMAPConnectionError the object is only good for `close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from imapclient.exceptions import IMAPClientError, ProtocolError

from email_ingestion.mailbox.connection import ImapConnection
from email_ingestion.mailbox.fetch_parser import read
from email_ingestion.mailbox.folders import mailbox_for
from email_ingestion.mailbox.imap_errors import MessagesRefused, concerns_messages, translate
from email_ingestion.mailbox.message_summary import (
    LabelChange,
    MessageSummary,
    extract_bodies,
    parse_label_changes,
    parse_summary,
    split_labels,
    to_text,
)
from email_ingestion.mailbox.pipelining import Ahead, Span, item_of, name_of

IDLE_DONE_SECONDS = 15.0  # the end of an IDLE costs a server nothing: one that takes longer is gone
UID_WINDOW = 5_000  # UIDs asked for at once: a list of 20,000 costs 4 MB, and imaplib refuses lines over 1 MB
MAX_FETCH_UIDS = 500  # UIDs in one command: RFC 2683 section 3.2.1.5 asks for lines under 8,000 octets


@dataclass(frozen=True, slots=True)
class SelectedMailbox:
    """A mailbox as EXAMINE describes it."""

    name: str
    uidvalidity: int
    uidnext: int
    exists: int
    modseq: int = 0  # HIGHESTMODSEQ (RFC 7162); 0 where the server keeps none


@dataclass(frozen=True, slots=True)
class DateRange:
    """Days by the server's calendar, both included; `until` None is without end. With a label, only what has it."""

    since: date
    until: date | None = None
    label: str | None = None


class ImapMailbox(ImapConnection):
    """A conversation about the mail of one account."""

    def find_mailbox(self, setting: str) -> str:
        r"""The mailbox for a setting: `auto` is the one with the \All attribute on Gmail, else INBOX.

        Found by its attribute, never by its name: Gmail names it in the user's language. So is `\Junk` or `\Trash`.
        Raises ConfigurationError when there is no such mailbox.
        """
        with self._command("list the mailboxes of"):
            folders = self._client.list_folders()
        return mailbox_for(setting, folders, gmail=self.is_gmail)

    def examine(self, name: str) -> SelectedMailbox:
        """EXAMINE: read-only, so that nothing we do can set a flag."""
        with self._command("open a mailbox of"):
            found = self._client.select_folder(name, readonly=True)
            self._announced()
            self._ahead = Ahead(self._client._imap)  # noqa: SLF001 - what was expected has the UIDs of another mailbox
        modseq = _one(found.get(b"HIGHESTMODSEQ"))
        return SelectedMailbox(
            name, int(found[b"UIDVALIDITY"]), int(found.get(b"UIDNEXT", 0)), int(found[b"EXISTS"]), modseq
        )

    def list_uids(self, first_uid: int, last_uid: int) -> list[int]:
        """The UIDs from `low` to `high`, ascending; ask for at most LIST_WINDOW at a time."""
        with self._command("search"):
            found = self._client.search(["UID", f"{first_uid}:{last_uid}"])
        return sorted(uid for uid in found if first_uid <= uid <= last_uid)

    def list_uids_from(self, first_uid: int) -> list[int]:
        """The UIDs from `low` to the newest, ascending."""
        with self._command("search"):
            self._announced()  # what was announced before, this search sees
            found = self._client.search(["UID", f"{first_uid}:*"])
            if self._announced():  # with this answer, which did not see it yet
                found = self._client.search(["UID", f"{first_uid}:*"])
        return sorted(uid for uid in found if uid >= first_uid)  # `n:*` always holds the last message (RFC 3501, 6.4.8)

    def list_uids_between(self, first_uid: int, last_uid: int, date_range: DateRange) -> list[int]:
        """The UIDs from `low` to `high` whose date is in `period`, ascending; at most LIST_WINDOW at a time."""
        criteria: list[Any] = ["UID", f"{first_uid}:{last_uid}", "SINCE", date_range.since]
        if date_range.until:
            criteria += ["BEFORE", date_range.until + timedelta(days=1)]
        if date_range.label:
            criteria += ["X-GM-LABELS", date_range.label]
        with self._command("search"):
            found = self._client.search(criteria, charset=None if (date_range.label or "").isascii() else "UTF-8")
        return sorted(uid for uid in found if first_uid <= uid <= last_uid)

    def fetch_summaries(self, uids: Sequence[int]) -> list[MessageSummary]:
        """Sizes, dates, flags and labels, ascending by UID; at most FETCH_MOST at a time. Vanished UIDs are missing."""
        items = ["RFC822.SIZE", "INTERNALDATE", "FLAGS"]
        if self.is_gmail:
            items += ["X-GM-MSGID", "X-GM-THRID", "X-GM-LABELS"]
        found = self._fetch(uids, items)
        return [parse_summary(uid, data) for uid, data in sorted(found.items()) if b"RFC822.SIZE" in data]

    def fetch_label_changes(self, low: int, high: int | None, since: int) -> tuple[list[LabelChange], bool]:
        """Those from `low` to `high` (None: the newest) that changed since the MODSEQ `since`; labels and no more.

        Also says whether the server sent all of them.
        """
        uids, changed = f"{low}:{high or '*'}", f"(CHANGEDSINCE {since})"
        with self._command("fetch from"):
            try:
                found = self._changed(uids, "(X-GM-MSGID X-GM-LABELS)", changed)
            except MessagesRefused as error:
                return parse_label_changes(error.found, low), False
            except ProtocolError:  # because of odd labels: each by itself is understood
                found = self._changed(uids, "(X-GM-MSGID)", changed)
                for uid, data in found.items():
                    data.update(self._with_odd_labels(uid, ["X-GM-MSGID", "X-GM-LABELS"]).get(uid, {}))
        return parse_label_changes(found, low), True

    def _changed(self, uids: str, items: str, changed: str) -> dict[int, dict[bytes, Any]]:
        """Not imapclient's fetch: that takes no ranges. Raises as `_fetch`."""
        status, answers = self._client._imap.uid("FETCH", uids, items, changed)  # noqa: SLF001 - the only way
        if status != "OK":
            error = IMAPClientError(f"fetch failed: {to_text(answers[-1])}")
            if not concerns_messages(error):
                raise error
            raise MessagesRefused(f"the IMAP server does not send some labels: {error}", self._left())
        return read([each for each in answers if each])

    def fetch_bodies(self, uids: Sequence[int]) -> dict[int, bytes]:
        """The raw messages, by UID; all of them are in memory at once. Vanished UIDs are missing."""
        found = self._expected(uids)
        return extract_bodies(self._fetch(uids, [item_of(None)])) if found is None else found

    def fetch_part(self, uid: int, offset: int, size: int) -> bytes | None:
        """A part of a raw message, shorter at its end and empty behind it; None when the message vanished."""
        span = (offset, size)
        expected = self._expected([uid], span)
        if expected is not None:
            return expected.get(uid)
        found = self._fetch([uid], [item_of(span)]).get(uid)
        return None if found is None else found.get(name_of(span)) or b""

    def prefetch(self, uids: Sequence[int], span: Span | None = None) -> None:
        """Have the server get ready what `fetch_bodies` or `fetch_part` is to ask for soon, with the same arguments.

        One that wants us to slow down is left in peace.
        """
        if not self._meter.pace:
            with self._command("fetch from", alone=False):
                self._ahead.ask(uids, span)

    def _expected(self, uids: Sequence[int], span: Span | None = None) -> dict[int, bytes] | None:
        """What came of it; None when it was not expected."""
        with self._reading("fetch from"):
            asked = self._ahead.take(uids, span)
            if asked and not asked.whole and asked.status != "OK":
                error = IMAPClientError(f"FETCH command error: {asked.status} {asked.said}")
                raise _refusal(error, {uid: {name_of(span): body} for uid, body in asked.bodies.items()}) from error
        return asked.bodies if asked else None

    def _fetch(self, uids: Sequence[int], items: list[str]) -> dict[int, dict[bytes, Any]]:
        """Raises MessagesRefused, with what came, when the server did not send some for their own sake."""
        with self._command("fetch from"):
            try:
                found = read(self._answers(uids, items))
                return {uid: found[uid] for uid in uids if uid in found}  # a server may speak of others in passing
            except self._client.AbortError:
                raise
            except ProtocolError as error:
                if len(uids) == 1 and "X-GM-LABELS" in items:
                    return self._with_odd_labels(uids[0], items)
                raise MessagesRefused("an answer of the IMAP server cannot be read", {}) from error
            except IMAPClientError as error:
                raise _refusal(error, self._left()) from error

    def _answers(self, uids: Sequence[int], items: list[str]) -> list[Any]:
        """As imapclient's fetch, without its parser."""
        imap = self._client._imap  # noqa: SLF001 - as there
        tag = imap._command("UID", "FETCH", ",".join(map(str, uids)), f"({' '.join(items)})")  # noqa: SLF001
        status, said = imap._command_complete("FETCH", tag)  # noqa: SLF001
        self._client._checkok("fetch", status, said)  # noqa: SLF001
        return list(imap._untagged_response(status, said, "FETCH")[1])  # noqa: SLF001

    def _left(self) -> dict[int, dict[bytes, Any]]:
        """What came before a FETCH was refused; imaplib keeps it."""
        answers = self._client._imap.untagged_responses.pop("FETCH", [])  # noqa: SLF001 - where imaplib leaves it
        try:
            return read(answers)
        except ProtocolError:
            return {}

    def _with_odd_labels(self, uid: int, items: list[str]) -> dict[int, dict[bytes, Any]]:
        """Everything of one message, its labels split by hand: imapclient stumbles over an unbalanced bracket."""
        found: dict[int, dict[bytes, Any]] = dict(
            self._client.fetch([uid], [item for item in items if item != "X-GM-LABELS"])
        )
        _, answers = self._client._imap.uid("FETCH", str(uid), "(X-GM-LABELS)")  # noqa: SLF001 - unparsed
        for answer in answers:
            if uid in found and isinstance(answer, bytes) and b"X-GM-LABELS" in answer:
                found[uid][b"X-GM-LABELS"] = split_labels(answer)
        return found

    def wait(self, seconds: float) -> None:
        """Return when the server says something, after `seconds`, or on `interrupt`; the caller lists again either way.

        Not imapclient's idle_check: it misses an EXISTS in the segment of `+ idling`, loses a split line, and spins on
        a dead socket. Whatever comes is left to `idle_done`, which reads it as every other answer.
        """
        with self._command("wait for"):
            if self._announced():
                return
            if not self._client.has_capability("IDLE"):
                self._until_audible([], seconds)
                self._client.noop()
                return
            self._client.idle()
            if not self._peek():
                self._until_audible([self._client.socket()], seconds)
            self._raise_bye()
            with self._answering(IDLE_DONE_SECONDS):
                self._client.idle_done()

    def _announced(self) -> bool:
        """Whether new mail was announced since the last listing began, in passing, in the answer to another command."""
        untagged = self._client._imap.untagged_responses  # noqa: SLF001 - where imaplib leaves it
        return bool(untagged.pop("EXISTS", None))


def _refusal(error: IMAPClientError, found: dict[int, dict[bytes, Any]]) -> Exception:
    """What the end of a FETCH means, where `found` came before it."""
    if not concerns_messages(error):
        return translate(error, "fetch from")
    return MessagesRefused(f"the IMAP server does not send some messages: {error}", found)


def _one(value: Any) -> int:
    """The number of a response code, which imapclient gives as such or in a tuple."""
    return int(value[0] if isinstance(value, (tuple, list)) else value or 0)
