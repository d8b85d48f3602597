"""The corpus on disk, so that every contender reads the same bytes: each message behind its length."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

_LENGTH = struct.Struct(">I")


def write(path: Path, letters: Iterable[bytes]) -> None:
    """Write all."""
    with path.open("wb") as file:
        for raw in letters:
            file.write(_LENGTH.pack(len(raw)) + raw)


def read(path: Path, most: int) -> Iterator[bytes]:
    """The first `most` of them."""
    with path.open("rb") as file:
        for _ in range(most):
            head = file.read(_LENGTH.size)
            if not head:
                return
            yield file.read(_LENGTH.unpack(head)[0])
