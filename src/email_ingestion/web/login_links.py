"""Login links: signed with the token of OPS_TOKEN_FILE, valid for ten minutes, and good for one login.

A link is made where that file can be read, without asking the web process, and needs neither Redis nor database. The
process remembers which links were used until they end; a link that is older than the process is refused, so that a
restart brings no used link back to life.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

LINK_SECONDS = 600.0
PURPOSE = b"email-ingestion login link 1"
NONCE_BYTES = 18
MAX_LENGTH = 1024  # characters of a link's last part; longer ones are not looked at

Role = Literal["reader", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class LoginLink:
    """Who may enter with a link, and until when; times are Unix seconds."""

    user: str
    role: Role
    made_at: float
    nonce: str

    @property
    def ends_at(self) -> float:
        """When it is no longer taken."""
        return self.made_at + LINK_SECONDS


class LinkRefused(Exception):
    """A login link that is wrong, used, too old or from before the start; the text is for its holder."""


def make_link(ops_token: str, user: str, role: Role, clock: Callable[[], float] = time.time) -> str:
    """Return the last part of a login link for `user`."""
    content = {"user": user, "role": role, "made_at": clock(), "nonce": secrets.token_urlsafe(NONCE_BYTES)}
    payload = json.dumps(content, separators=(",", ":")).encode()
    return f"{_encode(payload)}.{_encode(_signature(ops_token, payload))}"


class LoginLinks:
    """Takes every link once."""

    def __init__(self, ops_token: str, clock: Callable[[], float] = time.time) -> None:
        self._ops_token = ops_token
        self._clock = clock
        self._started_at = clock()
        self._used: dict[str, float] = {}  # nonce: when the link ends
        self._lock = threading.Lock()

    def check(self, text: str) -> LoginLink:
        """Return what a link says, and leave it usable. Raises LinkRefused."""
        link = _read(self._ops_token, text)
        now = self._clock()
        if link.ends_at <= now:
            raise LinkRefused("this login link is older than ten minutes")
        if link.made_at < self._started_at:
            raise LinkRefused("this login link is older than the running web process")
        with self._lock:
            if link.nonce in self._used:
                raise LinkRefused("this login link was used already")
        return link

    def use(self, text: str) -> LoginLink:
        """Return what a link says, and take it never again. Raises LinkRefused."""
        link = self.check(text)
        with self._lock:
            if link.nonce in self._used:  # by another thread since
                raise LinkRefused("this login link was used already")
            now = self._clock()
            self._used = {nonce: ends for nonce, ends in self._used.items() if ends > now} | {link.nonce: link.ends_at}
        return link


def _read(ops_token: str, text: str) -> LoginLink:
    wrong = LinkRefused("this login link is not whole, or another installation made it")
    if len(text) > MAX_LENGTH:
        raise wrong
    payload, _, signature = text.partition(".")
    try:
        content = _decode(payload)
        if not hmac.compare_digest(_decode(signature), _signature(ops_token, content)):
            raise wrong
        found = json.loads(content)
        return LoginLink(str(found["user"]), found["role"], float(found["made_at"]), str(found["nonce"]))
    except (ValueError, KeyError, TypeError) as error:
        raise wrong from error


def _signature(ops_token: str, payload: bytes) -> bytes:
    key = hmac.digest(ops_token.encode(), PURPOSE, hashlib.sha256)
    return hmac.digest(key, payload, hashlib.sha256)


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
