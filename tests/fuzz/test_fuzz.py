"""A short run of the fuzzer; see `parse_target`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).with_name("parse_target.py")
CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.mark.soak
def test_no_input_that_the_fuzzer_finds_breaks_the_parser(tmp_path: Path):
    pytest.importorskip("atheris", reason="there is no atheris for this platform")
    found = tmp_path / "found"
    found.mkdir()
    options = ["-max_total_time=60", "-timeout=10", "-rss_limit_mb=1024", "-max_len=20000", "-print_final_stats=1"]
    ran = subprocess.run(
        [sys.executable, str(TARGET), *options, str(found), str(CORPUS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "stat::number_of_executed_units" in ran.stderr
