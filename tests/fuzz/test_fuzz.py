"""Short runs of the fuzzers: what atheris finds (`parse_target`), mutations of the corpus, and bombs (`mutations`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import mutations

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


@pytest.mark.soak
@pytest.mark.parametrize("options", [["--count", "100000"], ["--bombs", "--count", "3000"]])
def test_no_mutation_and_no_bomb_is_slow_or_breaks_the_parser(tmp_path: Path, options: list[str]):
    command = [sys.executable, "-m", "tests.fuzz.mutations", "--found", str(tmp_path / "found"), *options]
    ran = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=3600, check=False
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "faults none" in ran.stdout


def test_mutations_and_bombs_are_the_same_every_time_and_break_nothing(tmp_path: Path):
    options = ["--count", "60", "--found", str(tmp_path)]
    assert mutations.main(options) == 0
    assert mutations.main(["--bombs", *options]) == 0
    seeds = [b"Subject: x\n\nhello"]
    assert [mutations.mutation(1, number, seeds) for number in range(30)] == [
        mutations.mutation(1, number, seeds) for number in range(30)
    ]
    assert list(tmp_path.iterdir()) == []
