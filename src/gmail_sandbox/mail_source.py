"""Where the first mail comes from: the sample, generated bulk mail, a folder of .eml files or an mbox file."""

from __future__ import annotations

import mailbox
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gmail_sandbox.sample_mail import SampleMessage, sample_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmail_sandbox.account import GmailAccount
    from gmail_sandbox.state import State


class BadMailSource(ValueError):
    """`--mail` names nothing that can be read."""


def load_once(account: GmailAccount, state: State, source: str, seed: int) -> None:
    """Put the first mail into an account, unless its state says that this was done before."""
    if not source or state.meta("mail") is not None:
        return
    if source.startswith("bulk:"):
        account.deliver_generated(_count(source.removeprefix("bulk:"), source))
    with state.writing():
        if not source.startswith("bulk:"):
            for message in messages(source, seed):
                account.deliver(message.raw, message.labels, message.flags, message.internaldate)
        state.set_meta("mail", source)


def messages(source: str, seed: int) -> Iterator[SampleMessage]:
    """Return the messages of a source: a number, a folder or an mbox file."""
    path = Path(source)
    if source.isdigit():
        return sample_messages(int(source), seed)
    if path.is_dir():
        return (_from_file(raw) for raw in (entry.read_bytes() for entry in sorted(path.glob("*.eml"))))
    if path.is_file():
        return (_from_file(raw) for raw in _mbox(path))
    raise BadMailSource(f"--mail {source}: neither a number, nor bulk:N, nor a folder of .eml files, nor an mbox file")


def _mbox(path: Path) -> Iterator[bytes]:
    box = mailbox.mbox(path, create=False)
    try:
        for key in box.iterkeys():
            # An mbox has bare line feeds; on the wire lines end in CR LF.
            yield box.get_bytes(key).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    finally:
        box.close()


def _from_file(raw: bytes) -> SampleMessage:
    return SampleMessage(raw, ("\\Inbox",), (), _date_of(raw))


def _date_of(raw: bytes) -> int:
    for line in raw.splitlines():
        if not line:
            break
        if line.lower().startswith(b"date:"):
            try:
                when = parsedate_to_datetime(line[5:].decode("ascii", "replace").strip())
            except ValueError:
                break
            return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    return int(datetime.now(UTC).timestamp() * 1000)


def _count(text: str, source: str) -> int:
    if not text.isdigit():
        raise BadMailSource(f"--mail {source}: bulk needs a number, as in bulk:200000")
    return int(text)
