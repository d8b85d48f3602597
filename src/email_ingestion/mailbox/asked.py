"""A FETCH whose answer is heard later than it was asked for: imaplib can do that, imapclient cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imapclient.exceptions import IMAPClientAbortError, IMAPClientError

from email_ingestion.mailbox.meter import Meter


class Asked:
    """Sent as soon as it is made; one at a time. Raises as imapclient's fetch."""

    def __init__(self, client: Any, meter: Meter, uids: Sequence[int], items: Sequence[str], size: int = 0) -> None:
        """`size` is how many bytes are to come, as the server states them."""
        self.size = size
        self._client = client
        self._imap = client._imap  # noqa: SLF001 - there is no public way
        self._meter = meter
        self._what = _what(uids, items)
        self._tag = self._imap._command("UID", "FETCH", *self._what)  # noqa: SLF001 - as imapclient does
        self._ended: tuple[str, list[Any]] | None = None
        self._refusal: IMAPClientError | None = None
        self._answers: list[Any] = []

    def asks_for(self, uids: Sequence[int], items: Sequence[str]) -> bool:
        """Whether the answers are those to this question."""
        return self._what == _what(uids, items)

    @property
    def heard(self) -> bool:
        """Whether everything was read, so that something else may be said."""
        return bool(self._ended or self._refusal)

    def hear(self) -> None:
        """Read everything up to the end, unless that was done; raises only where the conversation is over."""
        if self.heard:
            return
        try:
            self._ended = self._imap._command_complete("FETCH", self._tag)  # noqa: SLF001 - likewise
        except IMAPClientAbortError:
            raise
        except IMAPClientError as error:
            self._refusal = error
        finally:
            self._meter.settle()
        self._answers = self._imap.untagged_responses.pop("FETCH", [])

    def answers(self) -> list[Any]:
        """What was answered, without imapclient's parser; when it was refused, what came is where imaplib leaves it."""
        self.hear()
        if self._answers:
            self._imap.untagged_responses["FETCH"] = self._answers
        if self._refusal:
            raise self._refusal
        status, said = self._ended or ("", [])
        self._client._checkok("fetch", status, said)  # noqa: SLF001 - likewise
        return list(self._imap._untagged_response(status, said, "FETCH")[1])  # noqa: SLF001 - likewise


def _what(uids: Sequence[int], items: Sequence[str]) -> tuple[str, str]:
    return ",".join(map(str, uids)), f"({' '.join(items)})"
