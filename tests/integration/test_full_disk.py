"""On a full disk the commands of the night show what they can, say what was not kept, and leave nothing half-written.

A limit on the size of files stands for the disk: a write beyond it is cut short and then refused, as on a full one.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from email_ingestion.atomic_files import unwritable
from email_ingestion.cli.exit_codes import leave
from email_ingestion.cli.main import app
from email_ingestion.doctor.machine_checks import check_folder
from email_ingestion.errors import ConfigurationError, DiskFull
from email_ingestion.incidents import incident_log
from email_ingestion.incidents.incident_log import FOLDER, find_incident, list_incidents, open_incident
from email_ingestion.ops.audit_log import read_audit, verify_audit, write_audit
from tests.servers.redis import RedisServer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module that is imported under the limit
    for name, value in {"REDIS_URL": own_redis.url, "OPS_PORT": "0", "IMAP_USER": "someone@example.com"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run(*words: str, room: int | None = None) -> tuple[int, str, str]:
    """Run a command; an error of ours is its last line, as `leave` writes it."""

    class Group:
        def main(self, **_: object) -> int:
            with room_for(room if room is not None else 1 << 30):
                result = CliRunner().invoke(app, list(words), standalone_mode=False)
            said.append((result.stdout, result.stderr))
            if result.exception:
                raise result.exception
            return result.return_value

    said: list[tuple[str, str]] = []
    failures: list[str] = []
    with pytest.raises(SystemExit) as end:
        leave(Group(), lambda _error, sentence, _code: failures.append(sentence))
    assert isinstance(end.value.code, int)
    return end.value.code, said[0][0], said[0][1] + "".join(failures)


def left_overs() -> list[str]:
    """Files of the incidents and of the log that are neither a record nor a lock."""
    found = [*Path("data/incidents").rglob("*"), *Path("logs").rglob("*")]
    return [str(path) for path in found if path.name.startswith(".") and path.suffix != ".lock"]


def test_an_incident_that_cannot_be_written_is_not_there_and_its_text_is_shown():
    code, shown, said = run("incident", "open", "--severity", "P2", "mail is late", room=0)
    assert code == 2
    assert "no incident was opened" in said
    assert "INC-" not in shown
    assert "P2 OPENED: mail is late" in shown
    assert "What we see" in shown
    assert "nobody foresaw" not in said
    assert run("incident", "list")[0] == 1
    assert left_overs() == []
    assert run("incident", "open", "--no-evidence", "mail is late")[1].splitlines()[0].endswith("-001")


def test_an_incident_of_which_only_the_record_has_room_is_there_and_says_what_is_not_kept():
    code, shown, said = run("incident", "open", "mail is late", room=600)
    assert code == 2
    number = shown.splitlines()[0]
    assert "OPENED: mail is late" in shown
    for lost in ("assessment.json", "initial.md", "evidence"):
        assert lost in said
    assert [each.number for each in list_incidents()] == [number]
    assert find_incident(number).texts("opened") == ["P2 mail is late"]
    assert left_overs() == []
    assert not (FOLDER / number / "evidence").exists(), "evidence without its manifest proves nothing"
    code, _, said = run("incident", "update", number, "there is room again")
    assert (code, said) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, 2), (errno.ENOSPC, 2), (errno.EACCES, 78)])
def test_each_command_ends_with_the_same_code_for_the_same_disk(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch
):
    open_incident("mail is late", "P2", "ada")

    def refuse(incident: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(incident_log, "_write", refuse)
    for words in (("open", "worse"), ("note", "001", "x"), ("ack", "001"), ("checklist", "001", "--done", "3")):
        assert run("incident", *words)[0] == code, words


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("note", "001", "restarted"), ""),
        (("ack", "001"), ""),
        (("update", "001", "it runs again"), "it runs again"),
        (("resolve", "001", "--cause", "c", "--fix", "f"), ""),
        (("summary", "001"), "not known yet"),
        (("statuspage", "001"), "Investigating"),
        (("postmortem", "001"), "## Timeline"),
        (("verify", "001"), "# Verification"),
        (("checklist", "001", "--done", "7"), ""),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_kept_is_shown_and_changes_nothing(words: tuple[str, ...], shown: str):
    number = open_incident("mail is late", "P2", "ada").number
    before = find_incident(number)
    code, printed, said = run("incident", *words, room=0)
    assert code == 2
    assert "cannot write" in said
    assert shown in printed
    assert "nobody foresaw" not in said
    assert find_incident(number) == before
    assert left_overs() == []
    assert run("incident", "list")[0] == 0


def test_an_incident_is_all_changed_or_not_at_all_wherever_the_room_ends():
    number = open_incident("mail is late", "P2", "ada").number
    for room in range(0, 1200, 40):
        before = find_incident(number)
        code, _, _ = run("incident", "resolve", number, "--cause", "c" * 300, "--fix", "f", room=room)
        after = find_incident(number)
        if after != before:
            assert (after.state, after.texts("resolved")) == ("resolved", [f"{'c' * 300} -> f"])
            break
        assert code == 2
    else:
        pytest.fail("it was never resolved")


def test_a_line_of_the_audit_log_is_whole_or_not_there():
    for number in range(3):
        write_audit(Path("logs"), {"user": "ada", "action": "pause", "number": number, "result": "done"})
    size = Path("logs/audit.log").stat().st_size
    for room in range(size - 1, size + 200, 7):
        with room_for(room), pytest.raises(DiskFull, match="ulimit -f"):
            write_audit(Path("logs"), {"user": "ada", "action": "resume", "result": "done", "why": "x" * 300})
        assert Path("logs/audit.log").stat().st_size == size
    write_audit(Path("logs"), {"user": "ada", "action": "resume", "result": "done"})
    assert (verify_audit(Path("logs")).breaks, len(list(read_audit(Path("logs"))))) == ([], 4)


def test_evidence_has_what_there_is_room_for_and_names_the_rest():
    Path("logs").mkdir()
    Path("logs/producer.log").write_text(json.dumps({"event": "x", "level": "INFO"}) * 2000 + "\n")
    code, _, said = run("evidence", "collect", "--out", "found", room=40_000)
    assert "logs/producer.log: cannot write" in said
    manifest = json.loads(Path("found/manifest.json").read_text())
    assert "machine.json" in manifest["files"]
    assert "logs/producer.log" in manifest["missing"]
    assert code == 1
    code, _, said = run("evidence", "collect", "--out", "nothing", room=0)
    assert (code, "cannot write nothing" in said, Path("nothing").exists()) == (2, True, False)


def test_an_incident_that_cannot_be_read_hides_no_other_and_is_named():
    broken, whole = (open_incident(title, "P2", "ada", "NoWorkers").number for title in ("one", "two"))
    (FOLDER / broken / "incident.json").write_text("")
    code, printed, said = run("incident", "list")
    assert (code, whole in printed, broken in said) == (2, True, True)
    assert find_incident("NoWorkers").number == whole
    assert run("incident", "open", "--no-evidence", "three")[1].splitlines()[0].endswith("-003")


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (28, DiskFull, "df -i data"),
        (27, DiskFull, "ulimit -f"),
        (30, DiskFull, "read-only"),
        (13, ConfigurationError, "make data writable"),
    ],
)
def test_what_to_do_so_that_a_file_can_be_written(number: int, kind: type, remedy: str):
    found = unwritable(Path("data/x"), OSError(number, "reason"))
    assert type(found) is kind
    assert remedy in str(found)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(30, "mounted read-only"), (28, "df -i"), (13, "chown -R $(id -u)")],
    ids=["ro", "full", "rights"],
)
def test_the_doctor_advises_by_what_is_wrong_with_a_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
):
    def refuse(**_: object) -> None:
        raise OSError(number, "reason")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = check_folder("LOG_DIR", here / "logs")
    assert (found.verdict, remedy in found.remedy) == ("failed", True)
