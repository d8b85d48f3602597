"""Keeps a library from loading what it only has a look at."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Let a library that is imported here find these modules not installed; those that are loaded already stay."""
    marked = [name for name in names if name not in sys.modules]
    for name in marked:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's mark for a missing module
    try:
        yield
    finally:
        for name in marked:
            del sys.modules[name]
