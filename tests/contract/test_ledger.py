"""What every ledger does: record once, all or nothing, and know what it has."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from email_ingestion.blobs import open_blobs, reference
from email_ingestion.errors import PermanentError, TransientError
from email_ingestion.ledger.model import Content, Marks, StoredEmail
from email_ingestion.ledger.store import Ledger, content_of, open_ledger
from email_ingestion.records import Address, AuthenticationResults, Bounce, MailingList
from tests.contract.ledgers import EPOCH, letters, mail, raw_of, sha256, stored

LARGEST = 2**64 - 1  # 20 digits


def ids(*numbers: int) -> set[str]:
    return {f"default:gm:{number}" for number in numbers}


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    """What an operator sees in a shell."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query))]
    engine.dispose()
    return found


def test_a_message_is_recorded_once_however_often_it_comes(ledger: Ledger) -> None:
    assert ledger.record(letters(1, 2)) == ids(1, 2)
    assert ledger.record(letters(1, 2, 3)) == ids(3)
    assert ledger.record(letters(3)) == set()
    assert ledger.record([]) == set()
    assert ledger.count() == 3


def test_what_was_given_up_is_remembered_and_is_no_delivery(ledger: Ledger) -> None:
    ledger.record_purged(ids(1, 2))
    ledger.record_purged(ids(2, 3))
    ledger.record_purged([])
    assert ledger.purged(ids(1, 2, 3, 4)) == ids(1, 2, 3)
    assert ledger.known_ids(ids(1, 2, 3)) == set()
    assert ledger.record(letters(1)) == ids(1)


def test_a_message_twice_in_one_batch_is_recorded_once(ledger: Ledger) -> None:
    first, again = mail(1, attachments=(b"a", b"b")), mail(1, attachments=(b"c",))
    assert ledger.record([stored(first), stored(again), *letters(2)]) == ids(1, 2)
    assert ledger.count() == 2


def test_the_first_of_two_in_one_batch_wins(ledger: Ledger, database_url: str) -> None:
    ledger.record([stored(mail(1, attachments=(b"a", b"b"))), stored(mail(1, attachments=(b"c",)))])
    assert rows(database_url, "SELECT position, sha256 FROM attachments ORDER BY position") == [
        (1, sha256(b"a")),
        (2, sha256(b"b")),
    ]


def test_overlapping_batches_of_many_threads_are_recorded_once(ledger: Ledger) -> None:
    batches = [letters(*range(start, start + 40)) for start in range(0, 80, 10)]
    batches += [list(reversed(batch)) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        recorded = list(pool.map(ledger.record, batches))
    assert sum(map(len, recorded)) == len(set().union(*recorded)) == ledger.count() == 110


def _record_in_batches(url: str, answer: Pipe) -> None:
    with closing(open_ledger(url)) as ledger:
        answer.send([ledger.record(letters(*range(start, start + 30))) for start in range(0, 200, 10)])


def test_overlapping_batches_of_several_processes_are_recorded_once(database_url: str) -> None:
    """They also start at once on an empty database."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(4)]
    starters = [context.Process(target=_record_in_batches, args=(database_url, answer)) for _, answer in pipes]
    for starter in starters:
        starter.start()
    recorded = [new for receiver, _ in pipes for new in receiver.recv()]
    for starter in starters:
        starter.join()
    with closing(open_ledger(database_url)) as ledger:
        assert sum(map(len, recorded)) == len(set().union(*recorded)) == ledger.count() == 220


def test_one_refused_message_leaves_nothing_of_its_batch(ledger: Ledger, database_url: str) -> None:
    twice = mail(2, attachments=(b"a", b"b"))
    bad = replace(twice, attachments=tuple(replace(part, position=1) for part in twice.attachments))
    with pytest.raises(PermanentError):
        ledger.record([*letters(1), stored(bad), *letters(3)])
    assert [rows(database_url, f"SELECT count(*) FROM {table}") for table in ("emails", "attachments", "contents")] == [
        [(0,)]
    ] * 3
    assert ledger.record(letters(1, 3)) == ids(1, 3)


def test_a_lone_surrogate_is_the_message_s_fault_and_is_not_quoted(ledger: Ledger) -> None:
    with pytest.raises(PermanentError) as caught:
        ledger.record([stored(mail(1, subject="secret \udc80"))])
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_nul_is_refused_or_kept_but_never_blamed_on_the_database(ledger: Ledger) -> None:
    try:
        ledger.record([stored(mail(1, subject="a\0b"))])
    except PermanentError:
        assert ledger.count() == 0


@pytest.mark.parametrize("gm_msgid", [0, 1866230417553838193, 2**63 - 1, 2**63, LARGEST])
def test_every_gmail_identity_fits_and_shows_as_a_plain_number(
    ledger: Ledger, database_url: str, gm_msgid: int
) -> None:
    email = mail(1, gm_msgid=gm_msgid)
    assert ledger.record([stored(email)]) == {f"default:gm:{gm_msgid}"}
    assert ledger.known_gm_msgids("default", [gm_msgid, 17]) == {gm_msgid}
    [(shown,)] = rows(database_url, "SELECT gm_msgid FROM emails")
    assert isinstance(shown, int | str | Decimal)
    assert str(shown) == str(gm_msgid)


def test_a_message_without_gmail_identity_is_known_by_its_bytes(ledger: Ledger) -> None:
    email = mail(1)
    plain = replace(email, envelope=replace(email.envelope, gm_msgid=None, gm_thrid=None))
    assert ledger.record([stored(plain), stored(mail(2))]) == {plain.email_id, "default:gm:2"}
    assert ledger.known_ids([plain.email_id, "default:gm:2", "default:gm:3"]) == {plain.email_id, "default:gm:2"}


def test_known_answers_for_more_values_than_one_statement_takes(ledger: Ledger) -> None:
    ledger.record(letters(*range(0, 40, 2)))
    assert ledger.known_gm_msgids("default", range(40_000)) == set(range(0, 40, 2))
    assert ledger.known_ids(f"default:gm:{number}" for number in range(2_000)) == ids(*range(0, 40, 2))
    assert ledger.known_gm_msgids("other", range(40)) == set()
    assert ledger.known_gm_msgids("default", []) == set()


def test_known_uids_are_those_of_one_mailbox_under_one_uidvalidity(ledger: Ledger) -> None:
    ledger.record([*letters(1, 2, 3, 4), stored(mail(5, mailbox="Archiv")), stored(mail(6, account="other"))])
    assert ledger.known_uids("default", "INBOX", 7, 2, 5) == {2, 3, 4}
    assert ledger.known_uids("default", "INBOX", 8, 1, 9) == set()
    assert ledger.count("other") == 1


def test_a_row_shows_what_the_message_is(ledger: Ledger, database_url: str) -> None:
    email = mail(1, subject="Grüße 🎉", sender=Address("Jörg", "joe@example.org"), attachments=(b"pdf",))
    ledger.record([stored(email)])
    [(subject, name, addr, to, labels, headers, raw_ref)] = rows(
        database_url,
        "SELECT subject, from_name, from_addr, to_addrs, labels, headers, raw_ref FROM emails",
    )
    assert (subject, name, addr) == ("Grüße 🎉", "Jörg", "joe@example.org")
    assert raw_ref == reference(email.envelope.sha256) == ledger.raw_ref("default:gm:1")
    if database_url.startswith("sqlite"):
        assert to == '[{"name": "Ann", "addr": "ann@example.org"}]'
        assert labels == r'["\\Inbox", "Grüße"]'
        assert headers == '[["Subject", "Grüße 🎉"]]'
    else:
        assert to == [{"name": "Ann", "addr": "ann@example.org"}]
        assert labels == ["\\Inbox", "Grüße"]
        assert headers == [["Subject", "Grüße 🎉"]]


def test_a_row_shows_what_parsing_found(ledger: Ledger, database_url: str) -> None:
    found = MailingList("news.example.org", (), (), (), one_click=False, archive=(), owner=(), help=())
    listed = replace(
        mail(1),
        cc=(Address("", "bob@example.org"),),
        mailing_list=found,
        verdicts=AuthenticationResults("pass", None, "fail"),
    )
    machine = replace(mail(2), auto_reply=True, bounce=Bounce(None, ()))
    ledger.record([stored(listed), stored(machine), *letters(3)])
    columns = "list_id, spf, dkim, dmarc, auto_reply, bounce"
    assert rows(database_url, f"SELECT {columns} FROM emails ORDER BY uid") == [
        ("news.example.org", "pass", None, "fail", False, False),
        (None, None, None, None, True, True),
        (None, None, None, None, False, False),
    ]
    assert len(rows(database_url, "SELECT 1 FROM emails WHERE CAST(cc_addrs AS text) LIKE '%bob@example.org%'")) == 1
    assert rows(database_url, "SELECT uid FROM emails WHERE bounce") == [(2,)]


def test_a_rehearsal_does_what_recording_does_and_nobody_sees_it(ledger: Ledger, database_url: str) -> None:
    ledger.record([stored(mail(1, attachments=(b"shared",)))])
    tables = {name: rows(database_url, f"SELECT * FROM {name}") for name in ("emails", "attachments", "contents")}
    ledger.record_and_roll_back([stored(mail(number, attachments=(b"shared", b"own"))) for number in (1, 2, 3)])
    assert {name: rows(database_url, f"SELECT * FROM {name}") for name in tables} == tables
    assert ledger.record(letters(2)) == ids(2)
    with pytest.raises(PermanentError):
        ledger.record_and_roll_back([stored(mail(4, subject="\ud800"))])


def test_the_time_of_recording_is_told(ledger: Ledger) -> None:
    before = datetime.now(UTC)
    ledger.record(letters(1, 2))
    found = ledger.processed_times(ids(1, 2, 3))
    assert found.keys() == ids(1, 2)
    assert all(before <= at <= datetime.now(UTC) for at in found.values())


def test_instants_are_kept_in_utc(ledger: Ledger, database_url: str) -> None:
    ledger.record([stored(replace(mail(1), date=datetime(1, 1, 1, tzinfo=UTC)))])
    [(internaldate, day)] = rows(database_url, "SELECT internaldate, CAST(date AS text) FROM emails")
    if database_url.startswith("sqlite"):
        assert (internaldate, day) == ("2026-01-01T01:00:00+00:00", "0001-01-01T00:00:00+00:00")
    else:
        assert internaldate == EPOCH.replace(hour=1)
    assert [hit.date for hit in ledger.mail_search.hits("letter")] == [EPOCH.replace(hour=1)]


def test_contents_come_back_as_they_went_in(ledger: Ledger) -> None:
    data = bytes(range(256)) * 100
    email = mail(1, attachments=(data, b""))
    ledger.record([stored(email)])
    for content in (raw_of(1), data, b""):
        assert ledger.content(reference(sha256(content))) == content
    assert ledger.content(reference(sha256(b"never seen"))) is None
    assert ledger.raw_ref("default:gm:2") is None


def test_the_same_content_of_many_messages_is_kept_once(ledger: Ledger, database_url: str) -> None:
    ledger.record([stored(mail(number, attachments=(b"logo",))) for number in range(5)])
    ledger.record([stored(mail(9, attachments=(b"logo",)))])
    assert rows(database_url, f"SELECT count(*) FROM contents WHERE sha256 = '{sha256(b'logo')}'") == [(1,)]
    assert rows(database_url, "SELECT count(*) FROM attachments") == [(6,)]


def test_content_is_found_in_the_database_or_in_the_blob_store(ledger: Ledger, tmp_path: Path) -> None:
    blobs = open_blobs(f"file:{tmp_path}/blobs")
    large = blobs.put(b"large")
    ledger.record(letters(1))
    assert content_of(reference(sha256(raw_of(1))), ledger, blobs) == raw_of(1)
    assert content_of(large, ledger, blobs) == b"large"
    with pytest.raises(TransientError):
        content_of(reference(sha256(b"nowhere")), ledger, blobs)


def test_damaged_content_is_not_passed_off_as_the_message(ledger: Ledger) -> None:
    wrong = StoredEmail(mail(1), reference(sha256(b"right")), (Content(sha256(b"right"), b"wrong"),))
    ledger.record([wrong])
    with pytest.raises(TransientError, match="damaged"):
        ledger.content(reference(sha256(b"right")))


def test_no_message_is_too_odd_to_be_recorded(ledger: Ledger) -> None:
    """A Message-ID above a B-tree's limit, and texts made to exceed that of a tsvector."""
    odd = [
        mail(1, message_id="".join(f"{number:x}" for number in range(5_000))),
        mail(2, text=" ".join(f"{number:x}-{number + 7:x}" for number in range(200_000))),
        mail(3, text=" ".join(chr(0x20000 + number) for number in range(40_000)) * 5),
        mail(4, text="".join(chr(0x20000 + number % 40_000) + "-@./ "[number % 5] for number in range(400_000))),
        mail(5, text="\ufdfa" * 300_000),
        mail(6, subject="x" * 1_000_000, text="\uac00\u0301" * 200_000),
    ]
    assert ledger.record([stored(email) for email in odd]) == ids(1, 2, 3, 4, 5, 6)


def _record_until_killed(url: str, answer: Pipe) -> None:
    with closing(open_ledger(url)) as ledger:
        for start in range(0, 100_000, 10):
            emails = [mail(number, attachments=(f"a{number}".encode(), b"b")) for number in range(start, start + 10)]
            answer.send(ledger.record([stored(email) for email in emails]))


def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half(database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, answer = context.Pipe(duplex=False)
    victim = context.Process(target=_record_until_killed, args=(database_url, answer))
    victim.start()
    answer.close()
    acknowledged = set().union(*(receiver.recv() for _ in range(5)))
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    with closing(open_ledger(database_url)) as ledger:
        assert ledger.known_ids(acknowledged) == acknowledged
        count = ledger.count()
        assert count % 10 == 0
        assert rows(database_url, "SELECT count(*) FROM attachments") == [(2 * count,)]
        assert rows(database_url, "SELECT count(*) FROM contents") == [(2 * count + 1,)]
        assert len(ledger.mail_search.hits("letter", limit=count + 1)) == count
        ledger.ping()
        assert ledger.record(letters(200_000)) == ids(200_000)


def test_labels_change_where_they_differ_and_only_in_the_mailbox_they_came_from(ledger: Ledger):
    ledger.record([stored(mail(1)), stored(mail(2)), stored(mail(3, mailbox="Work"))])
    same = ledger.stored_facts(mail(1).email_id)
    assert same
    wanted = {mail(1).email_id: same.envelope.labels, mail(2).email_id: ("neu",), mail(3).email_id: (), "default-x": ()}
    marks = {email_id: Marks(labels) for email_id, labels in wanted.items()}
    known = {mail(number).email_id for number in (1, 2, 3)}
    assert ledger.server_state.update_marks("INBOX", marks) == (known, 1)
    assert ledger.server_state.update_marks("INBOX", marks) == (known, 0)
    found = [ledger.stored_facts(mail(number).email_id) for number in (1, 2, 3)]
    assert [each.envelope.labels for each in found if each] == [same.envelope.labels, ("neu",), same.envelope.labels]
    assert ledger.server_state.update_marks("INBOX", {}) == (set(), 0)
