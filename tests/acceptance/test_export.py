"""What was delivered comes out again, and what nothing refers to any more is removed, while nothing else is."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from contextlib import suppress
from dataclasses import replace

from email_ingestion.blobs import open_blobs, reference
from email_ingestion.email_json import from_json
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender
from tests.servers.commands import told, typed
from tests.servers.links import link, message
from tests.servers.processes import Place
from tests.servers.redis import RedisServer


def test_a_message_comes_out_as_it_came_and_orphans_are_removed(here: Place, own_redis: RedisServer):
    blobs = open_blobs(f"file:{here.folder}/data/blobs")
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\x08\x9b31m".encode()
    large = [message(uid, raw=b"Subject: large %d\r\n\r\n%s" % (uid, evil) + b"x" * 300_000) for uid in (1, 2)]
    refs = [blobs.put(each.raw or b"") for each in large]
    stored = [replace(each, raw=None, raw_ref=ref) for each, ref in zip(large, refs, strict=True)]
    intake = Appender(link(own_redis.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    intake.append("default", "INBOX", Cursor(1, 0), 1, stored[:1])
    assert here.run("worker.py", "--drain").returncode == 0
    intake.append("default", "INBOX", Cursor(1, 1), 2, stored[1:])  # still on its way
    orphan, young = blobs.put(b"nobody refers to this"), blobs.put(b"somebody will")
    long_ago = time.time() - 40 * 86400
    for path in (here.folder / "data" / "blobs").glob("??/??/*"):
        if reference(path.name) != young:
            os.utime(path, (long_ago, long_ago))

    found = {"orphans": [orphan], "bytes": 21, "aside": {"orphans": [], "bytes": 0}}
    assert told(here, "blobs", "collect", "--dry-run") == found | {"removed": False}
    assert told(here, "blobs", "collect") == found | {"removed": True}
    assert [blobs.exists(ref) for ref in (*refs, young, orphan)] == [True, True, True, False]
    assert typed(here, "blobs", "collect", "--older-than", "1h").returncode == 64

    email_id = large[0].envelope.email_id
    shown = here.run("-m", "email_ingestion", "export", email_id, "--eml").stdout  # as text: line ends are unified
    assert shown == (large[0].raw or b"").decode().replace("\r\n", "\n")
    assert typed(here, "export", email_id, "-o", "one.eml").returncode == 0
    assert (here.folder / "one.eml").read_bytes() == large[0].raw
    assert typed(here, "export", email_id, "--json", "-o", "one.json").returncode == 0
    assert from_json(json.loads((here.folder / "one.json").read_text())).envelope == large[0].envelope
    at_terminal = export_to_terminal(here, email_id)
    assert "large 1" in at_terminal
    assert not [each for each in at_terminal if not each.isprintable() and each not in "\r\n"]
    again = typed(here, "export", email_id, "-o", "one.eml")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    assert typed(here, "export", "default:gm:5").returncode == 1


def export_to_terminal(here: Place, email_id: str) -> str:
    ours, theirs = pty.openpty()
    command = [here.python, "-m", "email_ingestion", "export", email_id]
    with subprocess.Popen(command, cwd=here.folder, env=here.environment, stdout=theirs):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # Linux's end of a terminal
            while part := os.read(ours, 65_536):
                shown += part
    os.close(ours)
    return shown.decode()
