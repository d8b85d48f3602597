"""Turns rows into a Markdown page that says under which circumstances they came about."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.crash_matrix.published import NAMES, Line, line_of, merged, table
from bench.crash_matrix.rounds import Row
from bench.crash_matrix.world import PACE
from email_ingestion import __version__
from tests.servers.processes import ROOT


def broken(rows: Sequence[Row]) -> list[str]:
    """A sentence for everything that is wrong."""
    said = []
    for row in rows:
        verdict = row.verdict
        kinds = {name: getattr(verdict, name) for name in ("lost", "doubled", "altered", "invented", "seen")}
        where = f"{row.fault.name} on {NAMES[row.database]}"
        said += [f"{where}: {len(ids)} {name}, such as {ids[0]}" for name, ids in kinds.items() if ids]
        said += [f"{where}: {complaint}" for complaint in row.complaints]
    return said


def page(rows: Sequence[Row], kept: Sequence[Line], *, order: Sequence[str], seed: int, seconds: float) -> str:
    """The whole page: these rows, and the lines of others from the page as it was."""
    commit = commit_of_tree()
    lines = merged(kept, [line_of(row, commit) for row in rows], order)
    wrong = broken(rows)
    totals = {name: sum(line.number(name) for line in lines) for name in ("Rounds", "Messages", "Lost", "Doubled")}
    played = [row for row in rows if not row.skipped]
    return TEMPLATE.format(
        rounds=totals["Rounds"],
        messages=f"{totals['Messages']:,}",
        lost=totals["Lost"],
        doubled=totals["Doubled"],
        table=table(lines),
        wrong="\n".join(f"* {sentence}" for sentence in wrong) if wrong else "Nothing.",
        command=_command(played, seed),
        minutes=f"{seconds / 60:.0f}",
        date=datetime.now(UTC).date().isoformat(),
        count=len(played),
        machine=_machine(),
        settings=", ".join(f"`{name}={value}`" for name, value in PACE.items()),
    )


def _command(rows: Sequence[Row], seed: int) -> str:
    rounds = max((row.rounds for row in rows), default=0)
    messages = max((row.messages // row.rounds for row in rows), default=0)
    return f"python -m bench.crash_matrix --database both --rounds {rounds} --messages {messages} --seed {seed}"


def commit_of_tree() -> str:
    """The commit that runs, `-dirty` where files differ from it."""
    return _said("git", "describe", "--always", "--dirty") or "unknown"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    redis = _said("redis-server", "--version").split(" ")
    server = next((word.removeprefix("v=") for word in redis if word.startswith("v=")), "unknown")
    return (
        f"email-ingestion {__version__} ({commit_of_tree()}), "
        f"Python {platform.python_version()}, Redis {server}, SQLite {sqlite3.sqlite_version}, "
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs, {memory} MiB"
    )


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write(path: Path, text: str) -> None:
    """Replace the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


TEMPLATE = """\
# Nothing lost, nothing twice: the crash matrix

Real processes, a real `redis-server` with `appendonly yes` and `appendfsync everysec`, real databases, and the Gmail
sandbox are broken in every way listed here, {rounds} times, while {messages} messages pass through them.
**Lost: {lost}. Doubled: {doubled}.** Each line says how often it was played, and with which commit.

{table}

What the last run found wrong: {wrong}

## What is checked

After every round, over all mail since the first round of that fault:

* **Conservation.** mailbox = database + dead letters + queued. *Lost* is on the server and nowhere else. *Doubled* has
  two ends, by identity or by the SHA-256 of its content. What is nowhere on the server counts as wrong too.
* **Bytes.** The raw message is read back through the ledger and the blob store, and its SHA-256 compared with that of
  what the server was given (*altered*).
* **The mailbox is only read.** `\\Seen` on a single message is a failure.
* **Nobody dies.** Processes killed by the matrix are started again as a supervisor would; one that ends by itself, a
  thread that dies or a loop that stalls is a failure.

*Duplicates refused* are messages that came a second time, after a crash or with a lost cursor, and that the database
already had: delivery is at least once, the effect exactly once. *Recovery* is the time from the end of the fault until
everything is delivered; after `imap_outage` and `token_outage` it may be `CB_RECOVERY_TIMEOUT` and ten seconds at most.
*Posted again* are calls of a webhook with a message it had taken: those of half a second, when a worker ends between
handing over and writing that down, and no more.

**Truth during the fault.** While mail waits and none is delivered, every source is asked again and again. *Told after*
is the longest time until the first of them gave a reason. *Silent* is, for each of them, the longest time for which it
gave none: `/ready` and `/status` of every process said `ready`, no gauge of `/metrics` that names a cause was set, no
built-in alert's condition held, `doctor` (asked after 5 s) found nothing. Above 30 s it is a failure; only an alert may
take longer, because what it waits for is a setting. `-`: mail did not stand still long enough to ask.

## Faults that overlap: the schedules

The rows above are faults of our own choosing, one at a time. `bench/fault_schedules` was written apart from them and
draws schedules from a seed: two to five faults that overlap, with Gmail's sandbox or a Dovecot, SQLite or PostgreSQL,
one or two workers, a webhook and a Python function as sinks, and a proxy before every server whose network stalls, is
cut, goes half-open, trickles or swallows everything. `--list` shows all faults.

```bash
python -m bench.fault_schedules --minutes 60 --seed 1
python -m bench.fault_schedules --schedules 20 --seed 1 --database postgresql
```

They are judged by the same law, 90 s after the last fault at the latest, and beyond it:

* **Sinks.** Each has each message; twice only where a worker was killed or stopped, or an answer or a commit was
  lost, within two seconds of the first time.
* **Nothing is buried.** No message caused any of the faults, so none may be a dead letter.
* **The truth meanwhile.** After 30 s in which mail waited and nothing moved, some `/ready` has a reason, and neither
  `doctor` nor `/status` nor the metrics find everything well. What each said, and after how many seconds, is printed.

On 2026-11-29, 127 schedules of the seeds 1 to 505 were played in an hour and a half on a busy machine of 2 CPUs, on
both databases. 107 held, and no standstill of theirs went unexplained for longer than 10 s. Of the 20 others, most
failed over the stack that plays them, which was mended; what was ours is below. One of them lost mail.

The seeds 613, 400, 401, 402 and 500 were played again, and held. Then 76 schedules, the seeds 600 to 675, were played
in 62 minutes, with a load of 9 to 16 on 2 CPUs, 17 of them on PostgreSQL alone. Nothing was lost, doubled, altered or
buried, and nothing stood still unexplained for longer than 14 s. Two were broken, by one cause: a worker that got no
thread while it started ended, and came back when it was started again. It waits for one now, and a schedule like the
first of the two holds. An hour without any has still to be played with that.

A schedule that fails is shrunk to the smallest one that still does, which is printed as a command that repeats it. The
faults strike when the schedule says; what the processes do at that instant nobody decides, so try it more than once.

## What only TLS guards

TCP's checksum is weak, and on a loopback set-up (`IMAP_TLS=false`) nothing else stands between the mail server and
the producer. What comes is compared with the size that the server announced, and a conversation that breaks the
rules of IMAP is ended. A bit that flips inside a message and leaves its length alone is stored as it came, under
the hash of what came: only TLS notices that on the way. Afterwards the comparison of the mailbox does, which reads
a few messages whole each time (`altered` in `email-ingestion reconcile`, `message_altered_on_server` in the log);
nothing is fetched again for it.

## What was mended since

Each of these lost, doubled or buried mail, or kept silent about it, and has a test of its own now:

* A mail server restored from a backup gave UIDs out anew under the same UIDVALIDITY: that mail was never fetched,
  and the audit called the mailbox complete. Mail is compared by what it is, not by its place.
* Stored bytes that were gone or damaged were noticed at an export. They are read once a day and fetched again
  (`contents_lost`).
* A webhook that moved, or whose certificate had expired, was ready whenever its port was open. `/ready` names the
  cause until it takes a message.
* SIGHUP, SIGUSR2, SIGALRM and others ended a process without a record (`signals`).
* An SQLite file that was removed, its `-wal` left, seemed a broken disk until a restart. Tables of PostgreSQL that were
  dropped were missed until a restart of the workers, while the database counted as up; made anew, they were taken for
  the old ledger when they soon had more than that, and older mail came back with the next hourly comparison only
  (`database_removed`).
* A worker whose clock was off signed posts that receivers refuse, and each refusal buried a message; so did a wrong
  secret. Posts are signed by the receiver's clock then, and 401, 403 and 407 bury nothing (`clock_skew`).
* The clocks of hosts differed unnoticed: an alert tells, and `/ready` of the machine that is off.
* A blob directory that was wholly empty counted as sound in `doctor`.

## What is open

The lines of commit `12f48fb` were played on a machine with ten times the load it can carry, two rounds of 100 messages
each; the full form takes about three hours on a quiet one. They show what was mended right after:

* `clock_skew` buried three messages, and `database_removed` on PostgreSQL left 100 unfetched. Both are mended and have
  a test, and are to be played again.
* `migration` was silent for 31 and 42 s, without a loss: the matrix itself had stopped all processes. Such a time is
  not counted any more.

`network_cut` on SQLite had mail again after 13.8 s in one round, where 11 s are promised (on PostgreSQL 10.6 s). It was
not the load: a connection that was half-open was given up 15 s after the end of its IDLE at the soonest, whatever
`CB_RECOVERY_TIMEOUT` was; with less than 13 s that broke the promise. It follows the setting now, and the row is to be
played again.

These were found by the schedules:

* An SQLite file that was replaced, by a copy or by the empty file that `sqlite3` makes of a removed one, while any
  process of ours kept the old one open: every other read it through the old `-wal`, which gave disk errors until all
  were restarted, or pages of the old database. Whoever finds the file replaced takes the old `-wal` away.
* A worker that started without a file descriptor to spare ended: with a traceback, or with exit code 78, `no sink is
  installed`, after which a supervisor leaves it alone. So did one whose Python sink could not be imported for want of
  memory. It waits, and `/ready` says for what.
* **Lost until the next hourly comparison, and every process ready:** the mail of a database that was removed, or put
  back, within the ten seconds between two looks at how far it had come (40 of 40 after `sqlite_removed` and
  `redis_restored`). An SQLite file has an id now, and each worker looks whether the database still has what it
  recorded last, whenever a connection is new and every ten seconds.
* A parser that started for the first time while the disk was full left cut files of bytecode behind (Python before
  3.12.8 and 3.13.1 keeps them), and no parser started any more when there was room again: `/ready` said so, and mail
  waited. A child process that fails at once is started again without cached bytecode.
* Documented, not mended: when the database cannot be written for longer than `WORKER_LEASE_SECONDS` in the moment
  between hand-over and mark, another worker takes the message over, and the sink gets it twice.
* A worker that was given no thread while it started ended with a traceback and code 1 (twice in an hour, the fault
  within a second of the start). It waits for one, and says so.
* A worker whose clock was set forward said `not_ready: redis: not checked for 301 s`; set back, it hid a check that
  hangs, and the failure of a loop was hidden or shown for as long as the step. Ages go by the monotonic clock.

## What it does not show

The sandbox is built from public documentation and observations of Gmail, never from Gmail itself. A power cut is
imitated for Redis by cutting its AOF at a random byte; nobody pulled a plug. After each cut the AOF is rewritten, for
Redis 7.0 leaves half a transaction in the file and brings it to life at the next restart. There is one machine.

## Repeat it

```bash
{command} --write docs/reliability.md
```

`--faults NAME,… --database sqlite|postgresql|both` plays some; `--write` puts their lines in the place of older ones of
the same fault and database, and keeps the others. The last run, {date}: {count} lines, {minutes} minutes. {machine}.
Settings that differ from the defaults: {settings}.

The instants at which a fault strikes come from the seed; what the processes do at that instant does not, so a
repetition is a new trial and not a replay. `scripts/test.sh` runs the short form, two rounds each.
"""
