"""Files, Maildir, lines of JSON, a function, a stream: whole or not there, and once for each identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from email_ingestion import Reject, Retry
from email_ingestion.email_json import from_json
from email_ingestion.errors import ConfigurationError, SinkFailed, SinkThrottled, SinkTimedOut, SinkUnavailable
from email_ingestion.records import SinkMessage
from email_ingestion.sinks import Sink, close_sink, load_sink
from email_ingestion.sinks.python import PythonSink
from email_ingestion.stream import Keys
from email_ingestion.worker.processor import stack_frames
from tests.contract.ledgers import mail, raw_of
from tests.servers.processes import until
from tests.servers.redis import RedisServer


@dataclass(frozen=True)
class Settings:
    """What these sinks read of the settings."""

    redis_address: str = "redis://127.0.0.1:1"
    stream_max_depth: int = 5
    sink_timeout: float = 20.0
    blob_threshold_bytes: int = 1000


def opened(name: str, settings: Settings | None = None) -> Sink:
    return load_sink(name, settings or Settings())  # type: ignore[arg-type]


def sink_messages(*numbers: int) -> list[SinkMessage]:
    return [SinkMessage(mail(number), raw_of(number)) for number in numbers]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_lie_by_the_day_with_the_record_beside_the_message(tmp_path: Path):
    sink = opened(f"files:{tmp_path}/out")
    sink.deliver(sink_messages(1, 30))
    found = files_in(tmp_path / "out")
    assert sorted(found) == [
        *("2026/01/01/default-gm-1.eml", "2026/01/01/default-gm-1.json"),
        *("2026/01/02/default-gm-30.eml", "2026/01/02/default-gm-30.json"),
    ]
    assert found["2026/01/01/default-gm-1.eml"] == raw_of(1)
    assert from_json(json.loads(found["2026/01/01/default-gm-1.json"])) == mail(1)


def test_files_written_again_are_the_same_files(tmp_path: Path):
    sink = opened(f"files:{tmp_path}/out")
    sink.deliver(sink_messages(1))
    before = files_in(tmp_path / "out")
    sink.deliver(sink_messages(1))
    assert files_in(tmp_path / "out") == before


def test_a_maildir_gets_each_message_once_even_after_it_was_read(tmp_path: Path):
    sink = opened(f"maildir:{tmp_path}/mail")
    sink.deliver(sink_messages(1, 2))
    sink.deliver(sink_messages(1, 2))
    new, cur = tmp_path / "mail" / "new", tmp_path / "mail" / "cur"
    assert sorted(files_in(new).values()) == [raw_of(1), raw_of(2)]
    for name in os.listdir(new):
        (new / name).rename(cur / f"{name}:2,S")
    sink.deliver(sink_messages(1, 2))
    assert files_in(new) == {}
    assert list((tmp_path / "mail" / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["files", "maildir"])
def test_a_directory_that_is_gone_makes_the_sink_unavailable(tmp_path: Path, name: str):
    sink = opened(f"{name}:{tmp_path}/out")
    sink.ping()
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "out").touch()
    with pytest.raises(SinkUnavailable):
        sink.ping()
    with pytest.raises(SinkUnavailable):
        sink.deliver(sink_messages(1))


@pytest.mark.parametrize("name", ["files", "maildir", "ndjson"])
def test_a_place_that_cannot_be_made_is_refused(tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="SINKS"):
        opened(f"{name}:{tmp_path}/file/out")


def test_lines_are_records(tmp_path: Path):
    path = tmp_path / "logs" / "mail.ndjson"
    sink = opened(f"ndjson:{path}")
    sink.deliver(sink_messages(1, 2))
    sink.deliver(sink_messages(3))
    assert [from_json(json.loads(line)) for line in path.read_bytes().splitlines()] == [mail(1), mail(2), mail(3)]


@pytest.mark.parametrize("torn", [b'{"schema": "ema', b"x" * 200_000])
def test_half_a_line_that_a_kill_left_is_taken_away(tmp_path: Path, torn: bytes):
    path = tmp_path / "mail.ndjson"
    sink = opened(f"ndjson:{path}")
    sink.deliver(sink_messages(1))
    with path.open("ab") as file:
        file.write(torn)
    sink.deliver(sink_messages(2))
    assert [from_json(json.loads(line)) for line in path.read_bytes().splitlines()] == [mail(1), mail(2)]


def test_a_rotated_file_is_begun_anew(tmp_path: Path):
    path = tmp_path / "mail.ndjson"
    sink = opened(f"ndjson:{path}")
    sink.deliver(sink_messages(1))
    path.rename(tmp_path / "mail.ndjson.1")
    sink.deliver(sink_messages(2))
    assert len(path.read_bytes().splitlines()) == 1


def test_lines_go_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]):
    sink = opened("ndjson")
    sink.ping()
    sink.deliver(sink_messages(1))
    assert from_json(json.loads(capfdbinary.readouterr().out)) == mail(1)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, under a name nobody else has."""
    name = f"sink_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from email_ingestion import Reject, Retry\n"
        "import atexit, os, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "class Never(Reject): pass\n"
        "calls = 0\n"
        "def handle(email):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if email.subject == 'never': raise Never('a word of ours')\n"
        "    if email.subject == 'later': raise Retry('busy', after=7)\n"
        "    if email.subject == 'exit': sys.exit(3)\n"
        "    if email.subject == 'die': os._exit(3)\n"
        "    if email.subject == 'wrong': raise KeyError(email.subject)\n"
        "    if email.subject == 'hang':\n"
        "        helper = subprocess.Popen(['sleep', '700'])\n"
        "        Path('pids').write_text(f'{os.getpid()} {helper.pid}')\n"
        "        time.sleep(700)\n"
        "    if email.subject == 'print': print('a line of mine')\n"
        "    Path('seen').open('a').write(f'{calls} {email.email_id} {len(email.text)}\\n')\n"
        "atexit.register(lambda: Path('ended').touch())\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def function(module: str) -> Iterator[PythonSink]:
    with closing(PythonSink(module, "handle", 1.5)) as sink:
        yield sink


def about(subject: str, number: int = 1) -> list[SinkMessage]:
    return [SinkMessage(mail(number, subject=subject), b"")]


def test_a_function_of_the_working_directory_gets_records_in_a_process_of_its_own(module: str, tmp_path: Path):
    sink = opened(f"python:{module}:handle")
    sink.ping()
    sink.deliver(sink_messages(1))
    sink.deliver(sink_messages(2))
    lines = (tmp_path / "seen").read_text().splitlines()
    assert lines == [f"1 default:gm:1 {len(mail(1).text)}", f"2 default:gm:2 {len(mail(2).text)}"]  # one process
    assert module not in sys.modules
    with pytest.raises(Reject, match="a word of ours"):
        sink.deliver(about("never"))
    with pytest.raises(Retry) as raised:
        sink.deliver(about("later"))
    assert raised.value.after == 7
    close_sink(sink)
    assert (tmp_path / "ended").exists()


def test_a_call_that_takes_too_long_is_ended_with_all_that_it_started(function: PythonSink, tmp_path: Path):
    function.deliver(about("first"))
    with pytest.raises(SinkTimedOut, match=r"took longer than 1\.5 s, and its process was ended"):
        function.deliver(about("hang"))
    process, helper = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    assert not psutil.pid_exists(process)  # reaped before the next call may begin
    until(lambda: not alive(helper), "what it started has ended")
    function.deliver(about("next", 2))
    assert [line.split()[0] for line in (tmp_path / "seen").read_text().splitlines()] == ["1", "1"]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("subject", "words"), [("exit", "SystemExit"), ("die", "ended its process with 3"), ("wrong", "KeyError")]
)
def test_whatever_a_function_does_is_a_failure_and_the_next_call_works(
    function: PythonSink, tmp_path: Path, subject: str, words: str
):
    with pytest.raises(SinkFailed, match=words) as raised:
        function.deliver(about(subject))
    assert subject not in str(raised.value).split()
    function.deliver(about("next", 2))
    assert "default:gm:2" in (tmp_path / "seen").read_text()


def test_the_dead_letter_can_show_where_a_function_failed(function: PythonSink, module: str):
    with pytest.raises(SinkFailed) as raised:
        function.deliver(about("wrong"))
    frames = stack_frames(raised.value)
    assert f"{module}.py" in frames
    assert "KeyError" in frames


def test_what_a_function_prints_is_logged(function: PythonSink, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", "email_ingestion.sinks.python"):
        function.deliver(about("print"))
        until(lambda: "a line of mine" in caplog.messages, "the line is logged")


def test_an_operator_ends_the_call_with_one_message_and_no_other(function: PythonSink, tmp_path: Path):
    slow = PythonSink(*function._function.split(":"), timeout=60)
    ended: list[Exception] = []

    def deliver() -> None:
        with pytest.raises(SinkFailed) as raised:
            slow.deliver(about("hang"))
        ended.append(raised.value)

    thread = threading.Thread(target=deliver)
    thread.start()
    until((tmp_path / "pids").exists, "the call is running")
    slow.interrupt("default:gm:2")
    assert thread.is_alive()
    slow.interrupt("default:gm:1")
    thread.join(20)
    assert ended
    slow.close()


def test_a_call_ends_with_its_killed_worker(module: str, tmp_path: Path):
    code = (
        "from email_ingestion.sinks.python import PythonSink\n"
        "from email_ingestion.records import SinkMessage\n"
        "from tests.contract.ledgers import mail\n"
        f"PythonSink({module!r}, 'handle', 600).deliver([SinkMessage(mail(1, subject='hang'), b'')])\n"
    )
    root = Path(__file__).parents[2]
    worker = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(root)})
    until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text(), "the call is running")
    worker.kill()
    worker.wait()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until(lambda: not any(map(alive, pids)), "the call and what it started have ended")


@pytest.mark.parametrize(
    "target", ["", "handle", "no_such_module_anywhere:handle", "json:no_such_function", "json:__doc__"]
)
def test_a_function_that_is_not_there_is_refused(target: str):
    with pytest.raises(ConfigurationError, match="SINKS: "):
        opened(f"python:{target}")


def test_a_module_that_fails_when_imported_is_refused(module: str, tmp_path: Path):
    (tmp_path / f"{module}.py").write_text("raise RuntimeError('no licence')\n")
    with pytest.raises(ConfigurationError, match="no licence"):
        opened(f"python:{module}:handle")


@pytest.mark.parametrize(
    "trouble",
    ["raise OSError(24, 'Too many open files')", "raise MemoryError", "import os; os.kill(os.getpid(), 9)"],
    ids=["no descriptor", "no memory", "killed"],
)
def test_a_module_for_which_the_machine_has_nothing_to_spare_is_tried_again(module: str, tmp_path: Path, trouble: str):
    path = tmp_path / f"{module}.py"
    works = path.read_text()
    path.write_text(f"{trouble}\n")
    with pytest.raises(SinkUnavailable):
        opened(f"python:{module}:handle")
    path.write_text(works)
    close_sink(opened(f"python:{module}:handle"))


def test_a_worker_without_a_descriptor_to_spare_waits_for_its_sinks():
    """No setting is wrong, and nothing of ours: then the worker would end and stay away."""
    script = (
        "import resource, email_ingestion.sinks as sinks\n"
        "from email_ingestion.errors import SinkUnavailable\n"
        "limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit))\n"
        "try: sinks.load_sink('ndjson', None)\n"
        "except SinkUnavailable as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("sink ndjson cannot be opened now: "), done.stderr


@pytest.mark.parametrize("key", ["", "mine"])
def test_a_stream_has_an_entry_for_each_message(redis_server: RedisServer, key: str):
    sink = opened(f"stream:{key}" if key else "stream", Settings(redis_server.url))
    sink.ping()
    sink.deliver(sink_messages(1, 2))
    close_sink(sink)
    with redis_server.client() as client:
        entries = [fields for _, fields in client.xrange(key or Keys().sink_stream)]
    assert [fields[b"email_id"] for fields in entries] == [b"default:gm:1", b"default:gm:2"]
    assert [from_json(json.loads(fields[b"json"])) for fields in entries] == [mail(1), mail(2)]


def test_a_stream_nobody_reads_is_not_trimmed_but_full(redis_server: RedisServer):
    with closing(opened("stream:mine", Settings(redis_server.url))) as sink:  # type: ignore[type-var]
        sink.deliver(sink_messages(1, 2, 3, 4, 5))
        with pytest.raises(SinkThrottled):
            sink.deliver(sink_messages(6))
        with redis_server.client() as client:
            assert client.xlen("mine") == 5


def test_a_stream_on_a_redis_that_is_away_is_unavailable():
    with closing(opened("stream")) as sink:  # type: ignore[type-var]
        with pytest.raises(SinkUnavailable):
            sink.ping()
        with pytest.raises(SinkUnavailable):
            sink.deliver(sink_messages(1))


@pytest.mark.parametrize("key", [Keys().stream, Keys().dlq])
def test_the_stream_on_which_mail_arrives_is_refused(key: str):
    with pytest.raises(ConfigurationError, match="another key"):
        opened(f"stream:{key}")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution that offers the sinks `theirs`, `broken` and `half`."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[email_ingestion.sinks]\n"
        "theirs = their_sinks:open_sink\nbroken = no_module_of_theirs:open_sink\nhalf = their_sinks:open_half\n"
    )
    (tmp_path / "their_sinks.py").write_text(
        "class Sink:\n"
        "    name = 'theirs'\n"
        "    def __init__(self, target): self.target, self.taken = target, []\n"
        "    def deliver(self, batch): self.taken += [message.email.email_id for message in batch]\n"
        "    def ping(self): pass\n"
        "def open_sink(settings, target=''): return Sink(target)\n"
        "def open_half(settings): return object()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("name", "target"), [("theirs", ""), ("theirs:a:b", "a:b")])
def test_a_package_offers_a_sink_of_its_own(package: Path, name: str, target: str):
    assert package.exists()
    sink: Any = opened(name)
    assert sink.target == target
    sink.ping()
    assert sink.deliver(sink_messages(1)) is None
    close_sink(sink)
    assert sink.taken == ["default:gm:1"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("broken", "no_module_of_theirs"), ("half", "'half' .*has no deliver"), ("half:x", "'half' takes nothing behind")],
)
def test_a_package_that_offers_no_usable_sink_is_refused(package: Path, name: str, words: str):
    assert package.exists()
    with pytest.raises(ConfigurationError, match=words):
        opened(name)


@pytest.mark.parametrize("name", ["database:x", "webhook:https://example.com"])
def test_a_sink_that_takes_no_target_is_refused_with_one(name: str):
    with pytest.raises(ConfigurationError, match="takes nothing behind"):
        opened(name)
