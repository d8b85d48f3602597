"""Rows of a database that no release of ours has written: from a backup, or from whoever can write there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from sqlalchemy import text

from email_ingestion.blobs import open_blobs, reference
from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import ContentLost, OperationFailed, PermanentError, SinkUnavailable
from email_ingestion.events import Event
from email_ingestion.ledger.copy import check_copy, copy_ledger
from email_ingestion.ledger.model import ErasableMessage
from email_ingestion.ledger.resends import ResendChoice
from email_ingestion.ledger.row_check import checked_dump_rows
from email_ingestion.ledger.store import open_ledger
from email_ingestion.reconcile.sink_contents import contents_of
from email_ingestion.records import SinkMessage
from email_ingestion.resend import Resender
from email_ingestion.routing import Router
from email_ingestion.sinks import Sink, load_sink
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.worker import SinkDispatcher
from tests.contract.erasing import Installations, Kept, kept_mail, letter, message
from tests.contract.ledgers import mail, raw_of, sha256, stored
from tests.contract.test_hostile_copies import _copied
from tests.servers.processes import until
from tests.servers.redis import RedisServer

# Beside the folder of a sink lies `precious`, and each of these accounts would lead there, or somewhere else.
ACCOUNTS = ["../../../../precious/x", "/precious/x", "..", "a/../../b", "*", "[a-z]*", "x" * 300, "a\nb", "ä", "", "A"]


@pytest.mark.parametrize(
    "change",
    [
        *(f"account = '{account}', email_id = '{account}:gm:' || gm_msgid" for account in ACCOUNTS),
        "account = 'a' || char(0), email_id = 'a' || char(0) || ':gm:' || gm_msgid",
        "email_id = 'default:gm:99' || gm_msgid",
        "email_id = '../../x'",
        *("gm_msgid = 'x'", "gm_msgid = -1", "gm_msgid = NULL", "gm_msgid = 1.5", "sha256 = '../x'"),
        *("raw_ref = '../x'", "date = 'soon'", "internaldate = 7", "internaldate = '../../x'"),
        "internaldate = '2026-02-31T00:00:00+00:00'",
        *("internaldate = '0001-01-01T00:00:00+00:00'", "processed_at = '2026-01-01T00:00:00'"),
        *("labels = 5", "labels = 'x'", "labels = '[1]'", "labels = '{}'", "labels = 'null'", "flags = '[[]]'"),
        *("headers = '[1]'", "headers = '[[\"a\"]]'", "headers = '[[\"a\", 1]]'", "headers = '{\"a\": [1, 2]}'"),
        *("to_addrs = '[\"a\"]'", "to_addrs = '[{}]'", 'cc_addrs = \'[{"name": "", "addr": {}}]\'', "to_addrs = '5'"),
        "labels = printf('%.*c', 50000, '[')",
        *("uid = 'x'", "size = 'x'", "bounce = 'yes'", "priority = 'x'"),
        *("subject = x'ff'", "mailbox = CAST(x'ff' AS TEXT)"),
        'labels = \'["\\ud800"]\'',
    ],
)  # fmt: skip
def test_a_copy_with_a_row_that_no_release_writes_is_refused_in_one_sentence(tmp_path: Path, change: str):
    statement = f"+UPDATE emails SET {change} WHERE email_id = 'default:gm:7'"
    path, copied = _copied(tmp_path, "+PRAGMA foreign_keys=OFF", statement)
    with pytest.raises(OperationFailed, match="copy of the database") as refused:
        check_copy(path, copied)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE attachments SET content_ref = '/etc/passwd' WHERE email_id = 'default:gm:7'",
        "UPDATE attachments SET filename = x'ff' WHERE email_id = 'default:gm:7'",
        "UPDATE contents SET sha256 = '..' WHERE rowid = 1",
        "UPDATE contents SET data = 'text' WHERE rowid = 1",
        "INSERT INTO deliveries VALUES ('default:gm:7', 'files', 'x', NULL, 0, NULL, '2026-01-01T00:00:00+00:00')",
        "INSERT INTO deliveries VALUES ('default:gm:7', 'files', 'waiting', 'x', 0, NULL, '2026-01-01T00:00:00+00:00')",
        "INSERT INTO places VALUES ('default', 'INBOX', 1, 'x', 'default:gm:7')",
        "INSERT INTO erased VALUES ('x', '2026-01-01T00:00:00+00:00')",
        "INSERT INTO erased_contents VALUES ('../x', '2026-01-01T00:00:00+00:00')",
        "INSERT INTO holds VALUES ('h', 'sender', 'x', NULL, 'r', 'me', 'yesterday', NULL, NULL)",
    ],
)
def test_so_is_one_with_such_a_row_in_another_table(tmp_path: Path, statement: str):
    path, copied = _copied(tmp_path, statement)
    with pytest.raises(OperationFailed, match="that no release writes"):
        check_copy(path, copied)


def test_a_copy_of_what_releases_write_is_taken(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    plain, large = mail(1), mail(2, gm_msgid=2**64 - 1)
    plain = replace(plain, envelope=replace(plain.envelope, gm_msgid=None), date=None, headers=(("X", "\U0001f600"),))
    early = replace(mail(3), date=mail(3).envelope.internaldate.replace(year=1), subject="")
    with closing(open_ledger(url)) as ledger:
        ledger.record([stored(each) for each in (plain, large, early)])
        ledger.accounts  # noqa: B018 - the tables are there
    copied = copy_ledger(url, tmp_path / "copy", lambda _done, _of: None)
    assert copied
    check_copy(tmp_path / "copy", copied)


@pytest.mark.parametrize("table", ["emails", "deliveries", "contents"])
def test_a_dump_of_postgresql_with_such_a_row_is_refused(table: str):
    names = {
        "emails": ["email_id", "account", "gm_msgid", "sha256", "raw_ref"],
        "deliveries": ["email_id", "sink", "state"],
        "contents": ["sha256", "size"],
    }[table]
    digest = b"a" * 64
    row = {
        "emails": [b"default:gm:7", b"default", b"7", digest, b"sha256:" + digest],
        "deliveries": [b"default:gm:7", b"files", b"waiting"],
        "contents": [digest, b"5"],
    }[table]
    line = b"\t".join(row) + b"\n"
    assert list(checked_dump_rows(table, names, [line])) == [line]
    checked = {"emails": 5, "deliveries": 1, "contents": 1}[table]
    for n in range(checked):
        for value in (b"../../x", b"\\N", b"\xff", b"x\\ny", b""):
            if table == "emails" and n == 2 and value == b"\\N":
                continue  # it has no X-GM-MSGID: then its identity must be its hash, which it is not
            changed = b"\t".join([*row[:n], value, *row[n + 1 :]]) + b"\n"
            with pytest.raises(OperationFailed, match="that no release writes"):
                list(checked_dump_rows(table, names, [changed]))
    with pytest.raises(OperationFailed, match="that no release writes"):
        list(checked_dump_rows(table, names, [b"\n"]))


def test_a_content_that_announces_terabytes_is_damaged_and_takes_no_memory(tmp_path: Path):
    with closing(open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")) as ledger:
        ledger.record([stored(mail(1))])
        for size in (9, 2**45):
            for frame in (b"(\xb5/\xfd\xe0" + (2**45).to_bytes(8, "little"), zstandard.compress(bytes(50_000_000))):
                with ledger._database.begin() as connection:
                    connection.execute(text("UPDATE contents SET size = :s, data = :d"), {"s": size, "d": frame})
                with pytest.raises(ContentLost):
                    ledger.content(reference(sha256(raw_of(1))))
                assert list(ledger.records.contents([reference(sha256(raw_of(1)))]).values()) == [b""]


@pytest.fixture
def kept(
    tmp_path: Path, database_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Installations:
    monkeypatch.chdir(tmp_path)
    with kept_mail(tmp_path, database_url, redis_server.url, sinks="files:out,maildir:mail") as found:
        found.deliver(message(1, letter(1)), message(2, letter(2)), owed_to=("files:out", "maildir:mail"))
        yield found


def _precious(folder: Path) -> Callable[[], dict[str, bytes]]:
    """Lay files around the folders of the sinks, where hostile names lead; return what reads all that is outside."""
    outside = folder / "precious"
    outside.mkdir()
    for name in ("x-gm-5001.eml", "x-gm-5001.json", "letter.eml", "1767225600.default-gm-5001.email-ingestion"):
        (outside / name).write_text("precious")

    def read() -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and not path.relative_to(folder).parts[0].startswith(("out", "mail", "ledger", "erasure"))
        }

    return read


@pytest.mark.parametrize("account", ACCOUNTS)
def test_an_identity_that_is_none_names_no_file(kept: Kept, account: str):
    if "\n" in account and os.name == "nt":
        pytest.skip("no such name there")
    outside = _precious(kept.folder)
    before, files = outside(), kept.files()
    raw = letter(1)
    hostile = message(1, raw, account=account)
    for name in ("files:out", "maildir:mail"):
        sink: Any = load_sink(name, kept.settings)
        with pytest.raises(PermanentError, match="none of ours"):
            sink.deliver([SinkMessage(replace(mail(1), envelope=hostile.envelope), raw)])
        good = ErasableMessage(message(1, raw).envelope, "")
        assert sink.erase([ErasableMessage(hostile.envelope, "")]) == 0
        assert kept.files() == files
        assert sink.erase([ErasableMessage(hostile.envelope, ""), good]) == 1  # a hostile row shields no other
        files = kept.files()
    assert outside() == before


def test_a_hostile_row_ends_as_a_dead_letter_and_the_others_are_sent_again(kept: Kept):
    outside = _precious(kept.folder)
    before = outside()
    evil = "../../../../precious/x"
    with kept.ledger._database.begin() as connection:
        run = connection.exec_driver_sql
        run("DELETE FROM deliveries WHERE email_id = 'default:gm:5001'")
        run(f"UPDATE emails SET email_id = '{evil}:gm:5001', account = '{evil}' WHERE email_id = 'default:gm:5001'")
        columns = "sink, state, due, attempts, holder, changed_at"
        run(f"INSERT INTO deliveries (email_id, {columns}) SELECT '{evil}:gm:5001', {columns} FROM deliveries")
        run("UPDATE deliveries SET state = 'delivered', due = NULL")
    for path in [each for name in ("out", "mail") for each in (kept.folder / name).rglob("*gm-500*")]:
        path.unlink()
    heard: list[Event] = []
    router = Router((), kept.settings.sinks[1:])
    for name in ("files:out", "maildir:mail"):
        resender = Resender(kept.ledger, kept.blobs, router, name, kept.ledger.resends.now())
        assert sum(resender.run(ResendChoice())) == 2
        sink: Sink = load_sink(name, kept.settings)
        dispatcher = SinkDispatcher(
            name, sink, Breaker(name, BreakerPolicy(3, 0.2, 1), (SinkUnavailable,), heard.append), ledger=kept.ledger,
            blobs=kept.blobs, dead_letters=DeadLetterQueue(kept.link), paused=lambda: False, batch=10, lease=30.0,
            timeout=15.0, max_retries=3, instance="here", suspects=threading.Lock(),
            observe=heard.append,
        )  # fmt: skip
        dispatcher.start()
        try:
            until(dispatcher.done, "all that was sent again")
        finally:
            dispatcher.stop()
            dispatcher.join()
    letters = list(DeadLetterQueue(kept.link).letters())
    assert [(each.email_id, each.reason) for each in letters] == [(f"{evil}:gm:5001", "permanent")] * 2
    assert [each.rpartition("/")[2] for each in kept.files() if not each.startswith("blobs")] == [
        *("1767225600.default-gm-5002.email-ingestion", "default-gm-5002.eml", "default-gm-5002.json"),
    ]
    erased = kept.erase()
    assert erased.removed["messages"] == 2
    assert [each for each in kept.files() if not each.startswith("blobs")] == []
    assert outside() == before


@pytest.mark.parametrize("where", ["out/2026", "out/2026/01", "out/2026/01/01", "mail/new", "mail/cur", "mail/.sub"])
def test_a_link_inside_the_folder_is_not_followed_and_is_told(kept: Kept, where: str):
    outside = _precious(kept.folder)
    place, name = kept.folder / where, "files:out" if where.startswith("out") else "maildir:mail"
    elsewhere = kept.folder / "precious" / "moved"
    if place.exists():
        place.rename(elsewhere)
    else:
        for part in ("new", "cur", "tmp"):
            (elsewhere / part).mkdir(parents=True)
        (elsewhere / "cur" / "1767225600.default-gm-5001.email-ingestion:2,S").write_text("precious")
    place.symlink_to(elsewhere, target_is_directory=True)
    before = outside()
    sink: Any = load_sink(name, kept.settings) if where != "mail/.sub" else kept.sinks[name]
    if where != "mail/.sub":  # nothing is delivered there
        with pytest.raises(SinkUnavailable, match="symbolic link"):
            sink.deliver([SinkMessage(replace(mail(1), envelope=message(3, letter(3)).envelope), letter(3))])
    with pytest.raises(SinkUnavailable, match="symbolic link"):
        sink.erase([ErasableMessage(message(1, letter(1)).envelope, "")])
    contents = contents_of(name, lambda _: pytest.fail("no stream"), presence=False)
    found = {each.email_id for each in contents.entries()}
    assert "default:gm:5001" not in found or where in {"mail/.sub", "mail/cur"}  # there it lies in `new` as well
    assert any("symbolic link" in each for each in contents.unreadable)
    assert outside() == before


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_lies_in_the_place_of_a_file_is_replaced_or_removed_itself(kept: Kept, kind: str):
    outside = _precious(kept.folder)
    before = outside()
    names = ["out/2026/01/01/default-gm-5001.eml", "mail/new/1767225600.default-gm-5001.email-ingestion"]
    for name in names:
        (kept.folder / name).unlink()
        if kind == "link":
            (kept.folder / name).symlink_to(kept.folder / "precious" / "letter.eml")
        else:
            os.mkfifo(kept.folder / name)
    for name in ("files:out", "maildir:mail"):
        contents = contents_of(name, lambda _: pytest.fail("no stream"), presence=False)
        assert [each.email_id for each in contents.entries()] == ["default:gm:5002"]
        assert len(contents.unreadable) == 1
        sink: Any = kept.sinks[name]
        sink.deliver([SinkMessage(replace(mail(1), envelope=message(1, letter(1)).envelope), letter(1))])
    assert all((kept.folder / name).read_bytes() == letter(1) for name in names)
    for name in names:
        (kept.folder / name).unlink()
        (kept.folder / name).symlink_to(kept.folder / "precious" / "letter.eml")
    for name in ("files:out", "maildir:mail"):
        assert kept.sinks[name].erase([ErasableMessage(message(1, letter(1)).envelope, "")]) == 1  # type: ignore[attr-defined]
    assert not any((kept.folder / name).is_symlink() for name in names)
    assert outside() == before


def test_bytes_are_read_by_their_digest_alone(tmp_path: Path):
    blobs = open_blobs(f"file:{tmp_path}/blobs")
    for ref in ("../x", "sha256:../../x", "sha256:" + "a" * 63 + "/", "/etc/passwd", ""):
        with pytest.raises(Exception, match="not a reference"):
            blobs.get(ref)
