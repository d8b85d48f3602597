"""A ledger and a sink with the same mail, random edits in both, and what a comparison must find."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import text

from email_ingestion.blobs import DiskBlobStore, reference
from email_ingestion.ledger.model import Content, StoredEmail
from email_ingestion.ledger.store import Ledger
from email_ingestion.parsing import parse
from email_ingestion.reconcile.consumer_report import ConsumerReport
from email_ingestion.reconcile.sink_comparison import SinkComparison
from email_ingestion.reconcile.sink_contents import contents_of
from email_ingestion.records import ChangeEvent, ChangeKind, Email, Envelope, SinkMessage
from email_ingestion.sinks.files import FilesSink, MaildirSink
from email_ingestion.sinks.ndjson import FileSink
from email_ingestion.stream.sink import StreamSink
from tests.contract.ledgers import sha256
from tests.servers.links import link

CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*.eml"))
BATCH = 200


@dataclass
class Expected:
    """What a comparison must find."""

    missing: set[str] = field(default_factory=set)
    altered: set[str] = field(default_factory=set)
    not_ours: Counter[str] = field(default_factory=Counter)
    foreign: int = 0
    duplicates: int = 0


class EditedSink:
    """One sink of a kind, its ledger, and the edits; `root` is where both keep their files."""

    def __init__(self, ledger: Ledger, root: Path, kind: str, seed: int, redis_url: str = "") -> None:
        self.ledger = ledger
        self.rng = random.Random(seed)
        self.expected = Expected()
        self.blobs = DiskBlobStore(root / "blobs")
        self.kind = kind
        self.path = root / kind
        self.name = f"{kind}:{self.path}" if kind != "stream" else "stream:there"
        self._redis = link(redis_url) if redis_url else None
        self.sink = self._open()
        self._edits: list[Callable[[str], None]] = []
        self.ids: dict[str, Envelope] = {}

    def _open(self) -> FilesSink | MaildirSink | FileSink | StreamSink:
        if self.kind == "files":
            self.path.mkdir()
            return FilesSink(self.path)
        if self.kind == "maildir":
            for part in ("tmp", "new", "cur"):
                (self.path / part).mkdir(parents=True)
            return MaildirSink(self.path)
        if self.kind == "ndjson":
            return FileSink(self.path, 1000)
        assert self._redis
        return StreamSink(self._redis, "there", 10**6, 1000)

    def raw_of(self, number: int) -> bytes:
        return CORPUS[number % len(CORPUS)].read_bytes() + b"\r\n%d" % number

    def mail(self, numbers: range) -> Iterator[tuple[Email, bytes]]:
        for number in numbers:
            raw = self.raw_of(number)
            account = self.rng.choice(("default", "work-2", "a_b"))
            arrived = datetime(2025, 12, 1, 13, tzinfo=UTC) + timedelta(minutes=self.rng.randrange(90 * 24 * 60))
            gm_msgid = None if number % 3 == 0 else 2**63 + number
            place = (account, "INBOX", 7, number + 1)
            envelope = Envelope(*place, gm_msgid, gm_msgid, ("\\Inbox",), (), arrived, len(raw), sha256(raw))
            yield parse(envelope, raw), raw

    def deliver(self, numbers: range, *, to_ledger: bool = True, to_sink: bool = True) -> list[str]:
        """Record mail and hand it to the sink, as a worker did an hour ago."""
        found = []
        made = list(self.mail(numbers))
        for start in range(0, len(made), BATCH):
            part = made[start : start + BATCH]
            if to_ledger:
                self.ledger.record([self._stored(email, raw) for email, raw in part])
            if to_sink:
                self.sink.deliver([SinkMessage(email, raw) for email, raw in part])
            found += [email.email_id for email, _ in part]
        self.ids |= {email.email_id: email.envelope for email, _ in made}
        self.settle()
        return found

    def tell_changes(self) -> None:
        """Tell a sink that takes it what happened to its mail."""
        if isinstance(self.sink, (FileSink, StreamSink)):
            now = datetime.now(UTC)
            told = [ChangeEvent(3, now, ChangeKind.DELETED, "default", each, None) for each in [*self.ids][:3]]
            self.sink.tell_changes(told)
            self.sink.tell_missed(4)

    def _stored(self, email: Email, raw: bytes) -> StoredEmail:
        contents = (Content(sha256(raw), raw), *(Content(part.sha256, part.content) for part in email.attachments))
        return StoredEmail(email, reference(sha256(raw)), contents, owed_to=(self.name,))

    def settle(self) -> None:
        """Mark everything as delivered an hour ago."""
        delivered = "UPDATE deliveries SET state = 'delivered', due = NULL, attempts = 1, changed_at = :at"
        self.sql(f"{delivered} WHERE state <> 'delivered'")

    def sql(self, statement: str, **values: object) -> None:
        at = self.ledger.owed.now() - timedelta(hours=1)
        with self.ledger._database.begin() as connection:
            given = {"at": at.isoformat() if connection.dialect.name == "sqlite" else at} | values
            used = {name: value for name, value in given.items() if f":{name}" in statement}
            connection.execute(text(statement), used)

    def compare(self, *, presence: bool = False, resend: Callable[[list[str]], int] | None = None) -> ConsumerReport:
        contents = contents_of(self.name, lambda _target: self.sink, presence=presence)  # type: ignore[arg-type,return-value]
        comparison = SinkComparison(self.ledger, self.blobs, self.name, contents, resend)
        for _ in comparison.steps():
            pass
        return comparison.report

    def edit(self, number: int, fresh: int) -> None:
        """Make `number` edits of messages that have none yet; new mail gets numbers from `fresh` on."""
        chosen = iter(self.rng.sample(sorted(self.ids), number))
        for email_id in chosen:
            self.rng.choice((self._lose, self._alter, self._double, self._forget, self._add_to_ledger, self._intrude))(
                email_id, fresh
            )
            fresh += 1
        self._write()

    def _lose(self, email_id: str, _fresh: int) -> None:
        self._edits.append(partial(self._remove, email_id))
        self.expected.missing.add(email_id)

    def _alter(self, email_id: str, _fresh: int) -> None:
        if self.rng.random() < 0.3:  # in the ledger
            self.sql("UPDATE emails SET sha256 = :sha WHERE email_id = :id", sha=64 * "a", id=email_id)
        else:
            self._edits.append(partial(self._change, email_id))
        self.expected.altered.add(email_id)

    def _double(self, email_id: str, _fresh: int) -> None:
        self._edits.append(partial(self._copy, email_id))
        self.expected.duplicates += 1

    def _forget(self, email_id: str, _fresh: int) -> None:
        for table in ("deliveries", "attachments", "emails"):
            self.sql(f"DELETE FROM {table} WHERE email_id = :id", id=email_id)
        self.expected.not_ours[email_id] += 1

    def _add_to_ledger(self, _email_id: str, fresh: int) -> None:
        self.expected.missing |= set(self.deliver(range(fresh, fresh + 1), to_sink=False))

    def _intrude(self, _email_id: str, fresh: int) -> None:
        if self.rng.random() < 0.5:
            (email_id,) = self.deliver(range(fresh, fresh + 1), to_ledger=False)
            self.expected.not_ours[email_id] += 1
        else:
            self._edits.append(self._litter)
            self.expected.foreign += 1

    # What is done to the sink's own data, when all is in it.

    def _write(self) -> None:
        self._records = self._read()
        for change in self._edits:
            change()
        self._save()

    def _read(self) -> dict[str, list[bytes]]:
        """The lines or entries by identity, where the sink has such."""
        found: dict[str, list[bytes]] = {}
        if self.kind == "ndjson":
            lines = self.path.read_bytes().splitlines(keepends=True)
        elif self.kind == "stream":
            assert self._redis
            lines = [entry[b"json"] for _, entry in self._redis.client.xrange("there")]
        else:
            return found
        for line in lines:
            found.setdefault(json.loads(line)["email_id"], []).append(line)
        return found

    def _save(self) -> None:
        lines = [line for same in self._records.values() for line in same]
        self.rng.shuffle(lines)
        if self.kind == "ndjson":
            self.path.write_bytes(b"".join(lines))
        elif self.kind == "stream":
            assert self._redis
            self._redis.client.delete("there")
            for line in lines:
                self._redis.client.xadd("there", {"email_id": "any", "schema": "email.v1", "json": line})

    def _files(self, email_id: str) -> list[Path]:
        name = email_id.replace(":", "-")
        if self.kind == "files":
            folder = self.path / f"{self.ids[email_id].internaldate:%Y/%m/%d}"
            return [folder / f"{name}.eml", folder / f"{name}.json"]
        return [*self.path.glob(f"*/*.{name}.email-ingestion*")]

    def _remove(self, email_id: str) -> None:
        for file in self._files(email_id):
            file.unlink()
        self._records.pop(email_id, None)

    def _change(self, email_id: str) -> None:
        files = self._files(email_id)
        if files:
            file = self.rng.choice(files)
            data = file.read_bytes()
            changed = self._changed(data) if file.suffix == ".json" else self._flipped(data)
            file.write_bytes(changed)
        else:
            self._records[email_id] = [self._changed(self._records[email_id][0])]

    def _flipped(self, data: bytes) -> bytes:
        at = self.rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self.rng.randrange(8)]) + data[at + 1 :]

    def _changed(self, line: bytes) -> bytes:
        """Change a fact of a record, but not its identity."""
        record = json.loads(line)
        name = self.rng.choice(("subject", "text", "sha256", "size", "internaldate", "message_id", "headers", "to"))
        if name == "internaldate":
            record[name] = "2024-02-29T00:00:00Z"
        elif isinstance(record[name], list):
            record[name] = [*record[name], ["X", "y"] if name == "headers" else {"name": "", "addr": "x@example.com"}]
        elif isinstance(record[name], int):
            record[name] += 1
        else:
            record[name] = f"{record[name]}x"
        return json.dumps(record).encode() + b"\n"

    def _copy(self, email_id: str) -> None:
        files = self._files(email_id)
        for file in files:
            if self.kind == "files":
                other = self.path / "1999/01/01" / file.name
                other.parent.mkdir(parents=True, exist_ok=True)
                other.write_bytes(file.read_bytes())
            else:
                (self.path / "cur" / f"{file.name}:2,S").write_bytes(file.read_bytes())
        if not files:
            self._records[email_id] *= 2

    def _litter(self) -> None:
        name = f"{self.rng.random()}"
        if self.kind in {"files", "maildir"}:
            (self.path / ("cur" if self.kind == "maildir" else ".") / name).write_bytes(b"litter")
        else:
            self._records[name] = [b'{"half a line\n' if self.rng.random() < 0.5 else b"[1, 2]\n"]
