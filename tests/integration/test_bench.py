"""The worker that is measured is ours and takes everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench import corpus_file
from bench.corpus import letters
from email_ingestion.stream import Keys
from tests.servers.processes import ROOT
from tests.servers.redis import running_redis


def test_the_measured_worker_leaves_nothing_in_the_stream(tmp_path: Path):
    corpus_file.write(tmp_path / "corpus", letters(12))
    with running_redis(tmp_path / "redis") as server, server.client() as client:
        said = [_run(tmp_path, command, server.url) for command in ("fill", "work")]
        left = client.xlen(Keys().stream)
    assert (left, json.loads(said[1]).keys()) == (0, {"seconds", "cpu"})


def _run(folder: Path, command: str, url: str) -> str:
    words = [sys.executable, "-m", "bench.ours", command, url, str(folder / "corpus"), "12", "database"]
    ended = subprocess.run(
        words, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=True
    )
    return ended.stdout
