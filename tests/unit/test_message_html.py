"""What of a message's HTML is shown, and what with."""

from __future__ import annotations

import pytest

from email_ingestion.records import Attachment
from email_ingestion.web.message_html import (
    MAX_CHARACTERS,
    MAX_TAGS,
    clean,
    content_security_policy,
    document,
    has_remote_pictures,
    inline_pictures,
)

GIF = b"GIF89a..."


def _part(content_id: str | None, content: bytes = GIF, size: int | None = None) -> Attachment:
    return Attachment(1, "a", "text/html", len(content) if size is None else size, "", content, content_id=content_id)


def test_what_people_write_stays() -> None:
    html = (
        '<h1 style="color: red; font-size: 20px">Hello</h1><table border="1" cellpadding="2"><tbody><tr>'
        '<td colspan="2" bgcolor="#eee">x</td></tr></tbody></table><blockquote>old</blockquote>'
    )
    assert clean(html).html == html.replace("color: red; font-size: 20px", "color:red;font-size:20px")


def test_a_style_loses_only_what_could_load_or_move() -> None:
    style = "Color: red; background: url(https://example.com/); position: fixed; width: 9px !important"
    assert clean(f'<p style="{style}">x</p>').html == '<p style="color:red;width:9px ! important">x</p>'


def test_links_open_elsewhere_and_tell_nothing() -> None:
    link = clean('<a href="https://example.com/" target="_top" rel="opener">x</a>').html
    assert link == '<a href="https://example.com/" target="_blank" rel="noopener noreferrer">x</a>'


@pytest.mark.parametrize("name", ["<a@example.com>", "a@example.com"])
def test_pictures_of_the_message_itself_are_shown_by_what_they_are(name: str) -> None:
    inline = inline_pictures([_part(name), _part("<b@example.com>", b"<svg/>"), _part(None)])
    assert inline == {"a@example.com": "data:image/gif;base64,R0lGODlhLi4u"}
    found = clean('<img src="cid:a%40example.com"><img src="CID:b@example.com">', inline)
    assert (found.html.count("data:image/gif"), found.missing) == (1, 1)


def test_too_many_pictures_are_not_carried_along() -> None:
    assert len(inline_pictures(_part(f"{n}@example.com", size=4 * 1024**2) for n in range(4))) == 2


def test_a_message_that_would_stall_the_parser_is_shown_in_part() -> None:
    for html in ("<div>" * (MAX_TAGS + 1), "x" * (MAX_CHARACTERS + 1)):
        found = clean(html)
        assert found.shortened
        assert "too large to be shown whole" in document(found)
    assert not clean("<div>" * 100).shortened


def test_the_document_says_what_is_left_out() -> None:
    html = "<img src='https://example.com/a'>"
    found = clean(f"{html}{html}<img src=cid:x>")
    assert "2 pictures of other servers not loaded." in document(found)
    assert "1 picture that the message names and does not have." in document(found)
    assert has_remote_pictures(html)
    assert not has_remote_pictures("<a href='https://example.com/'><img src=cid:x></a>")


def test_the_policy_lets_nothing_load_but_pictures_over_https_when_asked() -> None:
    assert "http" not in content_security_policy(remote=False)
    assert "img-src data: https:;" in content_security_policy(remote=True)
    for policy in (content_security_policy(remote=False), content_security_policy(remote=True)):
        assert policy.startswith("default-src 'none'")
        assert "sandbox" in policy
        assert "allow-scripts" not in policy
        assert "allow-same-origin" not in policy
