"""File modes: what this program writes is for its own user alone.

Everybody's bits always go. The group's bits stay where an administrator set them: on a folder with the setgid bit, or
one that the group may enter and others may not (a log shipper, Prometheus, the fsGroup of a Kubernetes volume). A
folder as `git clone` leaves it, open to group and others alike, was set by nobody.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

UMASK = 0o077
OTHERS, GROUP = stat.S_IRWXO, stat.S_IRWXG
MAX_REPAIRED = 10_000  # entries of one folder: more are behind a folder that nobody else can enter


def use_private_umask() -> None:
    """Give all files and folders that this process makes from now on to its user alone."""
    os.umask(UMASK)


def share_with_group(path: Path) -> None:
    """Let the group read (and write, where it may in the folder) a file in a folder that is open to the group.

    A file of another owner stays as it is.
    """
    with suppress(OSError):
        folder, mode = path.parent.stat().st_mode, stat.S_IMODE(path.stat().st_mode)
        if _is_for_group(folder):
            os.chmod(path, mode | (stat.S_IRGRP if folder & stat.S_IRGRP else 0) | (folder & stat.S_IWGRP))


def repair_modes(folders: Iterable[Path]) -> None:
    """Close to others the folders below the working directory, and what lies directly in them, as far as it is ours.

    Folders elsewhere may be shared with other programs: they stay as they are.
    """
    if os.name == "nt":
        return
    here = Path.cwd().resolve()
    for folder in folders:
        with suppress(OSError):
            if here in folder.resolve().parents:
                for path in (folder, *_entries(folder)):
                    _close_to_others(path)


def open_to_others(paths: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """Yield the files, of those that exist, that every user of this machine can use, with their modes.

    A file in a folder that others cannot enter is closed to them, whatever its own mode.
    """
    for path in paths:
        with suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & OTHERS and os.name != "nt" and _can_be_reached(path.resolve()):
                yield path, mode


def _can_be_reached(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)


def _entries(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry, _ in zip(entries, range(MAX_REPAIRED), strict=False)]


def _close_to_others(path: Path) -> None:
    with suppress(OSError):  # gone meanwhile, or not ours to change
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid() or not mode & OTHERS:
            return
        kept_for_group = mode & stat.S_ISGID or _is_for_group(path.parent.stat().st_mode)
        os.chmod(path, mode & ~OTHERS if kept_for_group else mode & ~(OTHERS | GROUP))


def _is_for_group(mode: int) -> bool:
    """Return whether an administrator opened a folder with this mode to its group."""
    return bool(mode & stat.S_ISGID or (mode & stat.S_IXGRP and not mode & OTHERS))
