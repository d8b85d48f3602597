"""A wall clock that can be set and a resolver that can fail, for processes that are started with their environment.

`clock.c` and `names.c` are how.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def compiler() -> str:
    """Where the C compiler is; empty where there is none."""
    return shutil.which("cc") or ""


def no_compiler() -> str:
    """Say why neither can be had; empty where they can."""
    return "" if compiler() else "there is no C compiler to build what is preloaded into the processes"


def _build(source: str, folder: Path) -> Path:
    """Compile a library into `folder`, once."""
    library = folder / source.replace(".c", ".so")
    if not library.exists():
        command = [compiler() or "cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(HERE / source), "-ldl"]
        subprocess.run(command, check=True)
    return library


class SettableClock:
    """Built in `folder` at first use; starts at the right time."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "clock"
        self._library = _build("clock.c", folder)
        if not self._offset.exists():
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


class FailingNames:
    """Built in `folder`; starts with a resolver that works."""

    def __init__(self, folder: Path) -> None:
        self._away = folder / "names-away"
        self.environment = {"LD_PRELOAD": str(_build("names.c", folder)), "NAMES_AWAY": str(self._away)}

    def fail(self) -> None:
        """No name is found from now on."""
        self._away.write_text("")

    def slow_down(self, seconds: int) -> None:
        """Each name is found after so many seconds from now on."""
        self._away.write_text(str(seconds))

    def mend(self) -> None:
        """Names are found again."""
        self._away.unlink(missing_ok=True)
