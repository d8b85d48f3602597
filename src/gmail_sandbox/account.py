"""The account: every message once, every mailbox a view on the messages, one MODSEQ over all.

It decides where a message belongs, and assigns and saves identities and UIDs before a client sees them. It speaks no
protocol.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from gmail_sandbox import folders
from gmail_sandbox.folders import FIRST_LABEL_UIDVALIDITY, AccountSettings, canonical_label
from gmail_sandbox.mailbox import Mailbox
from gmail_sandbox.message import Message, MessageLocation, ThreadHeaders, check_flags, interned, read_thread_headers
from gmail_sandbox.sample_mail import bulk_date, bulk_message, bulk_message_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gmail_sandbox.state import State

# Gmail shows a star and a draft both as flag and as label.
_MIRRORED = {"\\Flagged": folders.STARRED, "\\Draft": folders.DRAFT}
_BULK_BATCH = 5000


@dataclass(frozen=True)
class DeliveryResult:
    """The outcome of a delivery: `merged` when a message with that Message-ID was already there."""

    message: Message
    merged: bool


class UnknownMessage(LookupError):
    """There is no message with this X-GM-MSGID."""


class GmailAccount:
    """One Gmail account. Not thread-safe: it belongs to the event loop's thread."""

    def __init__(
        self,
        user: str,
        state: State,
        *,
        recipe: Callable[[int], bytes] = bulk_message,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read the account back from `state`, or start an empty one."""
        self.user = user
        self.messages: dict[int, Message] = {}
        self.mailboxes: dict[str, Mailbox] = {}
        self.writing = state.writing
        self._state = state
        self._counters = AccountCounters(state)
        self._recipe = recipe
        self._clock = clock
        self._by_message_id: dict[str, int] = {}
        self._load()

    def _load(self) -> None:
        stored = json.loads(str(self._state.meta("presentation", "{}")))
        self.presentation = AccountSettings(**stored)
        for mailbox in self._state.mailboxes():
            self.mailboxes[mailbox.key] = mailbox
        for message in self._state.messages():
            self._index(message)
        with self.writing():
            for key, uidvalidity in folders.FIRST_UIDVALIDITY.items():
                if key not in self.mailboxes:
                    self.mailboxes[key] = Mailbox(key, uidvalidity)
                    self._state.put_mailbox(self.mailboxes[key])

    def _index(self, message: Message) -> None:
        self.messages[message.msgid] = message
        if message.message_id:
            self._by_message_id[message.message_id] = message.msgid

    @property
    def modseq(self) -> int:
        """Return the highest MODSEQ of the account."""
        return self._counters.modseq

    def raw(self, message: Message) -> bytes:
        """Return the bytes of a message."""
        return self._state.raw(message.msgid) if message.recipe is None else self._recipe(message.recipe)

    def names(self) -> dict[str, str]:
        """Return the name of every mailbox by its key, INBOX and special ones first."""
        names = self.presentation.special_names()
        return names | {key: key for key in sorted(self.mailboxes) if key not in names}

    def find_mailbox(self, name: str) -> Mailbox | None:
        """Return the mailbox of that name; INBOX in any case (RFC 3501 section 5.1)."""
        if name.upper() == "INBOX":
            return self.mailboxes[folders.INBOX]
        for key, shown_name in self.names().items():
            if shown_name == name and not (key == folders.ALL and self.presentation.hide_all):
                return self.mailboxes[key]
        return None

    def uid_in_all_mail(self, message: Message) -> int | None:
        """Return the UID of a message in All Mail; None in Spam or Trash."""
        return self.mailboxes[folders.ALL].uid_of(message.msgid)

    def find_by_message_id(self, message_id: str) -> Message | None:
        """Return the message with that Message-ID header."""
        msgid = self._by_message_id.get(message_id)
        return None if msgid is None else self.messages[msgid]

    def deliver(
        self,
        raw: bytes,
        labels: Iterable[str] = (folders.INBOX,),
        flags: Iterable[str] = (),
        internaldate: int | None = None,
    ) -> DeliveryResult:
        r"""Store a message, or add the labels to the message that has its Message-ID already, as Gmail does.

        Args:
            raw: The message as it came.
            labels: Labels of the user and system labels; `\Junk` or `\Trash` puts it there.
            flags: IMAP flags.
            internaldate: When it arrived, in epoch milliseconds; now when it is None.

        Raises:
            BadLabel: IMAP could not carry a label.
            BadFlag: IMAP could not carry a flag.
        """
        keys = read_thread_headers(raw)
        canonical = [canonical_label(label) for label in labels]
        check_flags(flags := tuple(flags))
        duplicate = self.find_by_message_id(keys.message_id) if keys.message_id else None
        if duplicate is not None:
            self.change_labels(
                duplicate.msgid, add=[label for label in canonical if label not in folders.KEY_LOCATIONS]
            )
            return DeliveryResult(duplicate, merged=True)
        with self.writing():
            message = self._new_message(keys, len(raw), canonical, flags, internaldate)
            self._state.put_message(message, raw)
            self._enter(message)
        return DeliveryResult(message, merged=False)

    def deliver_generated(self, count: int) -> None:
        """Store `count` generated messages; only their index is kept."""
        for start in range(0, count, _BULK_BATCH):
            with self.writing():
                for index in range(start, min(start + _BULK_BATCH, count)):
                    self._deliver_generated(index)

    def _deliver_generated(self, index: int) -> None:
        keys = ThreadHeaders(bulk_message_id(index), ())
        if keys.message_id in self._by_message_id:  # an earlier load was interrupted
            return
        labels = [] if index % 10 else [folders.INBOX]
        message = self._new_message(keys, len(self._recipe(index)), labels, (), bulk_date(index))
        message.recipe = index
        self._state.put_message(message)
        self._enter(message)

    def _new_message(
        self, keys: ThreadHeaders, size: int, labels: list[str], flags: Iterable[str], internaldate: int | None
    ) -> Message:
        when = int(self._clock() * 1000) if internaldate is None else internaldate
        msgid = self._counters.next_msgid(when, self.messages)
        places = [folders.KEY_LOCATIONS[label] for label in labels if label in folders.KEY_LOCATIONS]
        kept = frozenset(label for label in labels if label not in folders.KEY_LOCATIONS)
        flag_set, label_set = _mirror_flags(frozenset(flags), kept)
        return Message(
            msgid=msgid,
            thrid=self._thread_of(keys, msgid),
            internaldate=when,
            size=size,
            flags=interned(flag_set),
            labels=interned(label_set),
            location=places[-1] if places else MessageLocation.ALL,
            message_id=keys.message_id,
            modseq=self._counters.next_modseq(),
        )

    def _thread_of(self, keys: ThreadHeaders, msgid: int) -> int:
        for reference in keys.references:
            earlier = self.find_by_message_id(reference)
            if earlier is not None:
                return earlier.thrid
        return msgid

    def _enter(self, message: Message) -> None:
        self._index(message)
        for key in self._mailbox_keys(message):
            self._add_to(key, message.msgid)

    def delete(self, msgid: int) -> None:
        """Remove a message for good, from wherever it is."""
        message = self.message(msgid)
        with self.writing():
            for key in self._mailbox_keys(message):
                self._remove_from(key, msgid)
            del self.messages[msgid]
            if self._by_message_id.get(message.message_id) == msgid:
                del self._by_message_id[message.message_id]
            self._state.drop_message(msgid)
            self._counters.next_modseq()

    def message(self, msgid: int) -> Message:
        """Return a message; raise UnknownMailbox when there is none."""
        try:
            return self.messages[msgid]
        except KeyError:
            raise UnknownMessage(f"there is no message {msgid}") from None

    def change_labels(self, msgid: int, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Add and remove labels; unknown ones are created (Gmail does so on STORE too)."""
        message = self.message(msgid)
        removed = {canonical_label(label) for label in remove}
        labels = message.labels - removed | {canonical_label(label) for label in add}
        flags = message.flags
        for flag, label in _MIRRORED.items():
            flags = flags | {flag} if label in labels else flags - {flag}
        self._change(message, flags=flags, labels=frozenset(labels))

    def set_flags(self, msgid: int, flags: Iterable[str]) -> None:
        """Replace the flags of a message."""
        message = self.message(msgid)
        check_flags(new_flags := frozenset(flags))
        labels = message.labels - {label for flag, label in _MIRRORED.items() if flag not in new_flags}
        flag_set, label_set = _mirror_flags(new_flags, labels)
        self._change(message, flags=flag_set, labels=label_set)

    def move(self, msgid: int, location: MessageLocation) -> None:
        """Move between All Mail, Spam and Trash; it gets a new UID on each arrival."""
        self._change(self.message(msgid), location=location)

    def _change(
        self,
        message: Message,
        *,
        flags: frozenset[str] | None = None,
        labels: frozenset[str] | None = None,
        location: MessageLocation | None = None,
    ) -> None:
        before = set(self._mailbox_keys(message))
        old = (message.flags, message.labels, message.location)
        new = (old[0] if flags is None else flags, old[1] if labels is None else labels, location or old[2])
        if new == old:
            return
        with self.writing():
            message.flags, message.labels, message.location = interned(new[0]), interned(new[1]), new[2]
            message.modseq = self._counters.next_modseq()
            self._state.put_message(message)
            self._refile(message, before)

    def _refile(self, message: Message, before: set[str]) -> None:
        after = self._mailbox_keys(message)
        for key in before.difference(after):
            self._remove_from(key, message.msgid)
        for key in after:
            if key in before:
                self.mailboxes[key].announce_change(message.msgid)
            else:
                self._add_to(key, message.msgid)

    @staticmethod
    def _mailbox_keys(message: Message) -> list[str]:
        if message.location is not MessageLocation.ALL:
            return [folders.LOCATION_KEYS[message.location]]
        return [folders.ALL, *sorted(message.labels)]

    def _add_to(self, key: str, msgid: int) -> None:
        mailbox = self.mailboxes.get(key) or self.create_label(key)
        self._state.put_uid(mailbox, mailbox.add(msgid), msgid)

    def _remove_from(self, key: str, msgid: int) -> None:
        mailbox = self.mailboxes[key]
        self._state.drop_uid(mailbox, mailbox.remove(msgid))

    def create_label(self, name: str) -> Mailbox:
        """Make a label; it may exist already."""
        key = canonical_label(name)
        if key not in self.mailboxes:
            with self.writing():
                self.mailboxes[key] = Mailbox(key, self._counters.next_uidvalidity())
                self._state.put_mailbox(self.mailboxes[key])
        return self.mailboxes[key]

    def delete_label(self, key: str) -> None:
        """Remove a label from all messages and drop its mailbox."""
        mailbox = self.mailboxes[key]
        with self.writing():
            for msgid in tuple(mailbox.msgids):
                self.change_labels(msgid, remove=[key])
            del self.mailboxes[key]
            self._state.drop_mailbox(key)

    def rename_label(self, key: str, name: str) -> None:
        """Rename a label; the new mailbox starts with a new UIDVALIDITY."""
        with self.writing():
            self.create_label(name)
            for msgid in tuple(self.mailboxes[key].msgids):
                self.change_labels(msgid, add=[name], remove=[key])
            self.delete_label(key)

    def reset_uidvalidity(self, key: str) -> int:
        """Give a mailbox a new UIDVALIDITY and new UIDs, and return the new UIDVALIDITY."""
        mailbox = self.mailboxes[key]
        with self.writing():
            mailbox.renumber(self._counters.next_uidvalidity())
            self._state.put_mailbox(mailbox)
        return mailbox.uidvalidity

    def configure(self, **changes: str | bool | int) -> AccountSettings:
        """Change settings of the account; raise ValueError for an unknown language."""
        changed = replace(self.presentation, **changes)  # type: ignore[arg-type]
        if changed.language not in folders.LANGUAGES:
            raise ValueError(f"language must be one of {', '.join(folders.LANGUAGES)}")
        self.presentation = changed
        with self.writing():
            self._state.set_meta("presentation", json.dumps(asdict(changed)))
        return changed


def _mirror_flags(flags: frozenset[str], labels: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    added_labels = {label for flag, label in _MIRRORED.items() if flag in flags}
    added_flags = {flag for flag, label in _MIRRORED.items() if label in labels}
    return flags | added_flags, labels | added_labels


if TYPE_CHECKING:
    from collections.abc import Container

    from gmail_sandbox.state import State

_SEQUENCE_BITS = 20
_MAX_MILLISECONDS = (1 << 63 - _SEQUENCE_BITS) - 1  # the largest date that fits into a signed 64-bit identity


class AccountCounters:
    """MODSEQ, the low bits of X-GM-MSGID, UIDVALIDITY of labels."""

    def __init__(self, state: State) -> None:
        """Continue where the state ended."""
        self._state = state
        self.modseq = int(str(state.meta("modseq", 1)))
        self._sequence = int(str(state.meta("sequence", 0)))
        self._uidvalidity = int(str(state.meta("uidvalidity", FIRST_LABEL_UIDVALIDITY)))
        state.before_commit = self._save

    def _save(self) -> None:
        self._state.set_meta("modseq", self.modseq)
        self._state.set_meta("sequence", self._sequence)
        self._state.set_meta("uidvalidity", self._uidvalidity)

    def next_modseq(self) -> int:
        """Return the MODSEQ of one more change; there is one for the whole account."""
        self.modseq += 1
        return self.modseq

    def next_msgid(self, milliseconds: int, taken: Container[int]) -> int:
        """Return a new X-GM-MSGID: the INTERNALDATE in milliseconds, then a sequence number."""
        msgid = -1
        while msgid < 0 or msgid in taken:
            self._sequence = (self._sequence + 1) % (1 << _SEQUENCE_BITS)
            msgid = min(max(milliseconds, 0), _MAX_MILLISECONDS) << _SEQUENCE_BITS | self._sequence
        return msgid

    def next_uidvalidity(self) -> int:
        """Return a UIDVALIDITY that was never used."""
        self._uidvalidity += 1
        return self._uidvalidity - 1
