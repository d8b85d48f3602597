"""The web process of a place, asked as a program asks it: over HTTP, with a token of the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from email_ingestion.blobs import reference
from email_ingestion.ledger.model import Content, StoredEmail
from email_ingestion.ledger.store import open_ledger
from email_ingestion.parsing import parse
from email_ingestion.records import Envelope
from tests.servers.processes import Place, Running

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Api:
    """The read API of a running web process, with the token of who asks."""

    url: str
    token: str | None = None

    def get(self, path: str, **query: Any) -> httpx.Response:
        """Ask for a path below /api/v1."""
        return self.ask(f"/api/v1/{path}", query)

    def ask(self, path: str, query: Any = None, **headers: str) -> httpx.Response:
        given = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        options = {"params": query, "headers": given | headers, "timeout": 30, "trust_env": False}
        return httpx.get(self.url + path, **options)

    def items(self, path: str, **query: Any) -> list[dict[str, Any]]:
        answer = self.get(path, **query)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])


def token(here: Place, *options: str) -> str:
    """Make a token as an operator does."""
    done = here.run("-m", "email_ingestion", "tokens", "create", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def api(web: Running, text: str | None = None) -> Api:
    return Api(web.url("web_url"), text)


def delivered(here: Place, messages: Iterable[StoredEmail]) -> None:
    """Record messages as a worker does."""
    with closing(open_ledger(f"sqlite:///{here.folder}/data/email_ingestion.db")) as ledger:
        ledger.record(list(messages))


def letter(
    number: int, raw: bytes, *, account: str = "default", gmail: bool = True, thread: int | None = None,
    labels: tuple[str, ...] = ("\\Inbox",), hours: float | None = None,
) -> StoredEmail:  # fmt: skip
    """The `number`-th message, an hour younger than the one before, with its bytes in the database."""
    digest = hashlib.sha256(raw).hexdigest()
    envelope = Envelope(
        account=account,
        mailbox="INBOX",
        uidvalidity=7,
        uid=number,
        gm_msgid=1_790_000_000_000_000_000 + number if gmail else None,
        gm_thrid=(thread or 1_790_000_000_000_000_000 + number) if gmail else None,
        labels=labels,
        flags=(),
        internaldate=EPOCH + timedelta(hours=number if hours is None else hours),
        size=len(raw),
        sha256=digest,
    )
    email = parse(envelope, raw)
    parts = tuple(Content(part.sha256, part.content) for part in email.attachments)
    return StoredEmail(email, reference(digest), (Content(digest, raw), *parts))
