"""A child process of ours starts whatever the disk looks like."""

from __future__ import annotations

import os
import py_compile
from pathlib import Path

import pytest

from email_ingestion.child_process import ChildProcess


def test_a_child_starts_though_a_full_disk_cut_its_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needed, served = tmp_path / "needed_by_child.py", tmp_path / "served_by_child.py"
    needed.write_text("ANSWER = 'up'\n")
    served.write_text(
        "from email_ingestion.child_process import connect_to_parent, receive, send\n"
        "from msgspec.msgpack import Decoder\n"
        "from needed_by_child import ANSWER\n"
        "with connect_to_parent() as parent:\n"
        "    receive(parent, Decoder(str))\n"
        "    send(parent, ANSWER)\n"
    )
    cached = Path(py_compile.compile(str(needed), doraise=True))
    cached.write_bytes(cached.read_bytes()[:-20])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    child = ChildProcess("served_by_child", answer=str)
    try:
        assert child.start("are you up?", 30.0, 1000) == "up"
    finally:
        child.close()
