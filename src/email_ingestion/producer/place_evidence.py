"""Whether a UID still names the message that was recorded under it: a place is no identity. Decisions only.

A mail server that was restored from a backup gives UIDs out anew under the same UIDVALIDITY. What a server says of a
message differs for harmless reasons too (it counts sizes wrongly, or lost a date), so one difference alone proves
nothing: another X-GM-MSGID does, and without it another INTERNALDATE together with another Message-ID.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from email_ingestion.ledger.model import RecordedMessage
from email_ingestion.mailbox import MessageSummary
from email_ingestion.records import ServerDefect

# Fetches the Message-ID fields of some UIDs; None for a message without one, and no entry for one that vanished.
FetchMessageIds = Callable[[Sequence[int]], Mapping[int, str | None]]

_IN_BRACKETS = re.compile(r"<([^<>]*)>")


def find_contradicted(
    summaries: Iterable[MessageSummary],
    recorded: Mapping[int, Sequence[RecordedMessage]],
    fetch_message_ids: FetchMessageIds,
) -> set[int]:
    """Return the UIDs under which the server has other messages than those that were recorded."""
    contradicted: set[int] = set()
    doubtful: dict[int, MessageSummary] = {}
    for summary in summaries:
        candidates = recorded.get(summary.uid, ())
        verdict = _is_same(summary, candidates) if candidates else True
        if verdict is None:
            doubtful[summary.uid] = summary
        elif not verdict:
            contradicted.add(summary.uid)
    found = fetch_message_ids(sorted(doubtful)) if doubtful else {}
    return contradicted | {
        uid for uid, text in found.items() if not _has_message_id(doubtful[uid], text, recorded[uid])
    }


def _is_same(summary: MessageSummary, candidates: Sequence[RecordedMessage]) -> bool | None:
    """Return whether one of the recorded messages is this one; None: only its Message-ID tells."""
    numbers = {each.gm_msgid for each in candidates}
    if summary.gm_msgid is not None and None not in numbers:
        return summary.gm_msgid in numbers
    undated = ServerDefect.INTERNALDATE in summary.defects  # the date is that of our reading, and proves nothing
    return True if undated or any(each.internaldate == summary.internaldate for each in candidates) else None


def _has_message_id(summary: MessageSummary, text: str | None, candidates: Sequence[RecordedMessage]) -> bool:
    """Return whether a recorded message has the Message-ID `text`; where neither has one, their sizes must do."""
    wanted = _bare(text)
    return any(_bare(each.message_id) == wanted and (wanted or each.size == summary.size) for each in candidates)


def _bare(message_id: str | None) -> str:
    """Return a Message-ID without its brackets, spaces and line breaks."""
    match = _IN_BRACKETS.search(message_id or "")
    return "".join((match[1] if match else message_id or "").split())
