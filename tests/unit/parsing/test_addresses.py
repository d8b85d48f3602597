"""Address fields as senders write them: each gives the people whom the sender meant."""

from __future__ import annotations

import pytest

from email_ingestion.parsing import addresses, parse
from email_ingestion.parsing.defects import Defects
from tests.unit.parsing.messages import envelope


@pytest.mark.parametrize(
    ("value", "people"),
    [
        ('"John Doe"@example.com', [("", '"John Doe"@example.com')]),
        ('<"very odd"@example.com>', [("", '"very odd"@example.com')]),
        ("Joe <@a.example,@b.example:joe@example.org>", [("Joe", "joe@example.org")]),
        ("Joe <@a.example:joe@example.org>, b@c.de", [("Joe", "joe@example.org"), ("", "b@c.de")]),
        ("<<ann@example.com>>", [("", "ann@example.com")]),
        ("Ann <<ann@example.com>>, bob@y.org", [("Ann", "ann@example.com"), ("", "bob@y.org")]),
        ("<Ann <ann@example.com>", [("Ann", "ann@example.com")]),
        ("Ann <ann@example.com>>", [("Ann", "ann@example.com")]),
        ("John john@example.com>", [("John", "john@example.com")]),
        ("Ann <a@example.com> Bob <b@example.com>", [("Ann", "a@example.com"), ("Bob", "b@example.com")]),
        ("Ann (ann@example.com)", [("Ann", "ann@example.com")]),
        ("(ann@example.com)", [("", "ann@example.com")]),
        ("Ann (never closed <ann@example.com>", [("Ann", "ann@example.com")]),
        (r"Pete(A nice \) chap) <pete(his account)@silly.test(his host)>", [("Pete", "pete@silly.test")]),
        ("ann@example.com (Ann Lee)", [("Ann Lee", "ann@example.com")]),
        ("MAILER-DAEMON (Mail Delivery System)", [("Mail Delivery System", "MAILER-DAEMON")]),
        ("=?utf-8?Q?Ann_=3Cann=40example.com=3E?=", [("Ann", "ann@example.com")]),
        ("=?utf-8?Q?Ann?= =?utf-8?Q?_=3Cann=40example.com=3E?=", [("Ann", "ann@example.com")]),
        ("=?utf-8?Q?eve=40example.org?= <ann@example.com>", [("eve@example.org", "ann@example.com")]),
        ("'ann@example.com'", [("", "ann@example.com")]),
        ('"Ann" <"ann@example.com">', [("Ann", "ann@example.com")]),
        ("Ann <mailto:ann@example.com>", [("Ann", "ann@example.com")]),
        ("john @ example . com", [("", "john@example.com")]),
        ("a@[IPv6:::1]", [("", "a@[IPv6:::1]")]),
        ("o'neil@example.com", [("", "o'neil@example.com")]),
        (
            "A Group:Ed <ed@x.org>,joe@where.test,John <jdoe@one.test>;",
            [("Ed", "ed@x.org"), ("", "joe@where.test"), ("John", "jdoe@one.test")],
        ),
        ("Undisclosed recipients:;, a@b.de", [("Undisclosed recipients", ""), ("", "a@b.de")]),
    ],
)
def test_an_address_is_read_as_it_was_meant(value: str, people: list[tuple[str, str]]) -> None:
    assert [(one.name, one.addr) for one in addresses.parse([value], Defects())] == people


@pytest.mark.parametrize(
    "fields",
    [
        b'From: "Ann\nFrom: "Firm " <>, "Ltd" <ann@example.com>\n',
        b"From: Firm, ann@example.com\n",
        b"From: undisclosed:;, ann@example.com\n",
    ],
)
def test_a_sender_without_an_address_does_not_hide_the_one_with_it(fields: bytes) -> None:
    sender = parse(envelope(), fields + b"\nhi").from_
    assert sender
    assert sender.addr == "ann@example.com"
