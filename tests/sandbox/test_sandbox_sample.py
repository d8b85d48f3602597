"""The sample mailbox: the same each time, varied, and nobody's real address."""

from __future__ import annotations

import email
import mailbox
import re
from collections import Counter

from gmail_sandbox import SandboxSettings, mail_source, running_sandbox
from gmail_sandbox.sample_mail import sample_messages


def test_same_seed_same_mail():
    assert list(sample_messages(60, 7)) == list(sample_messages(60, 7))
    assert list(sample_messages(60, 7)) != list(sample_messages(60, 8))


def test_sample_is_varied_and_of_moderate_size():
    messages = list(sample_messages())
    types = Counter(part.get_content_type() for m in messages for part in email.message_from_bytes(m.raw).walk())
    assert {
        "text/html", "application/pdf", "image/png", "text/calendar", "message/rfc822", "message/delivery-status"
    } <= types.keys()  # fmt: skip
    labels = {label for message in messages for label in message.labels}
    assert {"\\Inbox", "\\Important", "Work/Projects", "Receipts", "Übung", "R&D", "2024"} <= labels
    assert not {"\\Sent", "\\Junk", "\\Trash", "\\Draft"} & labels
    sizes = sorted(len(message.raw) for message in messages)
    assert sum(sizes) < 12_000_000
    assert sizes[-1] > 1_000_000
    assert [m.internaldate for m in messages] == sorted(m.internaldate for m in messages)


def test_only_reserved_domains_appear():
    text = b"".join(message.raw for message in sample_messages() if len(message.raw) < 100_000)
    domains = set(re.findall(rb"[\w.-]+@([\w.-]+\.\w+)", text))
    assert all(re.fullmatch(rb"(.*\.)?example\.(com|net|org)", domain) for domain in domains), domains


def test_conversations_become_threads():
    with running_sandbox(SandboxSettings(mail="100")) as sandbox:
        threads = Counter(message.thrid for message in sandbox.messages())
    assert max(threads.values()) > 2


def test_mail_can_come_from_a_folder_or_an_mbox(tmp_path, mail):
    (tmp_path / "a.eml").write_bytes(mail(1, Date="Mon, 05 Jan 2026 10:00:00 +0000"))
    (tmp_path / "b.eml").write_bytes(mail(2))
    box = mailbox.mbox(tmp_path / "old.mbox")
    box.add(mail(3).replace(b"\r\n", b"\n"))
    box.close()
    from_folder = list(mail_source.messages(str(tmp_path), 1))
    assert [m.raw for m in from_folder] == [mail(1, Date="Mon, 05 Jan 2026 10:00:00 +0000"), mail(2)]
    assert from_folder[0].internaldate == 1_767_607_200_000
    assert [m.raw for m in mail_source.messages(str(tmp_path / "old.mbox"), 1)] == [mail(3)]
