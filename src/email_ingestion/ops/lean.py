"""Loads structlog without rich, which it would take for a way to show tracebacks that is not ours: 4 MB and 0.1 s."""

from __future__ import annotations

import sys

if "rich" in sys.modules:  # a command that draws tables
    import structlog
else:
    sys.modules["rich"] = None  # type: ignore[assignment]  # how the import system is told that there is none
    try:
        import structlog
    finally:
        del sys.modules["rich"]

__all__ = ["structlog"]
