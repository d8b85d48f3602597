"""Mail for a round: mostly small, some larger than the blob threshold, some binary; no two messages are alike."""

from __future__ import annotations

import base64
from random import Random

# (share, least and most bytes of the body): most mail is small, one in a hundred goes to the blob store.
SIZES = ((70, 100, 3_000), (25, 3_000, 15_000), (4, 15_000, 60_000), (1, 263_000, 300_000))

BINARY = 0.05  # share of messages with NUL bytes, bare line ends and whatever else must come through unchanged


def compose(rng: Random, count: int) -> list[bytes]:
    """Return `count` raw messages; at least one is above the blob threshold."""
    kinds = rng.choices(SIZES, weights=[share for share, _, _ in SIZES], k=count)
    kinds[rng.randrange(count)] = SIZES[-1]
    return [_letter(rng, rng.randint(least, most)) for _, least, most in kinds]


def _letter(rng: Random, size: int) -> bytes:
    name = rng.randbytes(12).hex()
    head = f"From: Ada <ada@example.org>\r\nSubject: letter {name}\r\nMessage-ID: <{name}@example.org>\r\n\r\n".encode()
    if rng.random() < BINARY:
        return head + rng.randbytes(min(size, 5_000))
    return head + base64.encodebytes(rng.randbytes(size * 3 // 4)).replace(b"\n", b"\r\n")
