"""Short forms of identities: an ID argument takes every beginning that means one message only, as git does.

Of `default:gm:1786881717043200001` a beginning of the whole (`default:gm:1786`), of what follows the account
(`gm:1786881`), or of the number or hash alone (`1786881`).
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable

ACCOUNT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
EMAIL_ID = re.compile(rf"{ACCOUNT.pattern}:(?:gm:[0-9]{{1,20}}|sha256:[0-9a-f]{{64}})", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
CONTENT_REFERENCE = re.compile(rf"sha256:{SHA256.pattern}", re.ASCII)
MIN_PART = 6  # characters; fewer would mean another message tomorrow


def identity_value(email_id: str) -> str:
    """Return the number or hash of an identity: what follows account and kind."""
    return email_id.rpartition(":")[2]


def matches_identity(part: str, email_id: str) -> bool:
    """Tell whether `part` may stand for `email_id`; without a colon it is the beginning of the number or hash."""
    if ":" not in part:
        return identity_value(email_id).startswith(part)
    return email_id.startswith(part) or email_id.partition(":")[2].startswith(part)


def tombstone(text: str) -> str:
    """Return the hash that stands for an identity or a place that was erased: 32 hex digits, which do not tell it."""
    return hashlib.sha256(f"email-ingestion erased {text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def shortest_parts(email_ids: Iterable[str], others: Collection[str]) -> dict[str, str]:
    """Return for each of `email_ids` the shortest text that means none of the `others`, `MIN_PART` long at least.

    `others` holds all identities whose number or hash has the same first `MIN_PART` characters.
    """
    values = sorted(identity_value(each) for each in others)
    return {email_id: _shortest(email_id, values) for email_id in email_ids}


def _shortest(email_id: str, values: list[str]) -> str:
    value = identity_value(email_id)
    at = bisect_left(values, value)
    neighbours = [*values[max(0, at - 1) : at], *values[at + 1 : at + 2]]
    length = max(MIN_PART, *(_common(value, each) + 1 for each in neighbours), 0)
    # As long as another's whole number, or shorter than is taken: only the whole identity is sure.
    return value[:length] if length <= len(value) else email_id


def _common(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
