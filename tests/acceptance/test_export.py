"""What was delivered comes out again, and what nothing refers to any more is removed, while nothing else is."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

from email_ingestion.blobs import open_blobs, reference
from email_ingestion.email import Cursor
from email_ingestion.email_json import from_json
from email_ingestion.stream import Intake
from tests.servers.links import link, message
from tests.servers.processes import Place
from tests.servers.redis import RedisServer


def test_a_message_comes_out_as_it_came_and_orphans_are_removed(here: Place, own_redis: RedisServer):
    blobs = open_blobs(f"file:{here.folder}/data/blobs")
    large = [message(uid, raw=b"Subject: large %d\r\n\r\n" % uid + b"x" * 300_000) for uid in (1, 2)]
    refs = [blobs.put(each.raw or b"") for each in large]
    stored = [replace(each, raw=None, raw_ref=ref) for each, ref in zip(large, refs, strict=True)]
    intake = Intake(link(own_redis.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    intake.append("default", "INBOX", Cursor(1, 0), 1, stored[:1])
    assert here.run("worker.py", "--drain").returncode == 0
    intake.append("default", "INBOX", Cursor(1, 1), 2, stored[1:])  # still on its way
    orphan, young = blobs.put(b"nobody refers to this"), blobs.put(b"somebody will")
    long_ago = time.time() - 40 * 86400
    for path in (here.folder / "data" / "blobs").glob("??/??/*"):
        if reference(path.name) != young:
            os.utime(path, (long_ago, long_ago))

    tried = here.run("-m", "email_ingestion", "blobs", "collect", "--dry-run", "--json")
    assert json.loads(tried.stdout) == {"orphans": [orphan], "bytes": 21, "removed": False}, tried.stderr
    done = here.run("-m", "email_ingestion", "blobs", "collect", "--json")
    assert json.loads(done.stdout)["orphans"] == [orphan]
    assert [blobs.exists(ref) for ref in (*refs, young, orphan)] == [True, True, True, False]

    email_id = large[0].envelope.email_id
    assert here.run("-m", "email_ingestion", "export", email_id, "--eml", "-o", "one.eml").returncode == 0
    assert (here.folder / "one.eml").read_bytes() == large[0].raw
    as_record = here.run("-m", "email_ingestion", "export", email_id, "--json")
    assert from_json(json.loads(as_record.stdout)).envelope == large[0].envelope
    assert here.run("-m", "email_ingestion", "export", "default:gm:5").returncode == 1
