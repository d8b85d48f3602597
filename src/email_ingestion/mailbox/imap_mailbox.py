"""Reading a mailbox over IMAP: find and open it read-only, fetch, wait for new mail. `uid_listing` lists its UIDs.

Every error comes out as one of ours (`imap_errors`): after an IMAPConnectionError the object is only good for `close`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imapclient.exceptions import IMAPClientError

from email_ingestion.errors import ConfigurationError
from email_ingestion.mailbox.fetch_parser import FetchData, parse
from email_ingestion.mailbox.imap_errors import MailboxGone, MessagesRefused, concerns_messages, translate
from email_ingestion.mailbox.message_summary import (
    LabelChange,
    MessageSummary,
    is_summary,
    parse_label_changes,
    parse_message_id,
    parse_summary,
    to_text,
)
from email_ingestion.mailbox.pipelining import Body, ByteRange, FetchPipeline, body_item, body_key, find_body
from email_ingestion.mailbox.uid_listing import UidListing, uid_range_end

IDLE_DONE_SECONDS = 15.0  # the end of an IDLE costs a server nothing: one that takes longer is gone
MAX_ITEM_BYTES = 1024 * 1024  # of a literal where no body was asked for: labels and flags have a few bytes
MAX_FETCH_UIDS = 500  # UIDs in one command: RFC 2683 section 3.2.1.5 asks for lines under 8,000 octets


@dataclass(frozen=True, slots=True)
class SelectedMailbox:
    """A mailbox as EXAMINE describes it."""

    name: str
    uidvalidity: int
    uidnext: int
    exists: int
    modseq: int = 0  # HIGHESTMODSEQ (RFC 7162); 0 where the server keeps none


class ImapMailbox(UidListing):
    """A connection that reads the mail of one account and never changes it."""

    summaries_read = 0
    bodies_read = 0  # messages or parts of them

    def find_mailbox(self, setting: str) -> str:
        r"""Return the name of the mailbox for a setting: a name, an attribute as `\Junk`, or `auto`.

        `auto` is the one with the \All attribute on Gmail, else INBOX. An attribute is better than a name, for Gmail
        translates names into the user's language. Raises ConfigurationError when there is no such mailbox.
        """
        with self._command("list the mailboxes of"):
            folders = self._client.list_folders()
        return _choose_mailbox(setting, folders, gmail=self.is_gmail)

    def examine(self, name: str) -> SelectedMailbox:
        """Open a mailbox by EXAMINE: read-only, so that no command can set a flag."""
        with self._command("open a mailbox of"):
            found = self._client.select_folder(name, readonly=True)
            self._pop_announcement()
            self._pipeline = FetchPipeline(self._imap4)  # bodies that were prefetched have UIDs of another mailbox
        uidvalidity, uidnext = int(found[b"UIDVALIDITY"]), int(found.get(b"UIDNEXT", 0))
        return SelectedMailbox(
            name, uidvalidity, uidnext, int(found[b"EXISTS"]), _response_code(found.get(b"HIGHESTMODSEQ"))
        )

    def is_replaced(self, mailbox: SelectedMailbox) -> bool:
        """Whether another mailbox has taken the name of the one that is open.

        Cyrus, for one, lets a session go on with the old one, which stays empty. Raises MailboxGone when there is none.
        """
        with self._command("look at a mailbox of"):
            try:
                found = self._client.folder_status(mailbox.name, ["UIDVALIDITY"])
            except self._client.AbortError:
                raise
            except IMAPClientError as error:
                if isinstance(gone := translate(error, "look at"), MailboxGone):
                    raise gone from error
                return False  # a server may refuse to tell it of the mailbox that is open
        return int(found.get(b"UIDVALIDITY", mailbox.uidvalidity)) != mailbox.uidvalidity

    def fetch_summaries(self, uids: Sequence[int]) -> list[MessageSummary]:
        """Fetch sizes, dates, flags and labels, ascending by UID; at most MAX_FETCH_UIDS. Vanished UIDs are missing."""
        items = ["RFC822.SIZE", "INTERNALDATE", "FLAGS"]
        if self.is_gmail:
            items += ["X-GM-MSGID", "X-GM-THRID", "X-GM-LABELS"]
        found = self._fetch(uids, items)
        self.summaries_read += len(found)
        return [parse_summary(uid, data) for uid, data in sorted(found.items()) if is_summary(data) or len(uids) == 1]

    def fetch_message_ids(self, uids: Sequence[int]) -> dict[int, str | None]:
        """Fetch the Message-ID fields, at most MAX_FETCH_UIDS; None for a message without one.

        Vanished UIDs are missing, and those that the server refuses.
        """
        try:
            found = self._fetch(uids, ["BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)]"])
        except MessagesRefused as error:
            found = error.found
        return {uid: parse_message_id(data) for uid, data in found.items()}

    def fetch_label_changes(self, first_uid: int, last_uid: int, modseq: int) -> tuple[list[LabelChange], bool]:
        """Fetch the labels of messages that changed since `modseq`, and whether the server sent all of them."""
        uid_set, modifier = f"{first_uid}:{uid_range_end(last_uid)}", f"(CHANGEDSINCE {modseq})"
        with self._command("fetch from"):
            try:
                found = self._fetch_changed(uid_set, "(X-GM-MSGID X-GM-LABELS)", modifier)
            except MessagesRefused as error:
                return parse_label_changes(error.found, first_uid), False
        return parse_label_changes(found, first_uid), True

    def fetch_bodies(self, uids: Sequence[int], max_bytes: int = sys.maxsize) -> dict[int, bytes | None]:
        """Fetch raw messages, by UID, prefetched or not; vanished ones are missing, and None stands for NIL.

        Raises MessagesRefused, with the messages that came, when the server refused some, and MessageTooLong for one
        of more than `max_bytes`.
        """
        bodies = self._take_prefetched(uids)
        if bodies is None:
            found = self._fetch(uids, [body_item(None)], max_bytes)
            bodies = {uid: body for uid, data in found.items() if (body := find_body(data, None))}
        self.bodies_read += len(bodies)
        return {uid: body.content for uid, body in bodies.items()}

    def fetch_part(self, uid: int, offset: int, size: int, max_bytes: int = sys.maxsize) -> Body | None:
        """Fetch `size` bytes of a raw message, fewer at its end and none behind it; None when it vanished.

        Some servers send the whole message instead, which has at most `max_bytes`. Raises as `fetch_bodies`.
        """
        byte_range = (offset, size)
        bodies = self._take_prefetched([uid], byte_range)
        if bodies is None:
            data = self._fetch([uid], [body_item(byte_range)], max_bytes).get(uid, {})
            body = find_body(data, byte_range)
        else:
            body = bodies.get(uid)
        self.bodies_read += body is not None
        return body

    def prefetch(self, uids: Sequence[int], byte_range: ByteRange | None = None, max_bytes: int = sys.maxsize) -> None:
        """Have the server send the bodies (or a part of one) that `fetch_bodies` or `fetch_part` will soon ask for.

        Does nothing while the server asks for slower commands.
        """
        if not self.throttle_delay:
            with self._command("fetch from", drain=False):
                self._pipeline.request(uids, byte_range, max_bytes)

    def wait(self, seconds: float) -> None:
        """Return when the server announces something, after `seconds`, or on `interrupt`; list UIDs in each case.

        Not imapclient's idle_check: it misses an EXISTS in the segment of `+ idling`, loses a split line, and spins on
        a dead socket. Responses are left to `idle_done`, which reads them as every other command does.
        """
        with self._command("wait for"):
            if self._pop_announcement():
                return
            if not self._client.has_capability("IDLE"):
                self._wait_readable([], seconds)
                self._client.noop()
                return
            self._client.idle()
            if not self._imap4.peek():
                self._wait_readable([self._client.socket()], seconds)
            self._raise_bye()
            with self.limited_silence(IDLE_DONE_SECONDS):
                self._client.idle_done()

    def _take_prefetched(self, uids: Sequence[int], byte_range: ByteRange | None = None) -> dict[int, Body] | None:
        """Return the prefetched bodies, or None when these were not prefetched."""
        with self._reading("fetch from"):
            fetch = self._pipeline.take(uids, byte_range)
            if fetch and not fetch.is_complete and fetch.status != "OK":
                error = IMAPClientError(f"FETCH command error: {fetch.status} {fetch.text}")
                came = {uid: {body_key(byte_range): body.content} for uid, body in fetch.bodies.items()}
                raise _fetch_error(error, came) from error
        return fetch.bodies if fetch else None

    def _fetch(self, uids: Sequence[int], items: list[str], max_bytes: int = MAX_ITEM_BYTES) -> FetchData:
        """Raises MessagesRefused, with the messages that came, when the server refused some for their own sake."""
        with self._command("fetch from"), self._imap4.limited_literals(max_bytes):
            if max_bytes > MAX_ITEM_BYTES:
                self._imap4.expect_bodies(len(uids), max_bytes)
            try:
                found = parse(self._imap4.uid_fetch(",".join(map(str, uids)), f"({' '.join(items)})"))
                return {uid: found[uid] for uid in uids if uid in found}  # a server may send others in passing
            except self._client.AbortError:
                raise
            except IMAPClientError as error:
                raise _fetch_error(error, self._pop_partial()) from error

    def _fetch_changed(self, uid_set: str, items: str, modifier: str) -> FetchData:
        """Unlike imapclient's fetch, takes a range of UIDs. Raises as `_fetch`."""
        status, responses = self._imap4.uid("FETCH", uid_set, items, modifier)
        if status == "OK":
            return parse([response for response in responses if response])
        error = IMAPClientError(f"fetch failed: {to_text(responses[-1])}")
        if not concerns_messages(error):
            raise error
        raise MessagesRefused(f"the IMAP server does not send some labels: {error}", self._pop_partial())

    def _pop_partial(self) -> FetchData:
        """Return the messages that came before a FETCH was refused; imaplib keeps them."""
        return parse(self._imap4.pop_fetch_responses())


def _choose_mailbox(setting: str, folders: Sequence[tuple[Any, Any, Any]], *, gmail: bool) -> str:
    """Return the name among `folders`, which are LIST's (attributes, delimiter, name). Raises ConfigurationError."""
    if setting.startswith("\\"):
        name = _name_with_attribute(folders, setting)
        if name is None:
            raise ConfigurationError(
                f"IMAP_MAILBOX {setting}: no mailbox has this attribute, or it is hidden from IMAP"
            )
        return name
    if setting != "auto":
        names = [str(name) for _, _, name in folders]
        if setting not in names:
            raise ConfigurationError(f"IMAP_MAILBOX {setting!r} does not exist; there are: {', '.join(names[:20])}")
        return setting
    if not gmail:
        return "INBOX"
    name = _name_with_attribute(folders, "\\All")
    if name is None:
        raise ConfigurationError(
            "the mailbox of all mail is hidden: tick 'Show in IMAP' for All Mail in Gmail's settings (Labels), "
            "or set IMAP_MAILBOX=INBOX"
        )
    return name


def _name_with_attribute(folders: Sequence[tuple[Any, Any, Any]], attribute: str) -> str | None:
    for attributes, _, name in folders:
        if attribute.casefold() in {to_text(each).casefold() for each in attributes}:
            return str(name)
    return None


def _fetch_error(error: IMAPClientError, found: FetchData) -> Exception:
    """Return our error for a failed FETCH, where `found` came before it failed."""
    if not concerns_messages(error):
        return translate(error, "fetch from")
    return MessagesRefused(f"the IMAP server does not send some messages: {error}", found)


def _response_code(value: Any) -> int:
    """Return the number of a response code, which imapclient gives as such or in a tuple; 0 for None."""
    return int(value[0] if isinstance(value, (tuple, list)) else value or 0)
