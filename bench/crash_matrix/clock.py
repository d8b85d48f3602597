"""A wall clock that can be set, for the processes that are started with its environment; `clock.c` is how."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


def compiler() -> str:
    """Where the C compiler is; empty where there is none."""
    return shutil.which("cc") or ""


class SettableClock:
    """Built in `folder` at first use; starts at the right time."""

    def __init__(self, folder: Path) -> None:
        self._library, self._offset = folder / "clock.so", folder / "clock"
        if not self._library.exists():
            subprocess.run(
                [compiler() or "cc", "-shared", "-fPIC", "-O2", "-o", str(self._library), str(SOURCE)], check=True
            )
            self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to live by it."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET_FILE": str(self._offset)}

    def set(self, seconds: int) -> None:
        """Step to so many seconds after the right time."""
        self._offset.touch()
        with self._offset.open("r+b") as file:
            file.write(struct.pack("l", seconds))
