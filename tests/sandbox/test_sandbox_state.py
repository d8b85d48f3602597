"""What a restart, even after kill -9, must not change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from gmail_sandbox import Credentials, SandboxSettings, running_sandbox

ALL = "\\All"


def picture(sandbox):
    return sandbox.with_account(
        lambda account: (
            {key: (m.uidvalidity, m.uidnext, m.uids, m.msgids) for key, m in account.mailboxes.items()},
            {m.msgid: (m.thrid, m.labels, m.flags, m.location, account.raw(m)) for m in account.messages.values()},
            account.modseq,
            account.presentation,
        )
    )


def test_restart_changes_nothing(tmp_path, mail):
    settings = SandboxSettings(mail="40", state=tmp_path / "state.db")
    with running_sandbox(settings) as sandbox:
        msgid = sandbox.deliver(mail(1), ["Work"]).message.msgid
        sandbox.arm_fault("trash_and_back", msgid=msgid)
        sandbox.with_account(lambda account: account.configure(language="it"))
        sandbox.with_account(lambda account: account.reset_uidvalidity("Work"))
        sandbox.with_account(lambda account: account.delete(min(account.messages)))
        token, before = sandbox.access_token(), picture(sandbox)
    with running_sandbox(settings) as sandbox:
        assert picture(sandbox) == before
        assert sandbox.call(lambda s: s.backend.tokens.find_access(token)) is not None
        new = sandbox.deliver(mail(2)).message
        assert new.modseq > before[2]
        assert sandbox.with_account(lambda account: account.uid_in_all_mail(new)) == before[0][ALL][1]


def test_generated_mail_survives_a_restart_without_being_stored(tmp_path):
    settings = SandboxSettings(mail="bulk:500", state=tmp_path / "state.db")
    with running_sandbox(settings) as sandbox:
        before = picture(sandbox)
    with running_sandbox(settings) as sandbox:
        assert picture(sandbox) == before


@pytest.fixture
def process(tmp_path):
    started = []

    def start(*more):
        ready = tmp_path / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "gmail_sandbox", "--imap-port=0", "--oauth-port=0"]
        command += ["--control-port=0", f"--ready-file={ready}", *more]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        started.append(child)
        deadline = time.monotonic() + 15
        while not ready.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return child, json.loads(ready.read_text()) if ready.exists() else {}

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stderr.close()


def deliver(ports, raw):
    request = urllib.request.Request(f"http://127.0.0.1:{ports['control_port']}/deliver", data=raw)
    request.add_header("Content-Type", "message/rfc822")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def test_killed_process_loses_nothing_and_keeps_its_uids(tmp_path, process, mail):
    state = f"--state={tmp_path / 'state.db'}"
    child, ports = process("--mail=5", state)
    delivered = [deliver(ports, mail(number)) for number in range(20)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, ports = process("--mail=5", state)
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['control_port']}/messages", timeout=5) as answer:
        kept = {message["msgid"]: message["uid"] for message in json.load(answer)["messages"]}
    assert ports["messages"] == 25
    assert {message["msgid"]: message["uid"] for message in delivered}.items() <= kept.items()


def test_process_writes_its_files_privately_and_stops_cleanly(tmp_path, process):
    token = tmp_path / "token.json"
    child, ports = process("--mail=3", f"--write-token={token}", "--token-life=60")
    assert ports["pid"] == child.pid
    assert Path(token).stat().st_mode & 0o777 == 0o600
    facts = json.loads(token.read_text())
    assert facts["token_uri"] == f"http://127.0.0.1:{ports['oauth_port']}/token"
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=10)
    assert (child.returncode, errors) == (0, b"")


def test_busy_port_is_one_sentence_and_exit_2(process):
    with running_sandbox() as sandbox:
        child, _ = process("--mail=1", f"--imap-port={sandbox.imap_port}")
        _, errors = child.communicate(timeout=10)
    assert child.returncode == 2
    assert errors.decode().count("\n") == 1
    assert f"port {sandbox.imap_port} on 127.0.0.1 is in use" in errors.decode()


def test_unreadable_mail_source_is_one_sentence_and_exit_2(process):
    child, _ = process("--mail=/does/not/exist")
    assert child.wait(10) == 2
    assert b"neither a number" in child.communicate()[1]


def test_token_life_is_the_sandboxs(tmp_path):
    settings = SandboxSettings(credentials=Credentials(token_life=5), state=tmp_path / "s.db")
    with running_sandbox(settings) as sandbox:
        token = sandbox.access_token()
        facts = sandbox.call(lambda s: s.backend.tokens.find_access(token))
    assert facts.expires_at - facts.issued_at == 5
