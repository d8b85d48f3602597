"""Downloads one large message in pieces into a file, so that it is never in memory as a whole.

Not every server does as it is asked (RFC 3501, section 6.4.5): some send pieces shorter than asked, which go on where
they ended, and some the whole message in answer to each piece, which is taken as the whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from typing import IO

from email_ingestion.events import Downloaded, Observe
from email_ingestion.mailbox import ImapMailbox, MessageSummary
from email_ingestion.mailbox.imap_errors import MessagesRefused
from email_ingestion.producer.size_check import Answer

Reading = Generator[None, None, tuple[Answer, bytes]]

YIELD_SECONDS = 1.0  # after which other things have their turn: a message may take minutes
CHUNK_BYTES = 512 * 1024  # of which two are in memory
MAX_PIECES_MORE = 32  # than a message has chunks: a server that sends it byte by byte is asked for the whole


class PiecesTooLong(MessagesRefused):
    """The pieces of a message are more than was announced, all together."""


class PieceReader:
    """Reads messages in pieces over one connection, and remembers how the server answers."""

    def __init__(self, account: str, connection: ImapMailbox, observe: Observe) -> None:
        self._account = account
        self._connection = connection
        self._observe = observe
        self._sends_whole = False
        self._sends_pieces = False  # of the size that was asked for

    def read(self, summary: MessageSummary, file: IO[bytes], max_bytes: int, *, prefetch: bool) -> Reading:
        """Write the message into `file`; return what came, and its beginning. Yields now and then.

        Raises MessagesRefused, PiecesTooLong for more than `max_bytes`, and IMAPConnectionError.
        """
        if self._sends_whole:
            return self.read_whole(summary.uid, file, max_bytes)
        announced, uid = summary.announced, summary.uid
        digest, size, head, pieces = hashlib.sha256(), 0, b"", 0
        pieces_left = summary.size // CHUNK_BYTES + MAX_PIECES_MORE
        yielded_at = time.monotonic()
        while pieces_left:
            if time.monotonic() - yielded_at > YIELD_SECONDS:
                yield
                yielded_at = time.monotonic()
            pieces_left -= 1
            if prefetch and self._sends_pieces:
                self._prefetch(summary, size, max_bytes)
            part = self._connection.fetch_part(uid, size, CHUNK_BYTES, max_bytes)
            content = part.content if part else None
            if not part or not content:
                break
            self._observe(Downloaded(self._account, len(content)))
            if part.origin is None or len(content) > CHUNK_BYTES:
                self._sends_whole = True
                return _replace(file, content), content[:CHUNK_BYTES]
            pieces += 1
            head = head or content
            file.write(content)
            digest.update(content)
            size += len(content)
            if size > max_bytes:
                raise PiecesTooLong(
                    f"the IMAP server announces {summary.size:,} bytes and sends over {max_bytes:,}", {}
                )
            if len(content) == CHUNK_BYTES:
                self._sends_pieces = True
            elif announced is not None and size >= announced:
                break
            else:
                self._sends_pieces = False
        return Answer(size, digest.hexdigest()), head

    def _prefetch(self, summary: MessageSummary, offset: int, max_bytes: int) -> None:
        for start in range(offset, min(summary.size, offset + 2 * CHUNK_BYTES), CHUNK_BYTES):
            self._connection.prefetch([summary.uid], (start, CHUNK_BYTES), max_bytes)

    def read_whole(self, uid: int, file: IO[bytes], max_bytes: int) -> tuple[Answer, bytes]:
        """Fetch the message with one command, and write it into `file` in place of what is there; raises as `read`."""
        content = self._connection.fetch_bodies([uid], max_bytes).get(uid) or b""
        self._observe(Downloaded(self._account, len(content)))
        return _replace(file, content), content[:CHUNK_BYTES]


def _replace(file: IO[bytes], content: bytes) -> Answer:
    file.seek(0)
    file.truncate()
    file.write(content)
    return Answer(len(content), hashlib.sha256(content).hexdigest())
