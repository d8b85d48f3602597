"""Mailbox to stream: our producer against programs that fetch a mailbox into files, and against a bare loop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import imapclient

from bench.corpus import letters
from bench.rounds import ROOT, Failed, Run, Say, finish, race
from bench.tables import Aim, Section
from bench.venvs import environment, product, version
from email_ingestion.stream import Keys
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot
from tests.servers.redis import RedisServer, running_redis

PATIENCE = 200.0
OURS, MBSYNC, GETMAIL = "email-ingestion", "mbsync", "getmail6"
BARE, BY_HAND = "imapclient, storing nothing", "imapclient, a loop by hand into Redis"
GETMAIL_MOST = 1_000  # it takes a command for each message: more of them tell nothing new

MBSYNCRC = """\
IMAPAccount there
Host 127.0.0.1
Port {port}
User {user}
Pass {password}
SSLType None
AuthMechs LOGIN

IMAPStore there
Account there

MaildirStore here
Path {folder}/
Inbox {folder}/INBOX
SubFolders Verbatim

Channel all
Far :there:
Near :here:
Patterns INBOX
Create Near
Sync Pull
SyncState *
"""

GETMAILRC = """\
[retriever]
type = SimpleIMAPRetriever
server = 127.0.0.1
port = {port}
username = {user}
password = {password}
mailboxes = ("INBOX",)

[destination]
type = Maildir
path = {folder}/Maildir/
{user_line}
[options]
read_all = true
delete = false
delivered_to = false
received = false
verbose = 0
"""


def append(port: int, raws: Iterable[bytes], mailbox: str = "INBOX") -> None:
    """Put messages into a mailbox, many with one command."""
    client = imapclient.IMAPClient("127.0.0.1", port, ssl=False)
    client._imap.debug = 0  # noqa: SLF001 - as in the product
    client.login(USER, PASSWORD)
    with suppress(imapclient.exceptions.IMAPClientError):
        client.create_folder(mailbox)
    rest = iter(raws)
    while batch := list(islice(rest, 100)):
        client.multiappend(mailbox, batch)
    client.logout()


@contextmanager
def filled(count: int) -> Iterator[DovecotServer]:
    """A Dovecot with the corpus in its INBOX."""
    with running_dovecot(oauth_port=1) as server:
        append(server.imap_port, letters(count))
        yield server


def measure(*, count: int, rounds: int, say: Say) -> Section:
    """Everybody fetches the whole mailbox into an empty place."""
    few = min(count, GETMAIL_MOST)
    notes = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        running_redis(Path(name) / "redis") as redis,
        filled(count) as dovecot,
        running_dovecot(oauth_port=1) as small,
    ):
        contest = _Contest(Path(name), redis, dovecot, count)
        contenders: dict[str, Callable[[], Run]] = {
            OURS: contest.ours,
            BARE: contest.bare,
            BY_HAND: contest.by_hand,
        }
        mbsync = shutil.which("mbsync")
        if mbsync:
            said = subprocess.run([mbsync, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
            contenders[f"{MBSYNC} {said}"] = partial(contest.mbsync, mbsync)
        else:
            notes.append("mbsync is not installed (Debian: apt-get install isync)")
        try:
            python = environment("getmail6", "getmail6")
        except OSError as error:
            notes.append(f"getmail6 could not be installed: {error}")
        else:
            append(small.imap_port, letters(few))
            label = f"{GETMAIL} {version(python, 'getmail6')}, {few:,} messages"
            contenders[label] = partial(contest.getmail, python, small, few)
        found, out = race(contenders, rounds, say)
    ours = found[OURS]
    peer = next((each for label, each in found.items() if label.startswith(MBSYNC)), None)
    aims = [Aim("Mailbox → stream, against mbsync's mailbox → Maildir", ours.rate / peer.rate, 2.5)] if peer else []
    aims.append(Aim("Mailbox → stream, against a bare fetch loop", ours.rate / found[BARE].rate, 0.45))
    rows = [
        (each.name, f"{each.rate:,.0f}", f"{each.cost:.2f}", f"± {each.spread / 2:.0%}", _ratio(ours.rate, each.rate))
        for each in found.values()
    ]
    return Section(
        "Mailbox → stream",
        f"{count:,} messages of the corpus in a Dovecot on the same machine, Redis with its AOF written every second. "
        "Whole processes from their start to their end (`python producer.py --once`): what Python needs to start is "
        "in it. CPU is the client's. The loop by hand hashes, compresses and appends each message, and is safe against "
        "nothing.",
        ("Program", "messages/s", "CPU ms/message", "spread", "ours is"),
        rows,
        aims,
        [*notes, *(f"{label} dropped out: {why}" for label, why in out.items())],
        {"producer_cpu_ms": ours.cost, "producer_rate": ours.rate},
    )


def _ratio(ours: float, theirs: float) -> str:
    return "" if ours == theirs else f"{ours / theirs:.2f} ×"


def settings_of(dovecot: DovecotServer, redis: RedisServer) -> dict[str, str]:
    """The producer's and the worker's environment: a password login, and limits out of the way."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "REDIS_URL": redis.url,
        "OPS_PORT": "0",
        "METRICS_PORT": "0",
        "IMAP_HOST": "127.0.0.1",
        "IMAP_TLS": "false",
        "IMAP_PORT": str(dovecot.imap_port),
        "IMAP_USER": USER,
        "IMAP_AUTH": "password",
        "IMAP_PASSWORD": PASSWORD,
        "IMAP_BYTES_PER_DAY": "1000000000000",
        "STREAM_MAX_DEPTH": "10000000",
        "STREAM_MAX_BYTES": "100000000000",
    }


class _Contest:
    def __init__(self, folder: Path, redis: RedisServer, dovecot: DovecotServer, count: int) -> None:
        self._folder = folder
        self._redis = redis
        self._dovecot = dovecot
        self._count = count

    def _place(self) -> Path:
        place = self._folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def ours(self) -> Run:
        with self._redis.client() as client:
            client.flushall()
        run = self._run(
            [product(), ROOT / "producer.py", "--once"], settings_of(self._dovecot, self._redis), self._count
        )
        with self._redis.client() as client:
            _complete(int(client.xlen(Keys().stream)), self._count)
        return run

    def bare(self) -> Run:
        return self._loop("bare_imap.py")

    def by_hand(self) -> Run:
        with self._redis.client() as client:
            client.flushall()
            run = self._loop("by_hand_imap.py", self._redis.url)
            _complete(int(client.xlen("mail")), self._count)
        return run

    def _loop(self, script: str, *further: str) -> Run:
        where = ["127.0.0.1", str(self._dovecot.imap_port), USER, PASSWORD, *further]
        command = [sys.executable, ROOT / "bench" / "peers" / script, *where]
        return self._run(command, {"PATH": os.environ["PATH"]}, self._count)

    def mbsync(self, program: str) -> Run:
        place = self._place()
        values = {"port": self._dovecot.imap_port, "user": USER, "password": PASSWORD, "folder": place}
        (place / "rc").write_text(MBSYNCRC.format(**values))
        variables = {"PATH": os.environ["PATH"], "HOME": str(place)}
        run = self._run([program, "-q", "-c", place / "rc", "all"], variables, self._count, place)
        _complete(_files(place / "INBOX"), self._count)
        return run

    def getmail(self, python: Path, server: DovecotServer, count: int) -> Run:
        place = self._place()
        for name in ("cur", "new", "tmp"):
            (place / "Maildir" / name).mkdir(parents=True)
        as_user = "user = nobody\n" if os.geteuid() == 0 else ""  # it delivers nothing as root
        values = {"port": server.imap_port, "user": USER, "password": PASSWORD, "folder": place, "user_line": as_user}
        if as_user:
            for path in (self._folder, place, *place.rglob("*")):
                shutil.chown(path, "nobody")
        (place / "getmailrc").write_text(GETMAILRC.format(**values))
        environment_of_it = {"PATH": os.environ["PATH"], "HOME": str(place)}
        run = self._run([python.parent / "getmail", "--getmaildir", place], environment_of_it, count, place)
        _complete(_files(place / "Maildir"), count)
        return run

    def _run(
        self, command: Sequence[str | Path], variables: dict[str, str], count: int, place: Path | None = None
    ) -> Run:
        ended = finish(command, environment=variables, cwd=place or self._place(), patience=PATIENCE)
        return Run(count, ended.seconds, ended.cpu, ended.peak)


def _files(maildir: Path) -> int:
    return sum(1 for name in ("cur", "new") for _ in (maildir / name).iterdir())


def _complete(found: int, wanted: int) -> None:
    if found != wanted:
        raise Failed(f"{found} of {wanted} messages arrived")
