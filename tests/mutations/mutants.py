"""The mutants: each breaks one promise in a copy of the product, and names the tests that must notice.

`old` must stand exactly once in its file: a mutant that no longer fits is an error, not a pass.
"""

from __future__ import annotations

from dataclasses import dataclass

STREAM = "tests/integration/test_stream.py"
MACHINE = "tests/integration/test_stream_machine.py"
OUTAGE = "tests/mutations/test_outage.py"
MATRIX = "tests/acceptance/test_crash_matrix.py::test_a_fault_loses_nothing_and_doubles_nothing"
LUA = "src/email_ingestion/stream/lua"
PROCESSOR = "src/email_ingestion/worker/processor.py"
DRILL = "tests/drills/test_runbooks.py::test_the_procedure_does_what_it_says"


@dataclass(frozen=True)
class Edit:
    """One change of one file."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A broken promise. At least one of `tests` must fail on it."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


RECORD = "            duplicates = self._record([write for _, write in writes])\n"
GIVE_BACK = """\
        except (SinkUnavailable, CircuitBreakerError):
            raise
"""

MUTANTS = (
    Mutant(
        "acknowledged before the database committed",
        (Edit(PROCESSOR, RECORD, f"            self._consumer.ack([delivery for delivery, _ in writes])\n{RECORD}"),),
        (OUTAGE,),
    ),
    Mutant(
        "a sink that is away taken for one that has delivered",
        (
            Edit(
                PROCESSOR,
                GIVE_BACK,
                "        except (SinkUnavailable, CircuitBreakerError):\n            duplicates = set()\n",
            ),
        ),
        (OUTAGE,),
    ),
    Mutant(
        "cursor moved before the append",
        (
            Edit(
                "src/email_ingestion/stream/appender.py",
                "        pending = PendingScript(self._link, self._append, partition, keys, args)\n",
                '        self._link.call(lambda: self._link.client.hset(keys[1], "uid", last_uid))\n'
                "        pending = PendingScript(self._link, self._append, partition, keys, args)\n",
            ),
            Edit(
                f"{LUA}/append.lua",
                "local p, added, bytes = 7, 0, 0\n",
                "local p, added, bytes = 7, 0, 0\nlast = from\n",
            ),
        ),
        (MACHINE, STREAM),
    ),
    Mutant(
        "cursor not moved by the append",
        (Edit(f"{LUA}/append.lua", "  redis.call('HSET', KEYS[2], ARGV[5], last_uid)\n", ""),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "append without a look at the cursor",
        (Edit(f"{LUA}/append.lua", "  if beyond(tonumber(uid), last) then\n", "  if true then\n"),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "append behind a cursor that went back",
        (Edit(f"{LUA}/append.lua", " or beyond(from, last) then", " then"),),
        (STREAM,),
    ),
    Mutant(
        "MAXLEN on the stream",
        (
            Edit(
                f"{LUA}/append.lua",
                "redis.call(unpack(command))",
                "redis.call('XADD', KEYS[1], 'MAXLEN', '9000', unpack(command, 3))",
            ),
        ),
        (MACHINE,),
    ),
    Mutant(
        "claim without lease",
        (Edit(f"{LUA}/claim_due.lua", "  if owner ~= ARGV[2] then wait = math.max(wait, lease) end\n", ""),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "suspects taken together",
        (
            Edit(f"{LUA}/claim_due.lua", " and (count == 0 or #out == 0) and urgent", " and urgent"),
            Edit(f"{LUA}/claim_due.lua", "        if count > 0 or #out >= limit then", "        if #out >= limit then"),
        ),
        (MACHINE, STREAM),
    ),
    Mutant(
        "completion without a look at the owner",
        (Edit(f"{LUA}/ack.lua", "ARGV[1], id, id, 1, ARGV[2])", "ARGV[1], id, id, 1)"),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "completion that leaves the entry in the stream",
        (Edit(f"{LUA}/ack.lua", "    redis.call('XDEL', KEYS[1], id)\n", ""),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "heartbeat that steals back",
        (Edit(f"{LUA}/extend.lua", "ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])", "ARGV[1], ARGV[i], ARGV[i], 1)"),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "given back with the attempt spent: hold",
        (Edit(f"{LUA}/extend.lua", "'RETRYCOUNT', count, ", ""),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "given back with the attempt spent: release",
        (Edit(f"{LUA}/release.lua", "'RETRYCOUNT', count, ", ""),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "buried by one who lost it",
        (Edit(f"{LUA}/dead_letter.lua", "ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])", "ARGV[1], ARGV[3], ARGV[3], 1)"),),
        (MACHINE,),
    ),
    Mutant(
        "buried without its bytes",
        (Edit(f"{LUA}/dead_letter.lua", "  for _, v in ipairs(entry[1][2]) do letter[#letter + 1] = v end\n", ""),),
        (MACHINE, STREAM),
    ),
    Mutant(
        "replay that leaves the letter where it is",
        (Edit(f"{LUA}/replay.lua", "    redis.call('XDEL', KEYS[3], id)\n", ""),),
        (MACHINE, "tests/integration/test_dead_letters.py"),
    ),
    Mutant(
        "an identity that changes with the mailbox",
        (
            Edit(
                "src/email_ingestion/records.py",
                "        return email_id(self.account, self.gm_msgid, self.sha256)\n",
                '        return email_id(self.account, self.gm_msgid, self.sha256) + f":{self.uid}"\n',
            ),
        ),
        ("tests/acceptance/test_main_job.py::test_mail_moved_to_the_trash_and_back_is_not_delivered_again",),
    ),
    Mutant(
        "a lost cursor that begins at the newest message",
        (
            Edit(
                "src/email_ingestion/producer/sync.py",
                "        history = 1 if first_run else newest + 1\n",
                "        history = 1\n",
            ),
        ),
        (OUTAGE,),
    ),
    Mutant(
        "a content named before it is stored",
        (Edit("src/email_ingestion/producer/pipeline.py", "upload.result()\n", "del upload\n"),),
        ("tests/integration/test_storing.py",),
    ),
    Mutant(
        "a mailbox opened for writing",
        (
            Edit("src/email_ingestion/mailbox/pipelining.py", 'else "BODY.PEEK[]"', 'else "BODY[]"'),
            Edit(
                "src/email_ingestion/mailbox/imap4.py",
                'self._command("EXAMINE", _quoted(name))',
                'self._command("SELECT", _quoted(name))',
            ),
        ),
        (f"{MATRIX}[producer_frozen]",),
    ),
    # What the runbooks rely on: the drills must notice.
    Mutant(
        "circuit_breakers as an object",
        (
            Edit(
                "src/email_ingestion/ops/status.py",
                '                "circuit_breakers": breakers,\n',
                '                "circuit_breakers": {each["name"]: each for each in breakers},\n',
            ),
        ),
        (f"{DRILL}[incident_response#22-imap-unreachable]",),
    ),
    Mutant(
        "a metric of another name",
        (
            Edit(
                "src/email_ingestion/ops/collectors.py",
                '    ("dlq_depth", "Entries in',
                '    ("dlq_letters", "Entries in',
            ),
        ),
        (f"{DRILL}[incident_response#25-dlq-growing]",),
    ),
    Mutant(
        "an error's class left out of the log",
        (
            Edit(
                "src/email_ingestion/ops/redaction.py", "    return type(error).__name__\n", '    return "Exception"\n'
            ),
        ),
        (f"{DRILL}[incident_response#21-redis-down]",),
    ),
    Mutant(
        "a log emptied at the start",
        (
            Edit(
                "src/email_ingestion/ops/logs.py",
                '        super().__init__(path, encoding="utf-8")\n',
                '        super().__init__(path, mode="w", encoding="utf-8")\n',
            ),
        ),
        (f"{DRILL}[incident_response#26-worker-crash-or-oom]",),
    ),
    Mutant(
        "ready without Redis",
        (
            Edit(
                "src/email_ingestion/ops/readiness.py",
                "    yield from (reason for name, reason in unavailable if name in critical)\n",
                '    yield from (reason for name, reason in unavailable if name in critical and name != "redis")\n',
            ),
        ),
        (f"{DRILL}[incident_response#21-redis-down]",),
    ),
    Mutant(
        "a restore that lays an RDB beside the AOF",
        (
            Edit(
                "src/email_ingestion/backup/restore.py",
                "            keys = reload.switch()\n",
                "            target.link.client.save()\n            keys = reload.abandon() or 1\n",
            ),
        ),
        (f"{DRILL}[redis_operations#restore-from-a-backup]",),
    ),
)
