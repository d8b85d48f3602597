"""`email-ingestion dlq` as an operator types it, against real processes: nothing lost, nothing twice, nothing told."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard

from email_ingestion.errors import PermanentError
from email_ingestion.stream import Keys
from email_ingestion.stream.codec import encode
from email_ingestion.stream.dead_letters import dead_letter_fields
from tests.servers.commands import at_terminal, typed
from tests.servers.links import message
from tests.servers.processes import Place, until
from tests.servers.redis import RedisServer

KEYS = Keys()
SECRETS = ("letter 7", "hello", "ada@example.org")  # of the subject, of the body, and an address


def dlq(here: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return typed(here, "dlq", *words)


def start(here: Place, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "email_ingestion", "dlq", *words]
    return subprocess.Popen(command, cwd=here.folder, env=here.environment, stdin=subprocess.DEVNULL)


def asked(here: Place, *words: str) -> object:
    result = dlq(here, *words, "--json")
    assert result.returncode in {0, 1}, result.stderr
    return json.loads(result.stdout)


def bury(server: RedisServer, uids: Sequence[int], error: Exception | None = None, reason="permanent") -> list[str]:
    """Put letters where a worker puts them, many at a time; returns their ids."""
    compressor = zstandard.ZstdCompressor()
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n'
    trace += "KeyError: 'hello ada@example.org'\n"
    death = dead_letter_fields(
        reason, 1, error or PermanentError("too long for ada@example.org"), trace, "here-worker-1"
    )
    with server.client() as client:
        pipe = client.pipeline(transaction=False)
        for uid in uids:
            pipe.xadd(KEYS.dlq, encode(message(uid), datetime.now(UTC), compressor) | death)
        return [each.decode() for each in pipe.execute()]


def depth(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.xlen(KEYS.dlq))


def audit(here: Place) -> list[dict[str, object]]:
    return [json.loads(line) for line in (here.folder / "logs" / "audit.log").read_text().splitlines()]


def stored(here: Place) -> list[int]:
    return sorted(row[0] for row in here.rows("SELECT uid FROM emails"))


def test_what_a_worker_buries_is_listed_counted_and_replayed_in_vain(here: Place, own_redis: RedisServer):
    with own_redis.client() as client:
        client.xadd(KEYS.stream, {"hello": "world"})
    worker = here.worker()
    until(lambda: depth(own_redis) == 1, "the worker buries what it cannot read")
    (letter,) = asked(here, "list")
    assert (letter["reason"], letter["error_type"], letter["replays"]) == ("malformed", "MalformedEntry", 0)
    (kind,) = asked(here, "stats")
    assert (kind["count"], kind["example"], kind["fingerprint"]) == (1, letter["id"], letter["fingerprint"])
    assert asked(here, "replay", "--fingerprint", kind["fingerprint"])["replayed"] == 1
    until(lambda: [each["replays"] for each in asked(here, "list")] == [1], "it dies again")
    until(lambda: worker.metric("email_ingestion_dlq_replayed_total") == 1, "the metric knows")
    assert worker.alive


def test_a_replay_killed_in_the_middle_and_given_again_delivers_every_message_once(here: Place, own_redis: RedisServer):
    uids = list(range(1, 3001))
    bury(own_redis, uids)
    replay = start(here, "replay", "--all")
    while depth(own_redis) == len(uids):
        assert replay.poll() is None
    replay.kill()
    replay.wait()
    left = depth(own_redis)
    assert 0 < left < len(uids)
    assert asked(here, "replay", "--all") == {"dry_run": False, "matched": left, "replayed": left}
    assert dlq(here, "replay", "--all").returncode == 1
    with own_redis.client() as client:
        assert client.xlen(KEYS.stream) == len(uids)
    assert here.run("worker.py", "--drain", seconds=120).returncode == 0
    assert stored(here) == uids
    assert [(each["action"], each["result"]) for each in audit(here)] == [
        ("dlq replay", "started"),
        ("dlq replay", "started"),
        ("dlq replay", "done"),
    ]
    with own_redis.client() as client:
        assert int(client.get(KEYS.volume)) == 0


def test_two_replays_at_once_deliver_every_message_once(here: Place, own_redis: RedisServer):
    uids = list(range(1, 801))
    bury(own_redis, uids)
    replays = [start(here, "replay", "--all") for _ in range(2)]
    assert {each.wait(60) for each in replays} <= {0, 1}
    assert here.run("worker.py", "--drain", seconds=120).returncode == 0
    assert stored(here) == uids
    done = [each["replayed"] for each in audit(here) if each["result"] == "done"]
    assert sum(done) == len(uids)


def test_a_purge_leaves_what_it_did_not_export(here: Place, own_redis: RedisServer):
    old = bury(own_redis, range(1, 301))
    purge = start(here, "purge", "--all", "--yes", "--output", "purged.jsonl")
    new: list[str] = []
    while purge.poll() is None:
        new += bury(own_redis, [1000 + len(new)])
        time.sleep(0.002)
    assert purge.returncode == 0
    path = here.folder / "purged.jsonl"
    exported = [json.loads(line)["id"] for line in path.read_text().splitlines()[1:-1]]
    with own_redis.client() as client:
        left = [each.decode() for each, _ in client.xrange(KEYS.dlq)]
    assert sorted(exported + left) == sorted(old + new)
    assert set(old) <= set(exported)
    assert path.stat().st_mode & 0o777 == 0o600
    done = audit(here)[-1]
    assert (done["action"], done["result"]) == ("dlq purge", "done")
    assert done["exported"] == done["deleted"] == len(exported)


def test_nobody_at_the_terminal_means_no_purge(here: Place, own_redis: RedisServer):
    bury(own_redis, [1, 2])
    refused = dlq(here, "purge", "--all")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--yes" in refused.stderr
    assert depth(own_redis) == 2
    assert not list(here.folder.rglob("*.jsonl"))


def _at_a_terminal(here: Place, reply: bytes, *words: str) -> tuple[int, str]:
    """Run a command whose three streams are a terminal, and answer its question."""
    process, ours = at_terminal(here, "dlq", *words)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal is gone with the process
            break
        if not part:
            break
        if b"?" in part and b"?" not in said:
            os.write(ours, reply)
        said += part
    os.close(ours)
    return process.wait(60), said.decode()


def test_a_purge_asks_at_a_terminal(here: Place, own_redis: RedisServer):
    bury(own_redis, [1, 2])
    code, said = _at_a_terminal(here, b"n\n", "purge", "--all")
    assert (code, "nothing was deleted" in said, depth(own_redis)) == (1, True, 2)
    code, said = _at_a_terminal(here, b"y\n", "purge", "--all")
    assert (code, "deleted 2 dead letters" in said, depth(own_redis)) == (0, True, 0)
    (path,) = (here.folder / "backups").iterdir()
    assert path.name in "".join(said.split())


def test_a_table_is_drawn_at_a_terminal(here: Place, own_redis: RedisServer):
    ids = bury(own_redis, [1])
    code, said = _at_a_terminal(here, b"", "list")
    assert code == 0
    assert ids[0] in said
    assert "died (UTC)" in said


def test_a_dry_run_changes_nothing(here: Place, own_redis: RedisServer):
    bury(own_redis, [1, 2])
    for command, words in (("replay", "put back"), ("purge", "export and delete")):
        result = dlq(here, command, "--all", "--dry-run")
        assert result.returncode == 0
        assert f"would {words} 2 dead letters" in result.stderr
        answer = asked(here, command, "--all", "--dry-run")
        assert (answer["dry_run"], answer["matched"], answer["kinds"][0]["count"]) == (True, 2, 2)
    assert depth(own_redis) == 2
    assert not (here.folder / "logs" / "audit.log").exists()


def test_the_message_comes_out_into_a_file_and_nowhere_else(here: Place, own_redis: RedisServer):
    (letter_id,) = bury(own_redis, [7])
    path = here.folder / "letter.eml"
    said = [dlq(here, "show", letter_id, "--raw", str(path)), dlq(here, "show", letter_id, "--json")]
    said += [dlq(here, "list"), dlq(here, "stats"), dlq(here, "stats", "--json"), dlq(here, "list", "--json")]
    assert path.read_bytes() == message(7).raw
    assert path.stat().st_mode & 0o777 == 0o600
    for each in said:
        assert each.returncode == 0
        assert not any(secret in each.stdout for secret in SECRETS), each.stdout
    assert '  File "a.py", line 1, in f' in said[0].stdout
    assert "KeyError: text withheld" in said[0].stdout
    assert dlq(here, "show", letter_id, "--raw", str(path)).returncode == 2


def test_a_large_message_comes_from_the_blobs(here: Place, own_redis: RedisServer):
    raw = b"Subject: large\r\n\r\n" + b"x" * 1000
    sha256 = hashlib.sha256(raw).hexdigest()
    blob = here.folder / "data" / "blobs" / sha256[:2] / sha256[2:4] / sha256
    blob.parent.mkdir(parents=True)
    blob.write_bytes(raw)
    with own_redis.client() as client:
        letter_id = client.xadd(KEYS.dlq, {"raw_ref": f"sha256:{sha256}"}).decode()
    assert dlq(here, "show", letter_id, "--raw", "large.eml").returncode == 0
    assert (here.folder / "large.eml").read_bytes() == raw


def test_filters_choose_and_ids_must_be_there(here: Place, own_redis: RedisServer):
    first = bury(own_redis, [1, 2])
    bury(own_redis, [3], ValueError("other"), "max_retries")
    assert [each["email_id"] for each in asked(here, "list", "--reason", "max_retries")] == ["default:gm:1003"]
    assert len(asked(here, "list", "--error-type", "PermanentError", "--account", "default")) == 2
    assert asked(here, "list", "--older-than", "1h") == []
    assert dlq(here, "list", "--older-than", "1h").returncode == 1
    assert "--limit" in dlq(here, "list", "--limit", "2").stderr
    some = dlq(here, "replay", first[0], "5-5")
    assert (some.returncode, "5-5" in some.stderr) == (0, True)
    assert dlq(here, "replay", "5-5").returncode == 1
    assert dlq(here, "show", "5-5").returncode == 1
    assert dlq(here, "export", "--reason", "max_retries", "--output", "some.jsonl").returncode == 0
    assert len((here.folder / "some.jsonl").read_text().splitlines()) == 3
    assert depth(own_redis) == 2


def test_the_first_of_them_can_go_alone(here: Place, own_redis: RedisServer):
    ids = bury(own_redis, range(1, 6))
    assert asked(here, "replay", "--all", "--first", "1") == {"dry_run": False, "matched": 1, "replayed": 1}
    assert [each["id"] for each in asked(here, "list")] == ids[1:]
    assert asked(here, "purge", "--reason", "permanent", "--first", "2", "--yes")["deleted"] == 2
    assert [each["id"] for each in asked(here, "list")] == ids[3:]
    assert [each["filter"] for each in audit(here) if "filter" in each][::2] == [
        {"all": True, "first": 1},
        {"reason": "permanent", "first": 2},
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("replay",),
        ("purge", "--yes"),
        ("export",),
        ("replay", "--all", "--reason", "permanent"),
        ("replay", "12"),
        ("list", "--reason", "permenent"),
        ("list", "--older-than", "yesterday"),
        ("replay", "1-1", "--older-than", "1d"),
        ("show",),
        ("unknown",),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_64(here: Place, own_redis: RedisServer, words: tuple[str, ...]):
    bury(own_redis, [1])
    assert dlq(here, *words).returncode == 64
    assert depth(own_redis) == 1


def test_a_full_redis_says_that_the_letters_stay(here: Place, own_redis: RedisServer):
    bury(own_redis, [1, 2])
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
    result = dlq(here, "replay", "--all")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "0 of 2 dead letters were put back" in result.stderr
    assert audit(here)[-1]["result"] == "failed"
    assert depth(own_redis) == 2


def test_a_purge_that_cannot_export_deletes_nothing(here: Place, own_redis: RedisServer):
    bury(own_redis, [1, 2])
    taken = Path(here.folder / "taken.jsonl")
    taken.write_text("mine")
    for output in (str(taken), "/proc/nowhere/letters.jsonl"):
        result = dlq(here, "purge", "--all", "--yes", "--output", output)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert depth(own_redis) == 2
    here.set(LOG_DIR="/proc/nowhere")
    assert dlq(here, "purge", "--all", "--yes").returncode == 78
    assert depth(own_redis) == 2


def test_every_command_explains_itself_with_examples(here: Place):
    for command in ("list", "show", "stats", "export", "replay", "purge"):
        result = dlq(here, command, "--help")
        assert result.returncode == 0
        assert f"email-ingestion dlq {command}" in result.stdout
