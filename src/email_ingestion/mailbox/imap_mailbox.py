"""Reading a mailbox over IMAP: find and open it read-only, fetch. `uid_listing` lists its UIDs.

Every error comes out as one of ours (`imap_errors`): after an IMAPConnectionError the object is only good for `close`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imapclient.exceptions import IMAPClientError

from email_ingestion.errors import ConfigurationError, SessionExpired, quote_server
from email_ingestion.mailbox.fetch_parser import FetchData, parse
from email_ingestion.mailbox.imap_connection import LOGIN_SECONDS
from email_ingestion.mailbox.imap_errors import (
    MessagesRefused,
    UnusableServer,
    concerns_messages,
    is_refusal,
    translate,
    wants_identification,
)
from email_ingestion.mailbox.mailbox_names import (
    INBOX,
    ListedMailbox,
    choose_mailbox,
    encode_name,
    has_attribute,
    parse_list,
)
from email_ingestion.mailbox.message_summary import (
    MailboxChanges,
    MessageSummary,
    is_summary,
    parse_mark_changes,
    parse_message_id,
    parse_summary,
    to_text,
)
from email_ingestion.mailbox.pipelining import Body, ByteRange, FetchPipeline, body_item, body_key, find_body
from email_ingestion.mailbox.uid_listing import UidListing, parse_vanished, uid_range_end

CONDSTORE = "CONDSTORE"
QRESYNC = "QRESYNC"
STATUS = "STATUS"
SPECIAL_USE = "RETURN (SPECIAL-USE)"
REPLACED = "the mailbox was replaced by another one of its name"
MAX_ITEM_BYTES = 1024 * 1024  # of a literal where no body was asked for: labels and flags have a few bytes

_UIDVALIDITY = re.compile(rb"UIDVALIDITY (\d+)", re.IGNORECASE)
_HIGHESTMODSEQ = re.compile(rb"HIGHESTMODSEQ (\d+)", re.IGNORECASE)
_UIDNEXT = re.compile(rb"UIDNEXT (\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SelectedMailbox:
    """A mailbox as EXAMINE describes it."""

    name: str
    uidvalidity: int
    uidnext: int
    exists: int
    modseq: int = 0  # HIGHESTMODSEQ (RFC 7162); 0 where the server keeps none

    def check_same(self, found: SelectedMailbox) -> None:
        """Raise SessionExpired when what was opened under its name now is another mailbox."""
        if found.uidvalidity != self.uidvalidity:
            raise SessionExpired(REPLACED)


class ImapMailbox(UidListing):
    """A connection that reads the mail of one account and never changes it."""

    summaries_read = 0
    bodies_read = 0  # messages or parts of them
    _tells_deletions = False

    def follow_deletions(self) -> None:
        """Have the server tell what is deleted, if it can (QRESYNC, RFC 7162); call it before a mailbox is opened.

        From then on it says VANISHED where it would say EXPUNGE, and HIGHESTMODSEQ in each EXAMINE.
        """
        if self._has(QRESYNC):
            with self._command("enable QRESYNC of"), self._imap4.limited_time(LOGIN_SECONDS):
                self._tells_deletions = bool(self._try(QRESYNC, lambda: self._imap4.enable_extension(QRESYNC)))

    @property
    def tells_deletions(self) -> bool:
        """Whether the server tells which messages were deleted."""
        return self._tells_deletions and QRESYNC not in self.refused

    def find_mailbox(self, setting: str) -> ListedMailbox:
        r"""Return the mailbox for a setting: a name, an attribute as `\Junk`, or `auto`.

        `auto` is the one with the \All attribute on Gmail, else INBOX. An attribute is better than a name, for Gmail
        translates names into the user's language. Raises ConfigurationError when there is no such mailbox.
        """
        if setting.upper() == INBOX or (setting == "auto" and not self.is_gmail):
            return choose_mailbox(INBOX, (), gmail=False)
        with self._command("list the mailboxes of"):
            attribute = r"\All" if setting == "auto" else setting
            if not attribute.startswith("\\"):
                return self._find_name(setting)
            mailboxes = parse_list(self._imap4.list_mailboxes("LIST"))
            if not has_attribute(attribute, mailboxes):
                mailboxes += self._list_special_use(attribute)
        return choose_mailbox(setting, mailboxes, gmail=self.is_gmail)

    def _find_name(self, name: str) -> ListedMailbox:
        """Return the mailbox of a name: listed among all, or by itself, as in hidden namespaces, or not at all."""
        encoded = encode_name(name)
        try:
            mailboxes = parse_list(self._imap4.list_mailboxes("LIST"))
            with suppress(ConfigurationError):
                return choose_mailbox(name, mailboxes, gmail=self.is_gmail)
            hidden = parse_list(self._imap4.list_mailboxes("LIST", pattern=encoded.decode()))
        except self._client.AbortError:
            raise
        except IMAPClientError as error:
            if not is_refusal(error):
                raise
            return ListedMailbox(encoded, name, frozenset())  # EXAMINE shows whether there is one
        return choose_mailbox(name, [*hidden, *mailboxes], gmail=self.is_gmail)

    def _list_special_use(self, attribute: str) -> list[ListedMailbox]:
        """List the mailboxes with attributes that some servers tell only who asks for them (RFC 6154), or in XLIST."""
        found = parse_list(self._try("LIST RETURN", lambda: self._imap4.list_mailboxes("LIST", SPECIAL_USE)) or ())
        if not has_attribute(attribute, found) and self._has("XLIST"):
            found += parse_list(self._try("XLIST", lambda: self._imap4.list_mailboxes("XLIST")) or ())
        return found

    def examine(self, mailbox: ListedMailbox | str) -> SelectedMailbox:
        """Open a mailbox by EXAMINE: read-only, so that no command can set a flag.

        Raises UnusableServer when the server gives it no UIDVALIDITY; what else it leaves out is found out.
        """
        if isinstance(mailbox, str):
            mailbox = self._by_name(mailbox)
        with self._command("open a mailbox of"):
            self._examine(mailbox)
            self._mailbox = mailbox
            self._pipeline = FetchPipeline(self._imap4)  # bodies that were prefetched have UIDs of another mailbox
            untagged = self._imap4.untagged_responses
            exists, modseq = _last_number(untagged.get("EXISTS")), _last_number(untagged.get("HIGHESTMODSEQ"))
            uidvalidity, uidnext = _last_number(untagged.get("UIDVALIDITY")), _last_number(untagged.get("UIDNEXT"))
            given = "UIDVALIDITY" in untagged  # be it 0, which RFC 3501 does not allow: it compares as any other does
            quoted = b"; ".join(line for line in untagged.get("OK", ()) if isinstance(line, bytes))
            self._pop_announcement()
            self._listed = None
            if not uidvalidity or not uidnext:
                asked = self._try(STATUS, lambda: self._imap4.status_of(mailbox.raw)) or b""
                uidvalidity = uidvalidity or _last_number(_UIDVALIDITY.findall(asked))
                uidnext = uidnext or _last_number(_UIDNEXT.findall(asked))
            if not uidnext:
                uidnext = 1 + ((self._newest() or 0) if exists else 0)
        if not uidvalidity and not given:
            raise UnusableServer(
                "the mail server gives the mailbox no UIDVALIDITY, so the numbers of its messages mean nothing in "
                f"another session (RFC 3501, section 2.3.1.1): {quote_server(to_text(quoted))}"
            )
        return SelectedMailbox(mailbox.name, uidvalidity, uidnext, exists, modseq)

    @property
    def examined(self) -> ListedMailbox:
        """The mailbox that was opened last, for opening it again after another one."""
        return self._mailbox

    def _by_name(self, name: str) -> ListedMailbox:
        """Return a mailbox as the server lists it where its name may be written in several ways."""
        encoded = encode_name(name)
        if encoded != name.encode():
            with suppress(ConfigurationError):
                return self.find_mailbox(name)
        return ListedMailbox(encoded, name, frozenset())

    def _examine(self, mailbox: ListedMailbox) -> None:
        try:
            self._imap4.examine(mailbox.raw)
        except IMAPClientError as error:
            if not wants_identification(error) or self._has("ID"):
                raise
            self._identify()  # though it does not say that it knows the command
            self._imap4.examine(mailbox.raw)

    def is_replaced(self, mailbox: SelectedMailbox) -> bool:
        """Open the mailbox once more, and return whether another one has taken its name.

        Nothing else tells on every server: a Dovecot answers STATUS out of the open mailbox, and a Cyrus lets a session
        go on with the old one, which stays empty. Raises MailboxGone when there is none.
        """
        return self.reopen().uidvalidity != mailbox.uidvalidity

    def reopen(self) -> SelectedMailbox:
        """Open the mailbox once more, to see it as it is now. Raises MailboxGone when there is none."""
        return self.examine(self._mailbox)

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

    def highest_modseq(self) -> int:
        """Ask for the HIGHESTMODSEQ of the open mailbox; 0 where there is none.

        Servers other than Gmail tell it in EXAMINE only to whom has shown that he knows CONDSTORE, as by this question
        (RFC 7162, section 3.1).
        """
        if not self._has(CONDSTORE):
            return 0
        raw = self._mailbox.raw
        asked = self._try(CONDSTORE, lambda: self._imap4.status_of(raw, "(HIGHESTMODSEQ)")) or b""
        return _last_number(_HIGHESTMODSEQ.findall(asked))

    def fetch_changes(
        self, first_uid: int, last_uid: int, modseq: int, *, with_deletions: bool = False
    ) -> MailboxChanges:
        """Fetch labels and flags of messages that changed since `modseq`, and the UIDs that were deleted since.

        The latter only where the server `tells_deletions`.
        """
        if CONDSTORE in self.refused:
            return MailboxChanges([], [], is_whole=False)
        items, whole = "(X-GM-MSGID X-GM-LABELS FLAGS)" if self.is_gmail else "(FLAGS)", True
        vanished: list[bytes] = []
        with self._command("fetch from"):
            try:
                found = None
                if with_deletions and self.tells_deletions:
                    # Not to `*`: that is the last message, and those behind it may be what was deleted.
                    uid_set, modifier = f"{first_uid}:{last_uid}", f"(CHANGEDSINCE {modseq} VANISHED)"
                    found = self._try(QRESYNC, lambda: parse(self._imap4.uid_fetch(uid_set, items, modifier)))
                    vanished = self._imap4.pop_vanished()  # `(EARLIER)`, or said in passing, as Dovecot does
                if found is None:
                    uid_set = f"{first_uid}:{uid_range_end(last_uid)}"
                    found = self._fetch_changed(uid_set, items, f"(CHANGEDSINCE {modseq})")
            except MessagesRefused as error:
                found, whole = error.found, False
        marks = parse_mark_changes(found, first_uid, is_gmail=self.is_gmail)
        return MailboxChanges(marks, parse_vanished(vanished, (first_uid, last_uid)), whole)

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
                found = parse(self._imap4.uid_fetch(",".join(map(str, uids)), f"({' '.join(['UID', *items])})"))
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
            if not is_refusal(error):
                raise error
            self.do_without(CONDSTORE, str(translate(error, "ask for changes")))
            raise MessagesRefused("the IMAP server does not tell what changed", {})
        raise MessagesRefused(f"the IMAP server does not send some labels: {error}", self._pop_partial())

    def _pop_partial(self) -> FetchData:
        """Return the messages that came before a FETCH was refused; imaplib keeps them."""
        return parse(self._imap4.pop_fetch_responses())


def _fetch_error(error: IMAPClientError, found: FetchData) -> Exception:
    """Return our error for a failed FETCH, where `found` came before it failed."""
    if not concerns_messages(error):
        return translate(error, "fetch from")
    return MessagesRefused(f"the IMAP server does not send some messages: {error}", found)


def _last_number(values: Sequence[Any] | None) -> int:
    """Return the number that a server told last, 0 for none."""
    number = re.match(rb"\d{1,20}", values[-1]) if values and isinstance(values[-1], bytes) else None
    return int(number[0]) if number else 0
