"""The audit log: a chain that shows what was done to it."""

from __future__ import annotations

import gzip
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from email_ingestion.cli.main import app
from email_ingestion.errors import OperationFailed
from email_ingestion.ops.audit_log import NAME, read_audit, verify_audit, write_audit


def write(log_dir: Path, count: int, user: str = "ada") -> Path:
    for number in range(count):
        write_audit(log_dir, {"user": user, "action": "dlq replay", "number": number, "result": "done"})
    return log_dir / NAME


def test_a_log_that_nobody_touched_is_whole_and_its_head_is_found_again_later(tmp_path: Path) -> None:
    write(tmp_path, 3)
    earlier = verify_audit(tmp_path)
    write(tmp_path, 2)
    later = verify_audit(tmp_path, earlier.head)
    assert (earlier.lines, later.lines) == (3, 5)
    assert (later.breaks, later.lost_head, later.unchained) == ([], False, 0)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda lines: [*lines[:1], lines[1].replace(b'"ada"', b'"eve"'), *lines[2:]], "line 3"),
        (lambda lines: [*lines[:1], *lines[2:]], "line 2"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], "line 2"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 2"),
        (lambda lines: [*lines[:2], b'{"user": "eve"}', *lines[2:]], "line 3"),
        (lambda lines: [*lines[:2], b"no JSON", *lines[2:]], "line 3"),
        (lambda lines: [*lines[:2], b"[" * 100_000, *lines[2:]], "line 3"),
    ],
    ids=["changed", "removed", "repeated", "swapped", "without a hash", "no JSON", "deep"],
)
def test_a_change_in_the_middle_is_named_by_its_line(tmp_path: Path, change, place: str) -> None:
    path = write(tmp_path, 5)
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    assert place in verify_audit(tmp_path).breaks[0]


def test_lines_cut_off_the_end_are_missed_by_who_noted_the_head(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    head = verify_audit(tmp_path).head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    assert verify_audit(tmp_path).breaks == []
    assert verify_audit(tmp_path, head).lost_head


def test_the_chain_goes_on_over_rotations_and_a_torn_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    with path.open("rb") as source, gzip.open(tmp_path / f"{NAME}.2.gz", "wb") as target:
        shutil.copyfileobj(source, target)
    path.unlink()
    write(tmp_path, 2).rename(tmp_path / f"{NAME}.1")
    path.touch()  # as logrotate's `create` does
    write(tmp_path, 1)
    chain = verify_audit(tmp_path)
    assert (chain.lines, chain.breaks) == (5, [])
    with path.open("ab") as file:
        file.write(b'{"user": "ad')  # the machine lost its power
    write(tmp_path, 1)
    (torn,) = verify_audit(tmp_path).breaks
    assert torn.endswith("line 2 cannot be read")
    assert [record["number"] for record in read_audit(tmp_path)] == [0, 1, 0, 1, 0, 0]


def test_lines_of_earlier_releases_come_before_the_chain_only(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"user": "ada", "timestamp": "2026-01-01T00:00:00+00:00"}\n' * 2)
    write(tmp_path, 2)
    chain = verify_audit(tmp_path)
    assert (chain.unchained, chain.lines, chain.breaks) == (2, 4, [])


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(write, [tmp_path] * 4, [25] * 4))
    chain = verify_audit(tmp_path)
    assert (chain.lines, chain.breaks) == (100, [])


def test_a_log_that_is_not_there_is_not_called_whole(tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match="nothing was ever ordered"):
        verify_audit(tmp_path)


def test_the_commands_say_what_was_done_and_whether_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "logs", 2)
    write(tmp_path / "logs", 1, "eve")
    runner = CliRunner()
    listed = runner.invoke(app, ["audit", "list", "--user", "eve", "--action", "dlq", "--last", "1h", "--json"])
    assert [record["user"] for record in json.loads(listed.stdout)] == ["eve"]
    assert runner.invoke(app, ["audit", "list", "--user", "nobody"], standalone_mode=False).return_value == 1
    whole = runner.invoke(app, ["audit", "verify"], standalone_mode=False)
    assert (whole.return_value, "the chain is whole" in whole.stdout) == (0, True)
    path.write_bytes(path.read_bytes().replace(b"eve", b"ada", 1))
    path.write_bytes(path.read_bytes().replace(b'"number": 0', b'"number": 7', 1))
    broken = runner.invoke(app, ["audit", "verify", "--json"], standalone_mode=False)
    assert (broken.return_value, len(json.loads(broken.stdout)["problems"])) == (1, 1)


def test_in_a_container_the_log_is_a_link_to_the_volume_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "logs" / "audit.log").symlink_to("../data/audit.log")
    assert list(read_audit(tmp_path / "logs")) == []
    write(tmp_path / "logs", 2)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"audit.log"}  # nothing else is written there
    assert len((tmp_path / "data" / "audit.log").read_text().splitlines()) == 2
    assert verify_audit(tmp_path / "logs").lines == 2
