"""Lists the UIDs of a mailbox, at a cost that follows its messages: UIDs may be hundreds of millions apart.

    windows      the UIDs up to which every 5,000th message goes (one SEARCH by sequence numbers) cut the range
    list_uids    one SEARCH for each window

Sequence numbers shift when a message is expunged, so they only say where to cut. The windows are ranges of UIDs that
cover the whole range: whatever comes or goes in between makes one of them larger or smaller, and nothing is left out.

A server whose SEARCH is refused, or finds nothing where EXISTS tells of mail, is asked by FETCH for the UIDs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

from imapclient.datetime_util import format_criteria_date
from imapclient.exceptions import IMAPClientError, ProtocolError

from email_ingestion.mailbox.fetch_parser import parse
from email_ingestion.mailbox.imap_errors import refuses_arguments, translate
from email_ingestion.mailbox.response_lines import read_ranges
from email_ingestion.mailbox.waiting import WaitingConnection

LAST_UID = 2**53 - 1  # RFC 3501, section 2.3.1.1, has 32 bits, and some servers have more; Lua counts up to here
UID_WINDOW = 5_000  # messages listed by one command: imaplib refuses lines over 1 MB, which 90,000 UIDs may take
MAX_FOUND = 1_000_000  # messages that one search may find: a range names billions in a few bytes
# UIDs, or sequence numbers, in one command: RFC 2683 section 3.2.1.5 asks for lines under 8,000 octets.
MAX_FETCH_UIDS = MAX_CUTS = 500
MAX_RANGES = 20_000  # of UIDs that are kept of what a server says to be deleted, some 2 MB
CUT_MARGIN = 4  # windows of equal width in place of one, where the server does not say where to cut

SEARCH = "SEARCH"
_SERVERBUG = re.compile(r"\[SERVERBUG\]", re.IGNORECASE)
UidRange = tuple[int, int]  # the first and the last UID, both included
_UID_SET = re.compile(rb"(?:\A|\s)([\d:,]+)\s*\Z")

# RFC 9738: the UIDs below the second number were not looked at.
_MESSAGE_LIMIT = re.compile(rb"\[MESSAGELIMIT \d+ (\d+)\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DateRange:
    """Days by the server's calendar, both included; `until` None is without end. `label` None is any label."""

    since: date
    until: date | None = None
    label: str | None = None


class UidListing(WaitingConnection):
    """A connection that lists the messages of the mailbox that is open."""

    _search_works = False  # it has found something on this connection
    _listed: int | None = None  # messages in the mailbox when the newest were listed last

    @property
    def exists(self) -> int:
        """The messages in the mailbox, as the server has counted them up to now."""
        return self._imap4.exists

    def windows(self, first_uid: int, last_uid: int, size: int = UID_WINDOW) -> list[UidRange]:
        """Cut a range of UIDs into ranges of about `size` messages at most, ascending; it takes one command at most."""
        if first_uid > last_uid:
            return []
        if min(self.exists, last_uid - first_uid + 1) <= size:
            return [(first_uid, last_uid)]
        tops = sorted({uid for uid in self._cuts(size) if first_uid <= uid < last_uid})
        return [(low + 1, high) for low, high in pairwise([first_uid - 1, *tops, last_uid])]

    def list_uids(self, first_uid: int, last_uid: int) -> list[int]:
        """Return the UIDs from `first_uid` to `last_uid`, ascending; of a large mailbox, one of `windows` at a time."""
        with self._command("search"):
            return self._search_range(first_uid, last_uid)

    def list_uids_from(self, first_uid: int) -> list[int]:
        """Return the UIDs from `first_uid` to the newest, ascending."""
        with self._command("search"):
            self._pop_announcement()  # this search sees the mail announced before
            found = self._search_range(first_uid, LAST_UID)
            if self._pop_announcement():  # with this response, which did not see it yet
                found = self._search_range(first_uid, LAST_UID)
            if not found and self._listed is not None and self.exists > self._listed:
                found = self._doubted(first_uid, LAST_UID)
            self._listed = self.exists
        return found

    def newest_uid(self) -> int | None:
        """Return the UID of the last message, 0 for an empty mailbox; None when the server does not tell."""
        with self._command("search"):
            return self._newest() or (None if self.exists else 0)

    def list_uids_between(self, first_uid: int, last_uid: int, date_range: DateRange) -> list[int]:
        """Return the UIDs of the messages in `date_range`, ascending; see `list_uids`."""
        with self._command("search"):
            if date_range.label:
                return self._search_label(first_uid, last_uid, date_range)
            return self._search_range(first_uid, last_uid, _criteria(date_range))

    def list_present(self, uids: Sequence[int]) -> set[int]:
        """Return those of some UIDs that are there; a command names MAX_FETCH_UIDS of them at most."""
        found: set[int] = set()
        for start in range(0, len(uids), MAX_FETCH_UIDS):
            uid_set = ",".join(map(str, uids[start : start + MAX_FETCH_UIDS]))
            with self._command("search"):
                found |= self._fetched_uids(uid_set) if SEARCH in self.refused else self._search(["UID", uid_set])[0]
        return found.intersection(uids)

    def search_message(self, gm_msgid: int | None, message_id: str | None) -> list[int]:
        """Return the UIDs of the messages with this X-GM-MSGID, or with this Message-ID where the server has none."""
        if gm_msgid is not None and self.is_gmail:
            criteria = ["X-GM-MSGID", str(gm_msgid)]
        elif message_id and message_id.isascii() and message_id.isprintable():
            criteria = ["HEADER", "Message-ID", message_id]
        else:
            return []
        with self._command("search"):
            return sorted(self._client.search(criteria))

    def _cuts(self, size: int) -> Iterable[int]:
        """Return the UIDs of the messages at which a window ends; a server that refuses to tell is done without."""
        step = max(size, self.exists // MAX_CUTS)
        with self._command("search"):
            try:
                found, _ = self._search([",".join(map(str, range(step, self.exists, step)))])
            except self._client.AbortError:
                raise
            except IMAPClientError:
                found = set()
            if found:
                return found
            newest = self._newest() or 0
        count = CUT_MARGIN * min(MAX_CUTS, self.exists // size + 1)
        return (newest * number // count for number in range(1, count))

    def _newest(self) -> int | None:
        """Return the UID of the last message, 0 when none was found; None when the server refuses to tell."""
        try:
            if SEARCH in self.refused:
                return max(self._fetched_uids("*"), default=0)
            return max(self._search(["UID", "*"])[0], default=0)
        except self._client.AbortError:
            raise
        except IMAPClientError as error:
            if not _refuses(error):
                raise
            return None

    def _search_range(self, first_uid: int, last_uid: int, criteria: Sequence[str] = ()) -> list[int]:
        """Search a range of UIDs; some servers refuse one above the last message, and any in an empty mailbox."""
        try:
            return self._search_all_of(first_uid, last_uid, criteria)
        except self._client.AbortError:
            raise
        except IMAPClientError as error:
            if not _refuses(error):
                raise
            newest = self._newest() if self.exists else 0
            if newest is not None and newest < first_uid:
                return []
            found = None if criteria else self._fetched_instead(first_uid, last_uid)
            if found is None:
                raise
            self.do_without(SEARCH, str(translate(error, "search")))
            return found

    def _search_all_of(self, first_uid: int, last_uid: int, criteria: Sequence[str]) -> list[int]:
        if SEARCH in self.refused and not criteria:
            return self._fetched_range(first_uid, last_uid)
        found: set[int] = set()
        high = last_uid
        while first_uid <= high:
            some, unseen_below = self._search(["UID", f"{first_uid}:{uid_range_end(high)}", *criteria])
            found |= some
            if not first_uid < unseen_below <= high:
                break
            high = unseen_below - 1
        self._search_works = self._search_works or bool(found)
        if self.exists and not self._search_works and not criteria:
            return self._doubted(first_uid, last_uid)
        # `n:*` always holds the last message (RFC 3501, 6.4.8)
        return sorted(uid for uid in found if first_uid <= uid <= last_uid)

    def _doubted(self, first_uid: int, last_uid: int) -> list[int]:
        """Return the UIDs of a range in which SEARCH has found nothing; if there are some, it is done without."""
        if found := self._fetched_instead(first_uid, last_uid):
            self.do_without(SEARCH, "the IMAP server finds nothing in SEARCH where there is mail")
        return found or []

    def _fetched_instead(self, first_uid: int, last_uid: int) -> list[int] | None:
        """Return the UIDs of a range by FETCH; None when the server refuses that too."""
        try:
            return self._fetched_range(first_uid, last_uid)
        except self._client.AbortError:
            raise
        except IMAPClientError:
            return None

    def _fetched_range(self, first_uid: int, last_uid: int) -> list[int]:
        found = self._fetched_uids(f"{first_uid}:{uid_range_end(last_uid)}")
        return sorted(uid for uid in found if first_uid <= uid <= last_uid)

    def _fetched_uids(self, uid_set: str) -> set[int]:
        return set(parse(self._imap4.uid_fetch(uid_set, "(UID)")))

    def _search_label(self, first_uid: int, last_uid: int, date_range: DateRange) -> list[int]:
        """Search by imapclient, which can send a label that is not ASCII as a literal."""
        criteria: list[Any] = ["UID", f"{first_uid}:{uid_range_end(last_uid)}", "SINCE", date_range.since]
        if date_range.until:
            criteria += ["BEFORE", date_range.until + timedelta(days=1)]
        label = date_range.label or ""
        found = self._client.search([*criteria, "X-GM-LABELS", label], charset=None if label.isascii() else "UTF-8")
        return sorted(uid for uid in found if first_uid <= uid <= last_uid)

    def _search(self, criteria: Sequence[str]) -> tuple[set[int], int]:
        """Return what a SEARCH found, and the UID below which the server stopped looking; 0 when it saw everything."""
        answers, text = self._imap4.uid_search(*criteria)
        limited = _MESSAGE_LIMIT.search(text)
        return set(_numbers(answers)), int(limited[1]) if limited else 0


def _refuses(error: IMAPClientError) -> bool:
    """Whether a search is refused by a server that may do everything else."""
    return refuses_arguments(error) or bool(_SERVERBUG.search(str(error)))


def uid_range_end(last_uid: int) -> str:
    """Return the end of a range: `*` for the largest UID, which servers that count in 31 bits take for no number."""
    return "*" if last_uid >= LAST_UID else str(last_uid)


def parse_vanished(responses: Iterable[bytes], window: UidRange) -> list[UidRange]:
    """Return the UIDs of VANISHED responses that lie in a window, as ascending ranges that do not touch.

    They are not written out: a server may name `1:4294967295`. What comes after MAX_RANGES ranges is left out.
    """
    found: list[UidRange] = []
    for response in responses:
        uid_set = _UID_SET.search(response)
        for first, last in read_ranges(uid_set[1]) if uid_set else ():
            low, high = max(first, window[0]), min(last, window[1])
            if low > high:
                continue
            if found and found[-1][0] <= low <= found[-1][1] + 1:
                found[-1] = (found[-1][0], max(high, found[-1][1]))
            elif len(found) < MAX_RANGES:
                found.append((low, high))
    merged: list[UidRange] = []
    for low, high in sorted(found):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _criteria(date_range: DateRange) -> list[str]:
    days = [("SINCE", date_range.since)]
    if date_range.until:
        days.append(("BEFORE", date_range.until + timedelta(days=1)))
    return [word for key, day in days for word in (key, format_criteria_date(day).decode())]


def _numbers(answers: Iterable[Any]) -> Iterator[int]:
    """Return the numbers of SEARCH responses, which may end in `(MODSEQ 7)`, or of sets (RFC 9051, section 7.3.4).

    Raises ProtocolError.
    """
    left = MAX_FOUND
    for answer in answers:
        if not isinstance(answer, bytes | None):
            raise ProtocolError("a SEARCH response holds a literal")
        for word in (answer or b"").partition(b"(")[0].replace(b",", b" ").split():
            low, _, high = word.partition(b":")
            if word.upper() == b"NIL":  # some say so where they find nothing
                continue
            if not all(end.isdigit() and len(end) <= len(str(LAST_UID)) for end in (low, high or low)):
                raise ProtocolError("a SEARCH response holds something else than numbers")
            first, last = sorted((int(low), int(high or low)))
            left -= last - first + 1
            if left < 0:
                raise ProtocolError(f"a SEARCH response names more than {MAX_FOUND:,} messages")
            yield from range(first, last + 1)
