"""The memory limit that is nearest, as control groups of both versions and `ulimit -v` set it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from email_ingestion.ops.memory_limit import MemoryUse, memory_use

PAGES = "anon 1\ninactive_file 4000\n"
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file 4000\n")


def group(folder: Path, limit: str, used: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(names[2])


V2 = ("memory.max", "memory.current", PAGES)


@pytest.mark.parametrize(
    ("line", "below", "names", "none"),
    [("0::/unit", "", V2, "max"), ("4:cpu,memory:/unit", "memory", V1, "9223372036854771712")],
)
def test_the_nearest_limit_is_told_without_what_the_kernel_can_drop(
    tmp_path: Path, line: str, below: str, names: tuple[str, str, str], none: str
) -> None:
    root = tmp_path / "groups" / below
    (tmp_path / "cgroup").write_text(f"1:cpu:/unit\n{line}\n")
    group(root / "unit", none, 50_000, names)
    group(root, none, 900_000, names)
    assert memory_use(tmp_path, tmp_path / "groups") is None
    group(root, "1000000", 900_000, names)
    assert memory_use(tmp_path, tmp_path / "groups") == MemoryUse(896_000, 1_000_000)
    group(root / "unit", "50000", 49_500, names)
    assert memory_use(tmp_path, tmp_path / "groups") == MemoryUse(45_500, 50_000)


def test_where_nothing_is_told_nothing_is_shown(tmp_path: Path) -> None:
    assert memory_use(tmp_path / "no-proc") is None


def test_a_limit_of_the_address_space_is_one() -> None:
    code = "from email_ingestion.ops.memory_limit import memory_use; print(memory_use().limit)"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 8000000; exec {sys.executable} -c '{code}'"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) == 8_000_000 * 1024
