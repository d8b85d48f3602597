"""What the package does before anything of it is loaded."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

import email_ingestion
from email_ingestion import LEAST_ROOM

BLOCK = 4096


@pytest.mark.parametrize(
    ("free", "given", "expected"),
    [
        (LEAST_ROOM - BLOCK, False, True),
        (0, False, True),
        (LEAST_ROOM, False, False),
        (LEAST_ROOM, True, True),  # somebody has said so
        (OSError, False, False),
    ],
)
def test_no_bytecode_is_written_where_half_a_file_could_be_left(
    monkeypatch: pytest.MonkeyPatch, free: int | type[OSError], given: bool, expected: bool
) -> None:
    asked: list[str] = []

    def statvfs(path: str) -> os.statvfs_result:
        asked.append(path)
        if isinstance(free, type):
            raise free
        return os.statvfs_result((BLOCK, BLOCK, 10**9, 10**9, free // BLOCK, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(sys, "dont_write_bytecode", given)
    importlib.reload(email_ingestion)
    assert sys.dont_write_bytecode is expected
    assert [Path(path).name for path in asked] == ["__init__.py"]
