"""A delivered message and its conversation are read alike from every database."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from email_ingestion.ledger.conversations import base_subject
from email_ingestion.ledger.store import Ledger
from email_ingestion.records import Address, Email
from tests.contract.ledgers import mail, stored

ANN = Address("Ann", "ann@example.org")


def _letter(number: int, *names: str, thread: int | None = None, **options: Any) -> Email:
    """A letter that names others before it, of a server without X-GM-EXT-1 unless `thread` is given."""
    email = mail(number, **options)
    headers = (("Subject", email.subject), ("References", " ".join(names)))
    gm_msgid = number if thread else None
    return replace(email, headers=headers, envelope=replace(email.envelope, gm_msgid=gm_msgid, gm_thrid=thread))


def test_a_message_is_read_with_its_attachments_and_what_became_of_it(ledger: Ledger) -> None:
    email = replace(mail(1, sender=ANN, attachments=(b"one", b"two")), html="<p>Hello</p>", tags=("vip",))
    ledger.record([replace(stored(email), owed_to=("webhook",))])
    seen = ledger.views.message(email.email_id)
    assert seen is not None
    assert (seen.subject, seen.sender, seen.tags) == ("A letter", ANN, ("vip",))
    assert seen.to == (Address("Ann", "ann@example.org"),)
    assert [(each.position, each.filename, each.size) for each in seen.attachments] == [
        (1, "1.bin", 3),
        (2, "2.bin", 3),
    ]
    assert [(each.sink, each.state, each.attempts) for each in seen.deliveries] == [("webhook", "waiting", 0)]
    assert ledger.views.attachment(email.email_id, 2) == seen.attachments[1]
    assert ledger.views.attachment(email.email_id, 3) is None
    assert ledger.views.html(email.email_id) == "<p>Hello</p>"
    assert ledger.views.message("default:gm:9") is None


def test_hits_come_in_the_order_asked_for(ledger: Ledger) -> None:
    ledger.record([stored(mail(number, text=f"word {number}", attachments=(b"x",))) for number in (1, 2)])
    ids = [mail(2).email_id, "default:gm:9", mail(1).email_id]
    found = ledger.mail_search.shown(ids, "word")
    assert [(hit.email_id, hit.snippet, hit.attachments) for hit in found] == [
        (ids[0], "word 2", ("1.bin",)),
        (ids[2], "word 1", ("1.bin",)),
    ]


def test_a_thread_of_gmail_is_a_conversation_whatever_its_subjects(ledger: Ledger) -> None:
    letters = [_letter(1, thread=5), _letter(2, thread=5, subject="Other"), _letter(3, thread=6)]
    letters.append(_letter(4, thread=5, account="other"))
    ledger.record([stored(each) for each in letters])
    found = ledger.conversations.of_message(letters[1].email_id)
    assert [each.email_id for each in found] == [letters[0].email_id, letters[1].email_id]


def test_without_threads_references_make_a_conversation_in_both_directions(ledger: Ledger) -> None:
    letters = [
        _letter(1, subject="The offer"),
        _letter(2, "<1@example.org>", subject="Re: The offer"),
        _letter(3, "<2@example.org>", subject="AW: [list] Re: the offer"),
        _letter(4, "<1@example.org>", subject="Fwd: The offer"),
        _letter(5, subject="The offer"),  # the same words, and names nobody
        _letter(6, "<3@example.org>", subject="Now something else"),
        _letter(7, "<1@example.org>", subject="Re: The offer", account="other"),
    ]
    ledger.record([stored(each) for each in letters])
    ids = [each.email_id for each in letters]
    assert [each.email_id for each in ledger.conversations.of_message(ids[0])] == ids[:4]
    assert [each.email_id for each in ledger.conversations.of_message(ids[2])] == ids[:4]
    assert [each.email_id for each in ledger.conversations.of_message(ids[5])] == [ids[2], ids[5]]
    assert ledger.conversations.of_message("default:gm:9") == []


def test_a_message_that_names_thousands_of_others_has_a_conversation_too(ledger: Ledger) -> None:
    email = _letter(1, *(f"<{number}@example.com>" for number in range(5_000)), subject="%_' \" ((")
    ledger.record([stored(email)])
    assert [each.email_id for each in ledger.conversations.of_message(email.email_id)] == [email.email_id]


@pytest.mark.parametrize(
    ("subject", "base"),
    [("Re: AW: [list] re[2]: Hello", "Hello"), ("Regarding: x", "Regarding: x"), ("Fwd:", ""), ("", "")],
)
def test_a_subject_without_the_marks_of_answers(subject: str, base: str) -> None:
    assert base_subject(subject) == base
