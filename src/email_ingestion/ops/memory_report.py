"""What a live process does with its memory: watched for a while by tracemalloc, which then is switched off again.

Tracing makes allocations about twice as slow while it lasts; nothing of it stays.
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from email_ingestion.errors import OperationFailed

_busy = threading.Lock()


def watch_memory(seconds: float, top: int, sleep: Callable[[float], object] = time.sleep) -> dict[str, Any]:
    """Watch this process for `seconds`; return its size, the lines that hold what was allocated, and its objects.

    `lines` are those whose allocations of that time are still held at its end, the largest first. Raises
    OperationFailed while somebody else watches.
    """
    if not _busy.acquire(blocking=False):
        raise OperationFailed("its memory is being watched already: try again when that is over")
    try:
        before = psutil.Process().memory_info().rss
        tracemalloc.start()
        try:
            sleep(seconds)
            current, peak = tracemalloc.get_traced_memory()
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
        own = (tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__),)
        lines = snapshot.filter_traces(own).statistics("lineno")[:top]
        after = psutil.Process().memory_info().rss
    finally:
        _busy.release()
    return {
        "seconds": seconds,
        "rss_bytes": after,
        "rss_growth_bytes": after - before,
        "held_bytes": current,  # of what was allocated meanwhile
        "peak_bytes": peak,
        "lines": [{"place": _place(each), "bytes": each.size, "blocks": each.count} for each in lines],
        "objects": [{"type": name, "count": count} for name, count in _objects(top)],
    }


def _objects(top: int) -> list[tuple[str, int]]:
    return Counter(type(each).__name__ for each in gc.get_objects()).most_common(top)


def _place(line: tracemalloc.Statistic) -> str:
    """Name a line by its file and the two folders above."""
    frame = line.traceback[0]
    return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"
