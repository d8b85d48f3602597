"""Addresses as they may be shown: without user and password, without a query, without the key that a path may be.

A web hook's path is its password, however short; of a path only words remain that no key is. An address that was
written wrong, with a / or an @ in its password, must not show a part of it either.
"""

from __future__ import annotations

import re

MASK = "***"
# Whose path names a place and no secret; of other schemes (apprise knows a hundred) all is a secret.
PLAIN_SCHEMES = frozenset(
    ["file", "imap", "imaps", "postgresql", "redis", "rediss", "s3", "smtp", "smtps", "sqlite", "tcp", "unix", "valkey"]
)
WEB_SCHEMES = frozenset(["http", "https"])
PLAIN_SEGMENTS = frozenset(
    [
        *("", "auth", "authorize", "common", "consumers", "o", "oauth2", "organizations", "token", "traces"),
        *("v1", "v2", "v2.0", "admin", "health", "livez", "metrics", "ready", "readyz", "status", MASK),
    ]
)
_AUTHORITY = re.compile(r"[^/?#]*")
_TAIL = re.compile(r"(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?P<fragment>#.*)?", re.DOTALL)


def mask_url(url: str) -> str:
    """Return the address with MASK in the place of what may be secret; what has no `://` is returned as it is."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    _, at, rest = rest.rpartition("@")
    if at:
        rest = f"{MASK}@{rest}"
    kind = scheme.casefold().partition("+")[0]
    if kind not in PLAIN_SCHEMES | WEB_SCHEMES:
        return f"{scheme}://{MASK}"
    authority = _AUTHORITY.match(rest)
    tail = _TAIL.fullmatch(rest, authority.end() if authority else 0)
    if not authority or not tail:
        return f"{scheme}://{MASK}"
    path = tail["path"]
    if kind in WEB_SCHEMES:
        path = "/".join(part if part.casefold() in PLAIN_SEGMENTS else MASK for part in path.split("/"))
    query = f"?{MASK}" if tail["query"] and tail["query"] != "?" else ""
    fragment = f"#{MASK}" if tail["fragment"] else ""
    return f"{scheme}://{authority[0]}{path}{query}{fragment}"


def is_secret(name: str) -> bool:
    """Return whether the value of a setting may hold a secret."""
    words = ("PASSWORD", "SECRET", "URL", "URI", "ENDPOINT", "ACCOUNTS", "KEY", "CHANNELS", "RECIPIENTS", "WEBHOOK")
    return any(word in name for word in words) or name == "SINKS"
