"""A parser that the system ends or does not let start is no message's fault."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from email_ingestion.errors import ParserDied, ParserUnavailable
from email_ingestion.parsing.isolated import PROBE, IsolatedParser
from tests.servers.poison import poisoned_python
from tests.servers.processes import until

LETTER = b"Subject: hello\r\n\r\nhello\r\n"


@pytest.fixture
def parser() -> Iterator[IsolatedParser]:
    with closing(IsolatedParser(30.0)) as made:
        yield made


def test_without_a_descriptor_to_spare_no_message_is_at_fault(parser: IsolatedParser):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # no new one, whatever is open or closed meanwhile
    try:
        with pytest.raises(ParserUnavailable, match="cannot be started"):
            parser.parse([(PROBE, LETTER)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert parser.parse([(PROBE, LETTER)])[0].subject == "hello"


def test_a_parser_that_ends_before_it_is_up_is_not_blamed_on_mail(
    parser: IsolatedParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(
        "PYTHONPATH", poisoned_python(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    )
    with pytest.raises(ParserUnavailable, match="ended with -9"):
        parser.parse([(PROBE, LETTER)])


def test_an_idle_parser_that_was_killed_is_started_again(parser: IsolatedParser):
    parser.check()
    os.kill(_pid(parser), signal.SIGKILL)
    parser._child._child.wait()
    assert parser.parse([(PROBE, LETTER)])[0].subject == "hello"


ONCE = """
import os, pathlib
import email_ingestion.parsing as parsing
harmless = parsing.parse
mark = pathlib.Path(os.environ["MARK"])
def parse(envelope, raw):
    if b"hello" in raw and (KILL_ALWAYS or not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), 9)
    return harmless(envelope, raw)
parsing.parse = parse
"""


@pytest.mark.parametrize("always", [False, True])
def test_a_message_is_at_fault_when_it_ends_the_parser_twice_and_an_empty_one_does_not(
    parser: IsolatedParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: bool
):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path, ONCE.replace("KILL_ALWAYS", str(always))))
    if always:
        with pytest.raises(ParserDied, match="died with -9"):
            parser.parse([(PROBE, LETTER)])
    else:
        assert parser.parse([(PROBE, LETTER)])[0].subject == "hello"


def test_an_operator_ends_the_parser_of_one_message_for_good(
    parser: IsolatedParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path))
    parser.check()
    timer = threading.Timer(0.5, parser.interrupt)
    timer.start()
    with pytest.raises(ParserDied):
        parser.parse([(PROBE, b"X-Poison: loop\r\n\r\n")])
    timer.join()


def _pid(parser: IsolatedParser) -> int:
    assert parser._child._child
    return parser._child._child.pid


def test_a_message_whose_time_is_over_is_left_out_and_the_others_are_not(
    parser: IsolatedParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path))
    endless = b"X-Poison: loop\r\n" + LETTER
    found = parser.parse_within(1.0, [(PROBE, LETTER), (PROBE, endless), (PROBE, LETTER), (PROBE, endless)])
    assert [one and one.subject for one in found] == ["hello", None, "hello", None]
    assert parser.parse([(PROBE, LETTER)])[0].subject == "hello"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_memory_ends_at_500_mb_and_a_large_message_has_more(parser: IsolatedParser):
    parser.parse([(PROBE, LETTER)])
    (child,) = [one for one in psutil.Process().children() if "parser_process" in " ".join(one.cmdline())]
    assert child.rlimit(psutil.RLIMIT_DATA)[0] == 500 * 1024**2
    (email,) = parser.parse([(PROBE, b"From: a@example.com\nContent-Type: image/png\n\n" + b"x" * 60_000_000)])
    assert [one.size for one in email.attachments] == [60_000_000]
    assert email.defects == ("date:missing",)


LOOPS = {
    "python": "while True: pass",
    "C": "import re; re.match('(a|a)*b', 'a' * 60)",  # which lets no other thread run
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_parser_that_never_returns_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str):
    site = f"import email_ingestion.parsing as parsing\ndef parse(*_):\n    {LOOPS[loop]}\nparsing.parse = parse\n"
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path, site))
    code = "from email_ingestion.parsing.isolated import *; IsolatedParser(60.0).parse([(PROBE, b'')])"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        try:
            child = until(lambda: next(iter(psutil.Process(parent.pid).children()), None), "the parser is there")
            until(lambda: child.cpu_times().user > 1.5, "it loops")
        finally:
            parent.kill()
    try:
        child.wait(5)
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def test_a_parser_that_is_interrupted_while_it_starts_was_not_unavailable(
    parser: IsolatedParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path, "import time\ntime.sleep(60)\n"))
    timer = threading.Timer(0.5, parser.interrupt)
    timer.start()
    with pytest.raises(ParserDied, match="ended with -9"):
        parser.parse([(PROBE, LETTER)])
    timer.join()


HOSTILE = """
import os, pickle, struct
from dataclasses import replace
import msgspec
import email_ingestion.child_process as protocol
honest = protocol.send
class Bomb:
    def __reduce__(self):
        return os.system, ("touch " + os.environ["MARK"],)
def body(value, *contents, size=None, count=None):
    encoded = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
    head = struct.pack(">QI", len(encoded) if size is None else size, len(contents) if count is None else count)
    return head + b"".join(struct.pack(">Q", len(one)) for one in contents) + encoded + b"".join(contents)
def send(sock, emails, contents=()):
    if not emails or len(emails[0].headers) < 2:
        return honest(sock, emails, contents)
    email = emails[0]
    sock.sendall(ANSWER)
    sock.close()
protocol.send = send
"""


@pytest.mark.parametrize(
    "answer",
    [
        "pickle.dumps(Bomb())",
        "body(pickle.dumps(Bomb()))",
        "body([])",
        "body([email, email])",
        "body([replace(email, subject=5)])",
        "body([{'envelope': 1}])",
        "body([replace(email, envelope=replace(email.envelope, account='other'))])",
        "body([email], b'a content of nobody')",
        "body([replace(email, attachments=(replace(email.attachments[0], size=70_000, content=b''),))])",
        "body(b'\\xc1')",
        "body(b'\\x91' * 100_000)",
        "body(b'', size=2**62)",
        "body(b'', count=2**32 - 1)",
        "struct.pack('>QIQ', 1, 1, 2**63)",
        "b''",
    ],
)
def test_code_that_took_the_parser_over_can_only_lose_its_message(
    parser: IsolatedParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path, HOSTILE.replace("ANSWER", answer)))
    mail = b"Subject: hello\r\nFrom: a@example.com\r\nContent-Type: image/png\r\n\r\npixels"
    before = psutil.Process().memory_info().vms
    with pytest.raises(ParserDied):
        parser.parse([(PROBE, mail)])
    assert not (tmp_path / "mark").exists()
    assert psutil.Process().memory_info().vms < before + 10**9
    monkeypatch.delenv("PYTHONPATH")
    parser.close()
    assert parser.parse([(PROBE, mail)])[0].subject == "hello"


def test_large_contents_travel_beside_the_record_and_stay_in_their_order(parser: IsolatedParser):
    parts = [bytes([number]) * size for number, size in enumerate((70_000, 3, 0, 200_000, 65_536))]
    encoded = b"".join(
        b"--b\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n%s\r\n" % b64encode(part)
        for part in parts
    )
    mail = b"Subject: hello\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n%s--b--\r\n" % encoded
    for email in parser.parse([(PROBE, mail), (PROBE, LETTER), (PROBE, mail)])[::2]:
        assert [one.content for one in email.attachments] == parts
        assert [one.size for one in email.attachments] == list(map(len, parts))
