"""LIST responses in forms that no RFC has, or that few servers use: none keeps the other mailboxes out."""

from __future__ import annotations

from typing import Any

import pytest

from email_ingestion.errors import ConfigurationError
from email_ingestion.mailbox.mailbox_names import choose_mailbox, parse_list

LISTED: dict[str, tuple[list[Any], list[str]]] = {
    "an empty delimiter": ([b'() "" INBOX', b'() "" "A B"'], ["INBOX", "A B"]),
    "no delimiter": ([b"() NIL INBOX"], ["INBOX"]),
    "no attributes": ([b'NIL "/" INBOX'], ["INBOX"]),
    "the delimiter as a literal": ([(b"() {1}", b"/"), b' "A/B"'], ["A/B"]),
    "a literal with what must be escaped": ([(b'() "/" {3}', b'A"\\'), b""], ['A"\\']),
    "data of LIST-EXTENDED": ([b'() "/" "A" ("CHILDINFO" ("SUBSCRIBED"))'], ["A"]),
    "such data behind a literal": ([(b'() "/" {3}', b"A/B"), b' (OLDNAME ("C"))'], ["A/B"]),
    "a quote that is not escaped": ([b'() "/" "A"x"'], ['A"x']),
    "names like other things": ([b'() "/" NIL', b'() "/" 200', b'() "/" [Gmail]/X'], ["NIL", "200", "[Gmail]/X"]),
    "broken shift sequences": (
        [b'() "/" "&2AA-"', b'() "/" "&AGE-"', b'() "/" "a&AOQ"', b'() "/" "&AAA-"'],
        ["&2AA-", "&AGE-", "a&AOQ", "&AAA-"],
    ),
    "nothing at all": ([b"", None, b"()", b'() "/"', b'() "/" B'], ["B"]),
    "a long name": ([b'() "/" "' + b"A" * 5000 + b'"'], ["A" * 5000]),
}


@pytest.mark.parametrize("form", LISTED)
def test_a_name_is_read_in_whatever_form_it_is_listed(form: str):
    responses, names = LISTED[form]
    assert [each.name for each in parse_list(responses)] == names


def test_of_mailboxes_that_are_listed_twice_the_one_that_can_be_opened_counts():
    listed = parse_list([rb'(\Noselect \Junk) "/" "Junk"', rb'(\Junk) "/" "Spam"', b'() "/" "Junk"'])
    assert choose_mailbox(r"\Junk", listed, gmail=False).name == "Spam"
    assert choose_mailbox("Junk", listed, gmail=False).attributes == frozenset()


def test_an_error_shows_no_more_than_the_beginning_of_long_names():
    listed = parse_list([b'() "/" "' + b"A" * 1_000_000 + b'"'] * 30)
    with pytest.raises(ConfigurationError) as caught:
        choose_mailbox("B", listed, gmail=False)
    assert len(str(caught.value)) < 5000
