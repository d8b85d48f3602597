"""Where a message goes: conditions, their order, and the sentence for a table that is wrong."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

from email_ingestion.errors import ConfigurationError
from email_ingestion.parsing import parse
from email_ingestion.producer.priority import priority_by_header
from email_ingestion.records import Address, AuthenticationResults, Email, MailingList
from email_ingestion.routing import Decision, Router
from tests.unit.parsing.messages import envelope

SINKS = ("webhook", "files:out")
LIST = MailingList("garden.example.com", (), (), (), False, (), (), ())  # noqa: FBT003 - no one-click


def email(**changes: object) -> Email:
    here = replace(envelope(), labels=("\\Inbox", "Rechnungen"), size=5000, account="work")
    record = parse(here, b"From: Ann <ann@Example.com>\nSubject: Your Invoice [7]\n\nhello")
    return replace(record, **changes)


def decide(toml: str, message: Email | None = None) -> Decision:
    return Router(tomllib.loads(toml).get("routes", []), SINKS).decide(message or email())


def test_without_routes_mail_goes_everywhere():
    found = decide("")
    assert (found.sinks, found.email, found.routes) == (SINKS, email(), ())


@pytest.mark.parametrize(
    "condition",
    [
        *('account = "work"', 'account = ["home", "work"]', 'label = "rechnungen"', 'label = "Rech*"'),
        *('sender = "ann@example.com"', 'sender = "*@example.com"', 'domain = "example.com"', 'domain = "EXAMPLE.*"'),
        *('subject = "*invoice*"', 'subject = "*[[]7]"', "has_attachment = false", "list = false", "bounce = false"),
        *("size_above = 4999", "size_below = 5001", "size_above = 4999\nsize_below = 5001", "auto_reply = false"),
        *("priority_above = 4", "priority_below = 6"),
    ],
)
def test_a_condition_that_holds(condition: str):
    assert decide(f"[[routes]]\n{condition}\ntags = 'yes'").email.tags == ("yes",)


@pytest.mark.parametrize(
    "condition",
    [
        *('account = "home"', 'label = "Rech"', 'sender = "ann"', 'domain = "ample.com"', 'subject = "invoice"'),
        *("has_attachment = true", "list = true", 'list = "*"', "size_above = 5000", "size_below = 5000"),
        *("priority_above = 5", 'dkim = "pass"', 'account = "work"\nlabel = "other"', "bounce = true"),
    ],
)
def test_a_condition_that_does_not_hold(condition: str):
    assert decide(f"[[routes]]\n{condition}\ntags = 'yes'").email.tags == ()


def test_lists_and_verdicts_are_conditions():
    message = email(mailing_list=LIST, verdicts=AuthenticationResults("pass", "fail", None))
    toml = """
        [[routes]]
        list = "garden.*"
        tags = "list"
        [[routes]]
        list = true
        dkim = ["fail", "none"]
        tags = "forged?"
        [[routes]]
        dmarc = "*"
        tags = "never"
    """
    assert decide(toml, message).email.tags == ("list", "forged?")


def test_tags_add_up_and_of_the_others_the_last_word_counts():
    found = decide("""
        [[routes]]
        name = "all"
        tags = ["a", "b"]
        priority = 2
        sinks = ["files:out", "webhook"]
        [[routes]]
        priority_below = 3
        tags = ["b", "c"]
        priority = 9
        sinks = ["webhook"]
        [[routes]]
        tags = "d"
    """)
    assert (found.email.tags, found.email.priority, found.sinks) == (("a", "b", "c", "d"), 9, ("webhook",))
    assert found.routes == ("all", "2", "3")


def test_a_skipped_message_goes_nowhere_and_no_further_route_is_asked():
    found = decide("""
        [[routes]]
        skip = true
        tags = "seen"
        [[routes]]
        sinks = ["webhook"]
    """)
    assert (found.sinks, found.skipped, found.email.tags) == ((), True, ("seen",))


def test_the_database_alone_can_be_named():
    assert decide('[[routes]]\nsinks = ["database"]').sinks == ()


def test_a_message_without_sender_fits_no_sender():
    assert decide('[[routes]]\ndomain = "?*"\ntags = "x"', email(from_=None)).email.tags == ()
    assert decide('[[routes]]\ndomain = "*.org"\ntags = "x"', email(from_=Address("", "a@b.org"))).email.tags == ("x",)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('lable = "x"', "route 1 .*lable is not known; did you mean label"),
        ('name = "mine"\nsinks = ["webhok"]', "route mine .*'webhok': add it to SINKS"),
        ("priority = 11", "priority: input should be less than or equal to 10"),
        ('size_above = "big"', "size_above: input should be a valid integer"),
        ('has_attachment = "yes"', "has_attachment: input should be a valid boolean"),
        ("subject = []", "subject: "),
        ("subject = 7", "subject: "),
    ],
)
def test_a_wrong_table_is_refused_with_one_sentence(table: str, words: str):
    with pytest.raises(ConfigurationError, match=words):
        decide(f"[[routes]]\n{table}")


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        *((b"", 5), (b"Importance: High\n", 7), (b"X-Priority: 1 (Highest)\n", 7), (b"X-Priority: 5\n", 3)),
        *((b"Priority: non-urgent\n", 3), (b"X-Priority: very\nX-MSMail-Priority: High\n", 7)),
    ],
)
def test_a_message_says_itself_how_urgent_it_is(fields: bytes, priority: int):
    assert parse(envelope(), fields + b"Subject: x\n\nhello").priority == priority


@pytest.mark.parametrize("line", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("message", "priority"),
    [
        *(("Importance: High|Subject: x||hello", 7), ("Subject: x|importance : high|To: y||hello", 7)),
        *(("Subject: x|X-Priority: 1||hello", 7), ("Subject: x||hello|Importance: High|", 5)),
        *(("||Importance: High|", 5), ("Subject: x|Not-Importance: High||", 5), ("Subject: x|Importance: High", 7)),
    ],
)
def test_the_header_tells_how_urgent_a_message_is_before_it_is_read(message: str, priority: int, line: str):
    priority_of = priority_by_header(Router("", ()))
    assert priority_of(envelope(), message.replace("|", line).encode()) == priority
